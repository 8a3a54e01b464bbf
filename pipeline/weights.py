"""Weights: torchvision's by name, a state dict from a file; what they are, and into which network they fit."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from pipeline.config import Model
from pipeline.errors import UserError, first_line, nearest


def are_torchvisions(weights: str) -> bool:
    """Whether `model.weights` is a torchvision weights name."""
    return weights != "none" and not weights.startswith("file:")


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
        raise UserError(f"model.weights: {model.name} has no pretrained weights; allowed: none, file:PATH; got {model.weights!r}")
    available = torchvision.models.get_model_weights(model.name)
    entries = {entry.name: entry for entry in available} | {"DEFAULT": getattr(available, "DEFAULT", None)}
    if entries.get(model.weights) is None:
        raise UserError(
            f"unknown model.weights {model.weights!r} of {model.name}{nearest(model.weights, entries)}; "
            f"allowed: none, {', '.join(entries)}, file:PATH"
        )
    return entries[model.weights]


def fetch_weights(model: Model) -> Path | None:
    """Return the file of torchvision weights, downloaded where it is not there yet; None for others.

    Raises:
        UserError: It cannot be downloaded; the message says where to put the file.
    """
    if not are_torchvisions(model.weights):
        return None
    url = torchvision_entry(model).url
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        expected = file.stem.rpartition("-")[2]
        try:
            torch.hub.download_url_to_file(url, str(file), hash_prefix=expected, progress=False)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"model.weights: {model.weights} of {model.name} cannot be downloaded from {url} ({error}); put that file at {file}"
            ) from None
    return file


def normalisation(model: Model) -> tuple[list[float], list[float]] | None:
    """Return mean and standard deviation per channel that the weights were trained with; None for random ones and files."""
    if not are_torchvisions(model.weights):
        return None
    preset = torchvision_entry(model).transforms()
    return [float(value) for value in preset.mean], [float(value) for value in preset.std]


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


def load_state(module: nn.Module, file: Path, name: str) -> None:
    """Load a state dict into a network of exactly its names and shapes.

    Raises:
        UserError: Names or shapes differ; the differences are listed.
    """
    state, own = read_state(file), module.state_dict()
    state = _under_names_of(own, state)
    differences = [f"missing: {key}" for key in own if key not in state] + [f"not in {name}: {key}" for key in state if key not in own]
    differences += [
        f"{key}: {tuple(state[key].shape)} in the file, {tuple(own[key].shape)} in {name}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if differences:
        shown = differences[:10] + ([f"and {len(differences) - 10} more"] if len(differences) > 10 else [])
        raise UserError(
            f"model.weights: {str(file)!r} is of another architecture or number of classes than {name}: {len(differences)} tensors differ",
            shown,
        )
    if not next(module.parameters()).is_meta:
        # The network's own dict carries the versions of its layers, which a file of tensors does not.
        own.update((key, state[key]) for key in own)
        module.load_state_dict(own)


def _under_names_of(own: Mapping[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the head's tensors where only one of network and file has dropout before it (``fc.1.weight``, ``fc.weight``)."""
    renamed = {}
    for key, value in state.items():
        stem, _, last = key.rpartition(".")
        with_dropout, without = f"{stem}.1.{last}", f"{stem.removesuffix('.1')}.{last}"
        renamed[key if key in own else with_dropout if with_dropout in own else without if without in own else key] = value
    return renamed
