"""Weights: torchvision's by name, a state dict from a file; what they are, and into which network they fit."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from pipeline.config import Model
from pipeline.errors import Unreachable, UserError, first_line, nearest

BY_PLACE = "file:PATH, models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID/model"
"""How weights are given that have no name."""


def are_from_store(weights: str) -> bool:
    """Whether `model.weights` is of one's own registry or runs; `pipeline.tracking.transfer` makes a file of it."""
    return weights.startswith(("models:/", "runs:/"))


def are_named(weights: str) -> bool:
    """Whether `model.weights` is the name of published weights."""
    return weights != "none" and not weights.startswith("file:") and not are_from_store(weights)


def weights_file(model: Model) -> Path:
    """Return the file of ``file:PATH``.

    Raises:
        UserError: There is none.
    """
    return existing_file(model.weights.removeprefix("file:"), "model.weights")


def existing_file(path: str, field: str) -> Path:
    """Return the file of `path`; a UserError names `field` and the nearest file where there is none."""
    file = Path(path).expanduser()
    if not file.is_file():
        siblings = [str(other) for other in file.parent.glob("*") if other.is_file()] if file.parent.is_dir() else []
        raise UserError(f"{field}: file {path!r} does not exist{nearest(path, siblings)}")
    return file


def content_hash(path: Path) -> str:
    """Return 16 hex digits over a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def torchvision_entry(model: Model) -> Any:
    """Return torchvision's entry (name, url, meta, transforms) of a network's weights name.

    Raises:
        UserError: The network has no weights of that name.
    """
    if model.name not in torchvision.models.list_models(module=torchvision.models):
        raise UserError(f"model.weights: {model.name} has no pretrained weights; allowed: none, {BY_PLACE}; got {model.weights!r}")
    available = torchvision.models.get_model_weights(model.name)
    entries = {entry.name: entry for entry in available} | {"DEFAULT": getattr(available, "DEFAULT", None)}
    if entries.get(model.weights) is None:
        raise UserError(
            f"unknown model.weights {model.weights!r} of {model.name}{nearest(model.weights, entries)}; "
            f"allowed: none, {', '.join(entries)}, {BY_PLACE}"
        )
    return entries[model.weights]


def fetch_weights(model: Model) -> Path:
    """Return the file of torchvision weights, downloaded where it is not there yet.

    Raises:
        UserError: It cannot be downloaded; the message says where to put the file.
    """
    url = torchvision_entry(model).url
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name
    if not file.is_file():
        download(model, url, file, file.stem.rpartition("-")[2])
    return file


def download(model: Model, url: str, file: Path, hash_prefix: str | None = None) -> None:
    """Download published weights.

    Args:
        model: Whose weights they are.
        url: Where they are published.
        file: Where to put them.
        hash_prefix: The first digits of the file's SHA-256, where they are known.

    Raises:
        Unreachable: They cannot be downloaded; the message says where to put the file.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(file), hash_prefix=hash_prefix, progress=False)
    except (OSError, RuntimeError) as error:
        raise Unreachable(
            f"model.weights: {model.weights} of {model.name} cannot be downloaded from {url} ({first_line(error)}); put that file at {file}"
        ) from None


def torchvisions_normalisation(model: Model) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per channel that torchvision's weights were trained with."""
    preset = torchvision_entry(model).transforms()
    return [float(value) for value in preset.mean], [float(value) for value in preset.std]


def normalisation_beside(file: Path) -> tuple[list[float], list[float]] | None:
    """Return mean and standard deviation from the ``preprocessing.json`` of a weights file; None where there is none.

    It stands beside the file or, as among a run's artifacts, beside the folder ``checkpoint``.

    Raises:
        UserError: It holds no mean and standard deviation of three channels.
    """
    folders = [file.parent, file.parent.parent] if file.resolve().parent.name == "checkpoint" else [file.parent]
    beside = next((folder / "preprocessing.json" for folder in folders if (folder / "preprocessing.json").is_file()), None)
    if beside is None:
        return None
    try:
        raw = json.loads(beside.read_text(encoding="utf-8"))
        mean, std = ([float(value) for value in raw[name]] for name in ("mean", "std"))
    except (OSError, ValueError, KeyError, TypeError):
        mean = std = []
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise UserError(f"model.weights: {str(beside)!r} must hold mean and std, three numbers each, for {file.name}")
    return mean, std


