"""torchvision's classification networks, with the weights that torchvision publishes."""

from __future__ import annotations

from typing import Any, cast

import torchvision
from torch import nn

from pipeline.config import Model
from pipeline.errors import UserError, first_line
from pipeline.models.family import Family
from pipeline.models.heads import find_head, new_head, start_head
from pipeline.models.torchvision_weights import (
    fetch,
    find_entry,
    normalisation_of,
    torchvision_names,
)
from pipeline.models.weights import Normalisation

_FIXED_INPUT = {"vit_": "image_size", "maxvit": "input_size"}
"""Beginnings of names of networks that are built for one image size, and that size's parameter."""
_WITH_AUXILIARY_HEADS = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}


class TorchvisionModels(Family):
    """All of torchvision's classification networks."""

    def has(self, name: str) -> bool:
        return name in torchvision_names()

    def weights_name(self, model: Model) -> str:
        return str(find_entry(model).name)

    def fetch_weights(self, model: Model) -> None:
        fetch(model)

    def normalisation(self, model: Model) -> tuple[Normalisation, str] | None:
        if model.weights_kind != "published":
            return None
        entry = find_entry(model)
        return normalisation_of(entry), f"of torchvision's {entry}"

    def builds_on_meta(self, name: str) -> bool:
        # RegNet's constructor computes with values of tensors. On the meta device there are none.
        return not name.startswith("regnet")

    def build(
        self, model: Model, num_classes: int, image_size: int, load: bool
    ) -> tuple[nn.Module, str]:
        entry = find_entry(model) if model.weights_kind == "published" else None
        if entry is not None and load:
            fetch(model)
        module = _construct(model, image_size, entry, load)
        if entry is not None:
            _remove_auxiliary_heads(model.name, module)
        head = find_head(module)
        layer = new_head(module.get_submodule(head), num_classes)
        if entry is not None and load:
            start_head(layer)
        module.set_submodule(head, layer)
        if hasattr(module, "num_classes"):
            cast(Any, module).num_classes = num_classes
        return module, head


def _construct(model: Model, image_size: int, entry: Any, load: bool) -> nn.Module:
    arguments: dict[str, Any] = {}
    if entry is not None:
        arguments["num_classes"] = len(entry.meta["categories"])
    if model.name in _WITH_AUXILIARY_HEADS:
        # The network is built without torchvision's affine map of the input, which no file of
        # weights would remember. The normalisation does the same.
        arguments["transform_input"] = False
        arguments["aux_logits"] = entry is not None
        arguments["init_weights"] = entry is None
    arguments |= _size_argument(model, image_size, entry)
    weights = entry if load else None
    try:
        return cast(
            nn.Module, torchvision.models.get_model(model.name, weights=weights, **arguments)
        )
    except (ValueError, RuntimeError, AssertionError) as error:
        raise UserError(
            f"model.name: {model.name} cannot be built for data.image_size {image_size}: "
            f"{first_line(error)}"
        ) from None


def _size_argument(model: Model, image_size: int, entry: Any) -> dict[str, Any]:
    """Return the argument for the image size, or none if the network takes any size."""
    for prefix, parameter in _FIXED_INPUT.items():
        if not model.name.startswith(prefix):
            continue
        if parameter == "input_size":
            return {parameter: (image_size, image_size)}
        trained = image_size
        if entry is not None:
            trained = entry.meta["min_size"][0]
        if image_size != trained:
            raise UserError(
                f"model.name: {model.name} with weights {model.weights} needs data.image_size "
                f"{trained}, got {image_size}"
            )
        return {parameter: image_size}
    return {}


def _remove_auxiliary_heads(name: str, module: nn.Module) -> None:
    """Remove the heads that only serve training from random weights."""
    if name in _WITH_AUXILIARY_HEADS:
        cast(Any, module).aux_logits = False
    for head in _WITH_AUXILIARY_HEADS.get(name, ()):
        setattr(module, head, None)
