"""A name and weights to a network with its normalisation: torchvision's networks, two of ours, timm's, one's own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.metadata import version
from itertools import pairwise
from typing import NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import DenseNet

from pipeline.config import Model
from pipeline.errors import UserError, unknown_name
from pipeline.files import sha256_over
from pipeline.networks import timms
from pipeline.networks.heads import HEADS, START, find_head, start_head
from pipeline.networks.own import build_own, call_once, is_own, own_file, sources, what_fails
from pipeline.networks.torchvisions import build_torchvision
from pipeline.state_dicts import load_state
from pipeline.weights import (
    Normalisation,
    are_from_store,
    are_named,
    content_hash,
    entry_normalisation,
    fetch_weights,
    normalisation_of_file,
    torchvision_entry,
    weights_file,
)


class Network(NamedTuple):
    """A network with what surrounds it.

    Attributes:
        module: Images (batch, 3, size, size), normalised, to logits (batch, classes).
        head: Name of the submodule that was made for the number of classes.
        normalisation: Mean and standard deviation the weights were trained with; None: take the data's.
        notes: What a person should know about the weights: the file's head was left out, how images are normalised, and why.
    """

    module: nn.Module
    head: str
    normalisation: Normalisation | None
    notes: tuple[str, ...] = ()


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
    network: nn.Module = DenseNet(
        growth_rate=32, block_config=(6, 12, 64, 48), num_init_features=64, num_classes=num_classes
    )
    return network


OURS: dict[str, Callable[[int], nn.Module]] = {"densenet264": _densenet264, "small_cnn": SmallCNN}


@lru_cache
def names() -> list[str]:
    """Return every network name but timm's: torchvision's classification networks and ours."""
    return sorted([*torchvision.models.list_models(module=torchvision.models), *OURS])


def origin(model: Model, num_classes: int = 0, image_size: int = 0) -> dict[str, str]:
    """Return what of a model enters a configuration's identity beside its fields.

    Args:
        model: Name and weights; a file, no more a run or a registered model.
        num_classes: It is built for. One's own network is built and run once, to find the files that it imports; 0: its code is not run.
        image_size: It is built for, in pixels.

    Returns:
        ``name`` and ``weights``: ``DEFAULT`` is the weights name it stands for; a file is the hash of its content, and one's own network
        that of all its files. ``head``: how a new one starts, where there are weights. ``normalisation``: where it comes with a file.
        ``file``: one's own network by its own file alone, which is what release 0.1.0 looked at.

    Raises:
        UserError: Unknown network or weights, missing file.
    """
    found = _origin_of_name(model, num_classes, image_size) | {"weights": model.weights}
    if model.weights == "none":
        return found
    if model.weights.startswith("file:"):
        found["weights"] = f"file:{content_hash(weights_file(model))}"
        if (normalisation := _normalisation(model)[0]) is not None:
            found["normalisation"] = json.dumps(normalisation)
    elif are_from_store(model.weights):
        raise UserError(
            f"model.weights: {model.weights!r} is known once it is a file; give file:PATH here"
        )
    else:
        named = (
            timms.settings(model).tag
            if timms.is_timms(model.name)
            else torchvision_entry(model).name
        )
        found["weights"] = named or model.weights
    return found | {"head": START}


def _origin_of_name(model: Model, num_classes: int, image_size: int) -> dict[str, str]:
    if is_own(model.name):
        path, function = own_file(model.name)
        alone, whole = (
            content_hash(path),
            sha256_over(sources(model.name, num_classes, image_size))[: len(content_hash(path))],
        )
        return {"name": f"file:{whole}:{function}"} | (
            {"file": f"file:{alone}:{function}"} if alone != whole else {}
        )
    if timms.is_timms(model.name):
        timms.settings(model)
    elif model.name not in names():
        raise unknown_name("model.name", model.name, names())
    return {"name": model.name}


def source_files(
    model: Model, origin: Mapping[str, str], num_classes: int, image_size: int
) -> Mapping[str, bytes]:
    """Return the files of one's own network, contents by path relative to its folder; none of a named network.

    Args:
        model: With its name.
        origin: Of an earlier check.
        num_classes: It is built for.
        image_size: It is built for, in pixels.

    Raises:
        UserError: They have changed since that check.
    """
    if not is_own(model.name):
        return {}
    if (now := _origin_of_name(model, num_classes, image_size)["name"]) != origin["name"]:
        raise UserError(
            f"model.name: {model.name} was {origin['name']} when it was checked, and is {now} now; start again"
        )
    return sources(model.name, num_classes, image_size)


def code_version(model: Model, num_classes: int, image_size: int) -> list[str]:
    """Return by which code a network computes: versions of the libraries, for one's own the hashes of its files."""
    versions = [f"torch {torch.__version__}", f"torchvision {torchvision.__version__}"]
    if timms.is_timms(model.name):
        versions.append(f"timm {version('timm')}")
    files = sources(model.name, num_classes, image_size) if is_own(model.name) else {}
    return versions + [sha256_over({name: files[name]})[:16] for name in sorted(files)]