def read_state(file: Path) -> dict[str, Tensor]:
    """Read a state dict from safetensors, or from a torch file without unpickling anything else.

    Raises:
        UserError: The file is neither.
    """
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        raise UserError(f"model.weights: {str(file)!r} is no state dict or safetensors file: {first_line(error)}") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"model.weights: {str(file)!r} holds no state dict")
    return state


def load_state(module: nn.Module, file: Path, name: str, head: str = "") -> str:
    """Load a state dict into a network of its names and shapes.

    Args:
        module: The network; on the meta device names and shapes are compared only.
        file: State dict or safetensors.
        name: Of the network, for messages.
        head: Submodule that keeps its own weights where the file's are for another number of classes, or missing; "": none does.

    Returns:
        What is said about a head that was kept, or "".

    Raises:
        UserError: Other names or shapes differ; the differences are listed.
    """
    own = module.state_dict()
    state = _under_names_of(own, read_state(file))
    note = _differing_head(own, state, head)
    if note:
        state = {key: value for key, value in state.items() if not key.startswith(f"{head}.")}
    # Older files have no count of BatchNorm's batches, which only averages without momentum need.
    expected = [key for key in own if not (note and key.startswith(f"{head}.")) and not key.endswith("num_batches_tracked")]
    differences = [f"missing: {key}" for key in expected if key not in state] + [f"not in {name}: {key}" for key in state if key not in own]
    differences += [
        f"{key}: {tuple(state[key].shape)} in the file, {tuple(own[key].shape)} in {name}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if differences:
        shown = differences[:10] + ([f"and {len(differences) - 10} more"] if len(differences) > 10 else [])
        differ = "1 tensor differs" if len(differences) == 1 else f"{len(differences)} tensors differ"
        raise UserError(f"model.weights: {str(file)!r} is of another architecture than {name}: {differ}", shown)
    if not next(module.parameters()).is_meta:
        # The network's own dict carries the versions of its layers, which a file of tensors does not.
        own.update(state)
        module.load_state_dict(own)
    return note


def _differing_head(own: Mapping[str, Tensor], state: Mapping[str, Tensor], head: str) -> str:
    """Return what is to be said where the file's head is missing or for another number of classes, else ""."""
    keys = [key for key in own if key.startswith(f"{head}.")] if head else []
    present = [key for key in keys if key in state]
    if keys and not present:
        return f"it has no head ({head}); a new random one is trained"
    differing = [key for key in present if state[key].shape != own[key].shape]
    # The number of classes is the first dimension of weight and bias; all others are the architecture's.
    if not differing or len(present) < len(keys) or any(state[key].shape[1:] != own[key].shape[1:] for key in differing):
        return ""
    classes, wanted = state[differing[-1]].shape[0], own[differing[-1]].shape[0]
    return f"its head ({head}) is for {classes} classes; a new random one for {wanted} is trained"


def _under_names_of(own: Mapping[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename what has other names in the file for reasons that are no difference.

    The head, where only one of network and file has dropout before it (``fc.1.weight``, ``fc.weight``); DenseNet's layers,
    which are ``norm.1`` in torchvision's files and ``norm1`` in its network.
    """
    renamed = {}
    for key, value in state.items():
        stem, _, last = key.rpartition(".")
        others = [key, f"{stem}.1.{last}", f"{stem.removesuffix('.1')}.{last}", re.sub(r"(denselayer\d+\.(?:norm|conv))\.", r"\1", key)]
        renamed[next((other for other in others if other in own), key)] = value
    return renamed
