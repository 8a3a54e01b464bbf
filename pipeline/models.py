"""A name and weights to a network with its normalisation: torchvision's networks, two of ours, timm's, one's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import DenseNet

from pipeline.config import Model
from pipeline.errors import UserError, first_line, unknown_name
from pipeline.networks import timms
from pipeline.networks.own import build_own, own_file
from pipeline.weights import (
    are_from_store,
    are_named,
    content_hash,
    fetch_weights,
    load_state,
    normalisation_beside,
    torchvision_entry,
    torchvisions_normalisation,
    weights_file,
)

_HEADS = ("fc", "classifier", "head", "heads")
_FIXED_INPUT = ("vit_", "maxvit")


class Network(NamedTuple):
    """A network with what surrounds it.

    Attributes:
        module: Images (batch, 3, size, size), normalised, to logits (batch, classes).
        head: Name of the submodule that was made for the number of classes.
        normalisation: Mean and standard deviation the weights were trained with; None: take the data's.
        note: What a person should know about the weights: the file's head was left out; or "".
    """

    module: nn.Module
    head: str
    normalisation: tuple[list[float], list[float]] | None
    note: str = ""


class SmallCNN(nn.Sequential):
    """Three convolutions and one linear layer, no normalisation: the baseline. Input of any size."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        channels = (3, 16, 32, 64)
        for number, (before, after) in enumerate(pairwise(channels), 1):
            self.add_module(f"conv{number}", nn.Conv2d(before, after, 3, padding=1))
            self.add_module(f"relu{number}", nn.ReLU())
            self.add_module(f"pool{number}", nn.MaxPool2d(2))
        self.add_module("average", nn.AdaptiveAvgPool2d(2))
        self.add_module("flatten", nn.Flatten())
        self.add_module("fc", nn.Linear(64 * 2 * 2, num_classes))


def _densenet264(num_classes: int) -> nn.Module:
    network: nn.Module = DenseNet(growth_rate=32, block_config=(6, 12, 64, 48), num_init_features=64, num_classes=num_classes)
    return network


OURS: dict[str, Callable[[int], nn.Module]] = {"densenet264": _densenet264, "small_cnn": SmallCNN}


@lru_cache
def names() -> list[str]:
    """Return every network name but timm's: torchvision's classification networks and ours."""
    return sorted([*torchvision.models.list_models(module=torchvision.models), *OURS])


def origin(model: Model) -> dict[str, str]:
    """Return ``name`` and ``weights`` as they enter a configuration's identity.

    ``DEFAULT`` is the weights name it stands for; a file is the hash of its content.

    Raises:
        UserError: Unknown network or weights, missing file.
    """
    name, weights = model.name, model.weights
    if name.startswith("file:"):
        path, function = own_file(name)
        name = f"file:{content_hash(path)}:{function}"
    elif timms.is_timms(name):
        timms.settings(model)
    elif name not in names():
        raise unknown_name("model.name", name, names())
    if weights.startswith("file:"):
        weights = f"file:{content_hash(weights_file(model))}"
    elif are_from_store(weights):
        raise UserError(f"model.weights: {weights!r} is known once it is a file; give file:PATH here")
    elif are_named(weights):
        weights = (timms.settings(model).tag or weights) if timms.is_timms(name) else torchvision_entry(model).name
    return {"name": name, "weights": weights}


def source_file(model: Model) -> Path | None:
    """Return the Python file of one's own network, None for a named one."""
    return own_file(model.name)[0] if model.name.startswith("file:") else None


def code_version(name: str) -> list[str]:
    """Return by which code a network computes: versions of the libraries, for one's own the hashes of its file and those beside it."""
    versions = [f"torch {torch.__version__}", f"torchvision {torchvision.__version__}"]
    if timms.is_timms(name):
        versions.append(f"timm {version('timm')}")
    if name.startswith("file:"):
        versions += [content_hash(file) for file in sorted(own_file(name)[0].parent.glob("*.py"))]
    return versions


def build(model: Model, num_classes: int, image_size: int, device: str = "cpu", load: bool = True) -> Network:
    """Build a network with its head made for the classes, weights loaded and backbone frozen as asked.

    Args:
        model: Name, weights, freeze and dropout.
        num_classes: Outputs of the head.
        image_size: Side of the input in pixels; some transformers are built for one size only.
        device: "meta" builds the shapes without memory; a weights file is compared, not loaded.
        load: False leaves random weights, for a network whose trained ones are put in afterwards.

    Raises:
        UserError: Unknown name, weights that cannot be had, or that belong to another network.
    """
    if load:
        origin(model)
    # RegNet's constructor computes with tensors, which the meta device has not.
    with torch.device("cpu" if model.name.startswith("regnet") else device):
        module, head = _build_random_or_named(model, num_classes, image_size, load and device != "meta")
        if model.dropout or model.freeze == "backbone":
            _need_head(model, head)
        if model.dropout:
            module.set_submodule(head, nn.Sequential(nn.Dropout(model.dropout), module.get_submodule(head)))
    note = load_state(module, weights_file(model), model.name, head) if load and model.weights.startswith("file:") else ""
    if model.freeze == "backbone":
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name.startswith(f"{head}."))
    return Network(module.to(device), head, _normalisation(model), note)


def _build_random_or_named(model: Model, num_classes: int, image_size: int, load: bool) -> tuple[nn.Module, str]:
    """Build the network of any source, and load weights that have a name; return it with its head's name."""
    if model.name.startswith("file:"):
        module = build_own(model.name, num_classes)
        return module, _find_head(module)
    if model.name in OURS:
        return OURS[model.name](num_classes), "fc" if model.name == "small_cnn" else "classifier"
    if timms.is_timms(model.name):
        return timms.build_timms(model, num_classes, image_size, load)
    return _build_torchvision(model, num_classes, image_size, load)