def build(
    model: Model, num_classes: int, image_size: int, device: str = "cpu", load: bool = True
) -> Network:
    """Build a network with its head made for the classes, weights loaded and backbone frozen as asked.

    A new head on weights starts as `pipeline.networks.heads.start_head` says. Named weights always get a new one; the head of a file
    is taken where it is for the same number of classes.

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
        module, head = _build_random_or_named(
            model, num_classes, image_size, load and device != "meta"
        )
        if model.dropout or model.freeze == "backbone":
            _need_head(model, head)
        if model.dropout:
            module.set_submodule(
                head, nn.Sequential(nn.Dropout(model.dropout), module.get_submodule(head))
            )
    normalisation, notes = _normalisation(model) if load else (None, [])
    if load and model.weights.startswith("file:"):
        loaded = load_state(module, weights_file(model), model.name, head, only_finite=True)
        notes = [*loaded.notes, *notes]
        if loaded.keeps_head:
            start_head(module.get_submodule(head))
    if not load and is_own(model.name):
        # Its files may be gone when it computes for the first time.
        error = call_once(module.eval(), image_size)
        if isinstance(error, ImportError):
            raise UserError(f"model.name: {model.name!r} fails: {what_fails(module, error)}")
    if model.freeze == "backbone":
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name.startswith(f"{head}."))
    return Network(module.to(device), head, normalisation, tuple(notes))


def _build_random_or_named(
    model: Model, num_classes: int, image_size: int, load: bool
) -> tuple[nn.Module, str]:
    """Build the network of any source, and load weights that have a name; return it with its head's name."""
    if is_own(model.name):
        module = build_own(model.name, num_classes)
        return module, find_head(module)
    if model.name in OURS:
        return OURS[model.name](num_classes), "fc" if model.name == "small_cnn" else "classifier"
    if timms.is_timms(model.name):
        return timms.build_timms(model, num_classes, image_size, load)
    return build_torchvision(model, num_classes, image_size, load)


def _need_head(model: Model, head: str) -> None:
    field = "model.dropout" if model.dropout else "model.freeze: backbone"
    if not head and timms.is_timms(model.name):
        raise UserError(f"{field} needs a network with one head; {model.name} has several")
    if not head:
        raise UserError(
            f"{field} needs a network with a head named one of {', '.join(HEADS)}; {model.name} has none"
        )


def _normalisation(model: Model) -> tuple[Normalisation | None, list[str]]:
    """Return what the weights were trained with, None where nothing tells it, and what is said about it; nothing of random weights."""
    if model.weights == "none":
        return None, []
    found, why = _where_it_is_told(model)
    if found is None:
        return None, [
            f"images are normalised by mean and standard deviation of the training images: {why}"
        ]
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in found)
    return found, [
        f"images are normalised by mean {mean} and standard deviation {std}, those {why}"
    ]


def _where_it_is_told(model: Model) -> tuple[Normalisation | None, str]:
    why = ""
    if model.weights.startswith("file:"):
        found, why = normalisation_of_file(weights_file(model))
        if found is not None:
            return found, why
    if timms.is_timms(model.name):
        weights = f"of timm's weights {timms.settings(model).tag or 'DEFAULT'} of {model.name}"
        return timms.normalisation(model), f"{weights}: {why}" if why else weights
    if are_named(model.weights):
        entry = torchvision_entry(model)
        return entry_normalisation(entry), f"of torchvision's {entry}"
    return None, why


def fetch(model: Model) -> None:
    """Download named weights where they are not there yet."""
    if are_named(model.weights):
        fetch = timms.fetch_timms if timms.is_timms(model.name) else fetch_weights
        fetch(model)


def check(
    model: Model, num_classes: int, image_size: int, trains_on_one: bool = False
) -> tuple[str, ...]:
    """Find out, without training, whether a network can be built, loaded and fed with images of that size.

    Args:
        model: Name, weights, freeze and dropout.
        num_classes: Outputs of the head.
        image_size: Side of the input in pixels.
        trains_on_one: A process may get one image at a time: too few for BatchNorm where images have become single numbers.

    Returns:
        What a person should know about the weights, a line each.

    Raises:
        UserError: As `build`, or the images are too small, or too few at a time, for the network.
    """
    _origin_of_name(model, 0, 0)
    fetch(model)
    # Shapes are enough, but one's own network may compute with numbers, and fail in any way.
    device = "cpu" if is_own(model.name) else "meta"
    failures = (
        (Exception,)
        if is_own(model.name)
        else (RuntimeError, ValueError, AssertionError, TypeError, IndexError)
    )
    network = build(model, num_classes, image_size, device)
    module = network.module.eval()
    try:
        with torch.no_grad():
            output = module(torch.zeros(2, 3, image_size, image_size, device=device))
    except failures as error:
        raise UserError(
            f"model.name: {model.name} cannot take images of data.image_size {image_size}: {what_fails(module, error)}"
        ) from None
    if not isinstance(output, Tensor) or output.shape != (2, num_classes):
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(
            f"model.name: {model.name} gives {shape} for two images; (2, {num_classes}) is needed"
        )
    if trains_on_one and model.freeze == "none":
        try:
            module.train()(torch.zeros(1, 3, image_size, image_size, device=device))
        except failures as error:
            why = (
                "BatchNorm needs two"
                if "more than 1 value per channel" in str(error)
                else what_fails(module, error)
            )
            raise UserError(
                f"data.batch_size: {model.name} cannot train on one image of data.image_size {image_size} at a time: {why}"
            ) from None
    return network.notes


def num_parameters(module: nn.Module) -> int:
    """Return how many numbers the network learns or keeps frozen."""
    return sum(parameter.numel() for parameter in module.parameters())
