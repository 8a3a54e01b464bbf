"""From a name and weights to a network with its normalisation, whichever family it belongs to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import torch
import torchvision
from torch import Tensor, nn

from pipeline.config import FILE, Model
from pipeline.errors import UserError, unknown_name
from pipeline.files import sha256_over
from pipeline.models.builtin_models import BUILDERS, BuiltinModels
from pipeline.models.family import Family
from pipeline.models.heads import START, start_head
from pipeline.models.network_size import NetworkSize, measure_size
from pipeline.models.normalisation import find_normalisation
from pipeline.models.own_models import OwnModels, describe_failure, run_once
from pipeline.models.state_dicts import load_state
from pipeline.models.timm_models import TimmModels
from pipeline.models.torchvision_models import TorchvisionModels
from pipeline.models.torchvision_weights import torchvision_names
from pipeline.models.weights import Normalisation, content_hash, find_weights_file

_sizes: dict[tuple[str, str, int, int], NetworkSize] = {}
"""Sizes of the networks that `check` has built."""
_FAMILIES: tuple[Family, ...] = (OwnModels(), BuiltinModels(), TimmModels(), TorchvisionModels())


class Network(NamedTuple):
    """A network with what surrounds it.

    Attributes:
        module: The network, from normalised images (batch, 3, size, size) to logits (batch,
            classes).
        head: Name of the submodule that was made for the number of classes.
        normalisation: Mean and standard deviation that the weights were trained with. None means
            that those of the training images are taken.
        notes: What a person should know about the weights: whether the file's head was left out,
            how images are normalised, and why.
    """

    module: nn.Module
    head: str
    normalisation: Normalisation | None
    notes: tuple[str, ...] = ()


@lru_cache
def names() -> list[str]:
    """Return the names of all networks except timm's and the user's own."""
    return sorted([*torchvision_names(), *BUILDERS])


def _family_of(name: str) -> Family:
    for family in _FAMILIES:
        if family.has(name):
            return family
    raise unknown_name("model.name", name, names())


def origin(model: Model, num_classes: int = 0, image_size: int = 0) -> dict[str, str]:
    """Return the part of a configuration's identity that a model adds beside its fields.

    Args:
        model: Name and weights. Weights of a run or a registered model must be a file by now.
        num_classes: Outputs of the network. The user's own network is built and run once, to find
            the files that it imports. With 0 its code is not run.
        image_size: Side, in pixels, of the images that it is run with.

    Returns:
        Texts by these keys. ``name``: the network; the user's own network is named by the hash of
        all its files. ``weights``: the weights; ``DEFAULT`` is replaced by the name that it stands
        for, and a file by the hash of its content. ``head``, if there are weights: how a new head
        starts. ``normalisation``, if a file of weights comes with one. ``file``, if it differs from
        ``name``: the user's own network by the hash of its own file alone, which is what release
        0.1.0 looked at.

    Raises:
        UserError: The network or the weights are unknown, or a file is missing.
    """
    family = _family_of(model.name)
    found = family.identity(model, num_classes, image_size)
    found["weights"] = model.weights
    match model.weights_kind:
        case "none":
            return found
        case "file":
            found["weights"] = f"{FILE}{content_hash(find_weights_file(model))}"
            normalisation, _ = _find_normalisation(model)
            if normalisation is not None:
                found["normalisation"] = json.dumps(normalisation)
        case "store":
            raise UserError(
                f"model.weights: {model.weights!r} is known once it is a file; give file:PATH here"
            )
        case "published":
            found["weights"] = family.weights_name(model)
    found["head"] = START
    return found


def source_files(
    model: Model, origin: Mapping[str, str], num_classes: int, image_size: int
) -> Mapping[str, bytes]:
    """Return the files of the user's own network: contents by path relative to its folder.

    Any other network has none.

    Args:
        model: The network.
        origin: The result of `origin` at an earlier check.
        num_classes: Outputs of the network.
        image_size: Side of the images in pixels.

    Raises:
        UserError: The files have changed since that check.
    """
    if not model.is_own:
        return {}
    family = _family_of(model.name)
    now = family.identity(model, num_classes, image_size)["name"]
    if now != origin["name"]:
        raise UserError(
            f"model.name: {model.name} was {origin['name']} when it was checked, and is {now} now; "
            "start again"
        )
    return family.source_files(model.name, num_classes, image_size)


def code_version(model: Model, num_classes: int, image_size: int) -> list[str]:
    """Return which code computes a network: versions of libraries, hashes of the user's files."""
    family = _family_of(model.name)
    versions = [f"torch {torch.__version__}", f"torchvision {torchvision.__version__}"]
    versions += family.libraries()
    files = family.source_files(model.name, num_classes, image_size)
    for name in sorted(files):
        versions.append(sha256_over({name: files[name]})[:16])
    return versions