def _need_head(model: Model, head: str) -> None:
    field = "model.dropout" if model.dropout else "model.freeze: backbone"
    if not head and timms.is_timms(model.name):
        raise UserError(f"{field} needs a network with one head; {model.name} has several")
    if not head:
        raise UserError(f"{field} needs a network with a head named one of {', '.join(_HEADS)}; {model.name} has none")


def _normalisation(model: Model) -> tuple[list[float], list[float]] | None:
    """Return what the weights were trained with; None for random ones and a file that does not say."""
    if model.weights == "none":
        return None
    if model.weights.startswith("file:") and (beside := normalisation_beside(Path(model.weights.removeprefix("file:")).expanduser())):
        return beside
    if timms.is_timms(model.name):
        return timms.normalisation(model)
    return torchvisions_normalisation(model) if are_named(model.weights) else None


def fetch(model: Model) -> None:
    """Download named weights where they are not there yet."""
    if are_named(model.weights):
        fetch = timms.fetch_timms if timms.is_timms(model.name) else fetch_weights
        fetch(model)


def _build_torchvision(model: Model, num_classes: int, image_size: int, load: bool) -> tuple[nn.Module, str]:
    arguments: dict[str, Any] = {}
    pretrained = are_named(model.weights)
    weights = None
    if pretrained:
        entry = torchvision_entry(model)
        arguments["num_classes"] = len(entry.meta["categories"])
        weights = entry if load else None
        if load:
            fetch_weights(model)
    if model.name in ("googlenet", "inception_v3"):
        arguments |= {"aux_logits": pretrained, "init_weights": not pretrained, "transform_input": pretrained}
    if model.name.startswith(_FIXED_INPUT):
        key = "image_size" if model.name.startswith("vit_") else "input_size"
        arguments[key] = _fixed_size(model, image_size, pretrained) if key == "image_size" else (image_size, image_size)
    try:
        module = torchvision.models.get_model(model.name, weights=weights, **arguments)
    except (ValueError, RuntimeError, AssertionError) as error:
        raise UserError(f"model.name: {model.name} cannot be built for data.image_size {image_size}: {first_line(error)}") from None
    if pretrained and model.name in ("googlenet", "inception_v3"):
        # The auxiliary heads serve training from random weights only.
        cast(Any, module).aux_logits = False
        for name in ("aux1", "aux2", "AuxLogits"):
            if hasattr(module, name):
                setattr(module, name, None)
    head = _find_head(module)
    module.set_submodule(head, _new_head(module.get_submodule(head), num_classes))
    if hasattr(module, "num_classes"):
        cast(Any, module).num_classes = num_classes
    return module, head


def _fixed_size(model: Model, image_size: int, pretrained: bool) -> int:
    if pretrained:
        trained = torchvision_entry(model).meta["min_size"][0]
        if image_size != trained:
            raise UserError(f"model.name: {model.name} with weights {model.weights} needs data.image_size {trained}, got {image_size}")
    return image_size


def _find_head(module: nn.Module) -> str:
    """Return the name of the last linear or convolutional layer under a head's usual name, or ""."""
    layers = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    heads = [name for name in layers if name.partition(".")[0] in _HEADS]
    return heads[-1] if heads else ""


def _new_head(old: nn.Module, num_classes: int) -> nn.Module:
    if isinstance(old, nn.Conv2d):
        return nn.Conv2d(old.in_channels, num_classes, old.kernel_size, old.stride, old.padding)  # type: ignore[arg-type]
    assert isinstance(old, nn.Linear)
    return nn.Linear(old.in_features, num_classes, bias=old.bias is not None)


def check(model: Model, num_classes: int, image_size: int, trains_on_one: bool = False) -> str:
    """Find out, without training, whether a network can be built, loaded and fed with images of that size.

    Args:
        model: Name, weights, freeze and dropout.
        num_classes: Outputs of the head.
        image_size: Side of the input in pixels.
        trains_on_one: A process may get one image at a time: too few for BatchNorm where images have become single numbers.

    Returns:
        What a person should know about the weights, or "".

    Raises:
        UserError: As `build`, or the images are too small, or too few at a time, for the network.
    """
    origin(model)
    fetch(model)
    # Shapes are enough, but one's own network may compute with numbers.
    device = "cpu" if model.name.startswith("file:") else "meta"
    network = build(model, num_classes, image_size, device)
    module = network.module.eval()
    try:
        with torch.no_grad():
            output = module(torch.zeros(2, 3, image_size, image_size, device=device))
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise UserError(f"model.name: {model.name} cannot take images of data.image_size {image_size}: {first_line(error)}") from None
    if not isinstance(output, Tensor) or output.shape != (2, num_classes):
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(f"model.name: {model.name} gives {shape} for two images; (2, {num_classes}) is needed")
    if trains_on_one and model.freeze == "none":
        try:
            module.train()(torch.zeros(1, 3, image_size, image_size, device=device))
        except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
            why = "BatchNorm needs two" if "more than 1 value per channel" in str(error) else first_line(error)
            raise UserError(
                f"data.batch_size: {model.name} cannot train on one image of data.image_size {image_size} at a time: {why}"
            ) from None
    return network.note


def num_parameters(module: nn.Module) -> int:
    """Return how many numbers the network learns or keeps frozen."""
    return sum(parameter.numel() for parameter in module.parameters())
