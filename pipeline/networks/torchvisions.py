"""torchvision's classification networks, with its weights by name."""

from __future__ import annotations

from typing import Any, cast

import torchvision
from torch import nn

from pipeline.config import Model
from pipeline.errors import UserError, first_line
from pipeline.networks.heads import find_head, new_head, start_head
from pipeline.weights import are_named, fetch_weights, torchvision_entry

_FIXED_INPUT = ("vit_", "maxvit")
_WITH_AUXILIARY_HEADS = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}


def build_torchvision(
    model: Model, num_classes: int, image_size: int, load: bool
) -> tuple[nn.Module, str]:
    """Build a network for the classes, its named weights loaded if asked.

    Returns:
        The network, and the name of its head.

    Raises:
        UserError: It cannot be built for that image size, or its weights cannot be had.
    """
    arguments: dict[str, Any] = {}
    pretrained = are_named(model.weights)
    weights = None
    if pretrained:
        entry = torchvision_entry(model)
        arguments["num_classes"] = len(entry.meta["categories"])
        weights = entry if load else None
        if load:
            fetch_weights(model)
    auxiliary = _WITH_AUXILIARY_HEADS.get(model.name, ())
    if auxiliary:
        # Without torchvision's affine map of the input, which no file of weights would remember: the normalisation does the same.
        arguments |= {
            "aux_logits": pretrained,
            "init_weights": not pretrained,
            "transform_input": False,
        }
    if model.name.startswith(_FIXED_INPUT):
        key = "image_size" if model.name.startswith("vit_") else "input_size"
        arguments[key] = (
            _fixed_size(model, image_size, pretrained)
            if key == "image_size"
            else (image_size, image_size)
        )
    try:
        module = torchvision.models.get_model(model.name, weights=weights, **arguments)
    except (ValueError, RuntimeError, AssertionError) as error:
        raise UserError(
            f"model.name: {model.name} cannot be built for data.image_size {image_size}: {first_line(error)}"
        ) from None
    if pretrained and auxiliary:
        # The auxiliary heads serve training from random weights only.
        cast(Any, module).aux_logits = False
        for name in auxiliary:
            setattr(module, name, None)
    head = find_head(module)
    layer = new_head(module.get_submodule(head), num_classes)
    if weights is not None:
        start_head(layer)
    module.set_submodule(head, layer)
    if hasattr(module, "num_classes"):
        cast(Any, module).num_classes = num_classes
    return module, head


def _fixed_size(model: Model, image_size: int, pretrained: bool) -> int:
    if pretrained:
        trained = torchvision_entry(model).meta["min_size"][0]
        if image_size != trained:
            raise UserError(
                f"model.name: {model.name} with weights {model.weights} needs data.image_size {trained}, got {image_size}"
            )
    return image_size