def build(
    model: Model, num_classes: int, image_size: int, device: str = "cpu", load: bool = True
) -> Network:
    """Build a network with its head made for the classes, weights loaded and backbone frozen.

    A new head on weights starts as `pipeline.models.heads.start_head` says. Published weights
    always get a new head. The head of a file is taken if it is for the same number of classes.

    Args:
        model: Name, weights, freeze and dropout.
        num_classes: Outputs of the head.
        image_size: Side of the input in pixels. Some transformers are built for one size only.
        device: Device of the network. On "meta" the shapes are built without memory, and a weights
            file is compared, not loaded.
        load: Load the weights. False leaves random ones, for a network whose trained weights are
            put in afterwards.

    Raises:
        UserError: The name is unknown, or the weights cannot be had or belong to another network.
    """
    family = _family_of(model.name)
    if load:
        origin(model)
    with torch.device(device if family.builds_on_meta(model.name) else "cpu"):
        module, head = family.build(model, num_classes, image_size, load and device != "meta")
        _add_dropout(family, model, module, head)
    notes: list[str] = []
    normalisation = None
    if load:
        normalisation, notes = _find_normalisation(model)
        if model.weights_kind == "file":
            notes = [*_load_file(model, module, head), *notes]
    elif model.is_own:
        # Its files may be gone when it computes for the first time.
        error = run_once(module.eval(), image_size)
        if isinstance(error, ImportError):
            raise UserError(f"model.name: {model.name!r} fails: {describe_failure(module, error)}")
    if model.freeze == "backbone":
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name.startswith(f"{head}."))
    return Network(module.to(device), head, normalisation, tuple(notes))


def _load_file(model: Model, module: nn.Module, head: str) -> list[str]:
    """Load a file of weights into a network; return what a person should know about it."""
    weights = find_weights_file(model)
    loaded = load_state(module, weights, model.name, head, only_finite=True)
    if loaded.keeps_head:
        start_head(module.get_submodule(head))
    return loaded.notes


def _add_dropout(family: Family, model: Model, module: nn.Module, head: str) -> None:
    """Put dropout before the head, if the configuration asks for it.

    Raises:
        UserError: The network has no head, and dropout or freezing needs one.
    """
    if not model.dropout and model.freeze != "backbone":
        return
    if not head:
        field = "model.dropout" if model.dropout else "model.freeze: backbone"
        raise UserError(f"{field} needs a network with {family.why_no_head(model)}")
    if model.dropout:
        dropout = nn.Dropout(model.dropout)
        module.set_submodule(head, nn.Sequential(dropout, module.get_submodule(head)))


def _find_normalisation(model: Model) -> tuple[Normalisation | None, list[str]]:
    """Return the normalisation that the weights were trained with, and what a person is told.

    The normalisation is None if nothing tells it. Random weights have none, and nothing is told.
    """
    if model.weights_kind == "none":
        return None, []
    found, why = _look_for_normalisation(model)
    if found is None:
        return None, [
            f"images are normalised by mean and standard deviation of the training images: {why}"
        ]
    mean, std = map(_format_numbers, found)
    return found, [
        f"images are normalised by mean {mean} and standard deviation {std}, those {why}"
    ]


def _format_numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _look_for_normalisation(model: Model) -> tuple[Normalisation | None, str]:
    """Return a normalisation and whose it is, or None and what was looked for."""
    why = ""
    if model.weights_kind == "file":
        found, why = find_normalisation(find_weights_file(model))
        if found is not None:
            return found, why
    of_family = _family_of(model.name).normalisation(model)
    if of_family is None:
        return None, why
    found, whose = of_family
    if why:
        return found, f"{whose}: {why}"
    return found, whose


def fetch(model: Model) -> None:
    """Download published weights, unless they are here already.

    Raises:
        UserError: There is no such network, or no such weights.
        Unreachable: The weights cannot be downloaded. The message says where to put the file.
    """
    if model.weights_kind == "published":
        _family_of(model.name).fetch_weights(model)


def check(
    model: Model, num_classes: int, image_size: int, trains_on_one: bool = False
) -> tuple[str, ...]:
    """Check, without training, that a network can be built, loaded and fed with images.

    Args:
        model: Name, weights, freeze and dropout.
        num_classes: Outputs of the head.
        image_size: Side of the input in pixels.
        trains_on_one: A process may get one image at a time. That is too few for a BatchNorm at
            which images have become single numbers.

    Returns:
        Lines that say what a person should know about the weights.

    Raises:
        UserError: `build` refuses the network, or the images are too small, or too few at a time.
    """
    family = _family_of(model.name)
    family.identity(model, 0, 0)
    fetch(model)
    device = family.check_device
    network = build(model, num_classes, image_size, device)
    _sizes[_size_key(model, num_classes, image_size)] = measure_size(network.module)
    module = network.module.eval()
    try:
        with torch.no_grad():
            output = module(torch.zeros(2, 3, image_size, image_size, device=device))
    except family.failures as error:
        raise UserError(
            f"model.name: {model.name} cannot take images of data.image_size {image_size}: "
            f"{describe_failure(module, error)}"
        ) from None
    _need_logits(model, num_classes, output)
    if trains_on_one and model.freeze == "none":
        _need_one_image(family, model, image_size, module)
    return network.notes


def _need_logits(model: Model, num_classes: int, output: object) -> None:
    shape: object = type(output).__name__
    if isinstance(output, Tensor):
        shape = tuple(output.shape)
    if shape != (2, num_classes):
        raise UserError(
            f"model.name: {model.name} gives {shape} for two images; (2, {num_classes}) is needed"
        )


def _need_one_image(family: Family, model: Model, image_size: int, module: nn.Module) -> None:
    """Check that a network trains on one image at a time."""
    try:
        module.train()(torch.zeros(1, 3, image_size, image_size, device=family.check_device))
    except family.failures as error:
        why = describe_failure(module, error)
        if "more than 1 value per channel" in str(error):
            why = "BatchNorm needs two"
        raise UserError(
            f"data.batch_size: {model.name} cannot train on one image of data.image_size "
            f"{image_size} at a time: {why}"
        ) from None


def find_size(model: Model, num_classes: int, image_size: int) -> NetworkSize:
    """Return how many bytes a network has.

    One that `check` has built is not built again.

    Args:
        model: The network. Its weights do not matter.
        num_classes: Outputs of the head.
        image_size: Side of the input in pixels.
    """
    key = _size_key(model, num_classes, image_size)
    if key not in _sizes:
        device = _family_of(model.name).check_device
        built = build(model, num_classes, image_size, device, load=False)
        _sizes[key] = measure_size(built.module)
    return _sizes[key]


def _size_key(model: Model, num_classes: int, image_size: int) -> tuple[str, str, int, int]:
    return model.name, model.freeze, num_classes, image_size


def num_parameters(module: nn.Module) -> int:
    """Return the number of parameters of a network, frozen ones included."""
    return sum(parameter.numel() for parameter in module.parameters())
