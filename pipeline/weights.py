"""Weights by name and by place, and the normalisation they were trained with."""

from __future__ import annotations

import hashlib
import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
import torchvision

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
        siblings = (
            [str(other) for other in file.parent.glob("*") if other.is_file()]
            if file.parent.is_dir()
            else []
        )
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
        raise UserError(
            f"model.weights: {model.name} has no pretrained weights; allowed: none, {BY_PLACE}; got {model.weights!r}"
        )
    available = torchvision.models.get_model_weights(model.name)
    # VGG16's IMAGENET1K_FEATURES has no classes: its classifier is NaN.
    entries = {entry.name: entry for entry in available if entry.meta["categories"]} | {
        "DEFAULT": getattr(available, "DEFAULT", None)
    }
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
    file = Path(torch.hub.get_dir()) / "checkpoints" / _file_name(url)
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


Normalisation = tuple[list[float], list[float]]
"""Mean and standard deviation per channel, of pixels from 0 to 1."""

_HALVES: Normalisation = ([0.5] * 3, [0.5] * 3)
_TRANSFORMED = ("GoogLeNet_Weights", "Inception_V3_Weights")
"""Weights that expect pixels from -1 to 1: torchvision normalises the images as for its other networks, and has these two map them."""


def entry_normalisation(entry: Any) -> Normalisation:
    """Return the normalisation that one of torchvision's entries was trained with, as an input without any map inside the network."""
    return _HALVES if type(entry).__name__ in _TRANSFORMED else _as_published(entry)


def _as_published(entry: Any) -> Normalisation:
    preset = entry.transforms()
    return [float(value) for value in preset.mean], [float(value) for value in preset.std]


def recorded_normalisation(model: Model, normalisation: Normalisation) -> Normalisation:
    """Return the normalisation under which a run's network, built as now, computes what it did.

    Release 0.1.0 gave named weights of GoogLeNet and Inception torchvision's normalisation, and had the network map its input to the one
    they need. Now there is no such map, and later runs have recorded what they need.

    Args:
        model: As the run has recorded it.
        normalisation: As the run has recorded it.
    """
    if model.name in torchvision.models.list_models(module=torchvision.models) and are_named(
        model.weights
    ):
        entry = torchvision_entry(model)
        if type(entry).__name__ in _TRANSFORMED and normalisation == _as_published(entry):
            return _HALVES
    return normalisation


@lru_cache
def _published_files() -> dict[str, Any]:
    """Return torchvision's entries by the names of their files; those of one file are of one normalisation."""
    names = torchvision.models.list_models(module=torchvision.models)
    entries = [entry for name in names for entry in torchvision.models.get_model_weights(name)]
    return {_file_name(entry.url): entry for entry in entries}


def _file_name(url: str) -> str:
    return Path(urlsplit(url).path).name


def published_entry(file: Path) -> tuple[Any, bool]:
    """Return torchvision's entry of which a file has the name, None for other files, and whether it has the content too.

    The first digits of the content's SHA-256 stand in the name: ``resnet18-f37072fd.pth``.
    """
    entry = _published_files().get(file.name)
    if entry is None:
        return None, False
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return entry, digest.startswith(file.stem.rpartition("-")[2])


def normalisation_of_file(file: Path) -> tuple[Normalisation | None, str]:
    """Return the normalisation that comes with a file of weights, None where nothing tells it, and why it is taken.

    Raises:
        UserError: There is a ``preprocessing.json``, and it is wrong.
    """
    beside = _preprocessing_beside(file)
    if beside is not None:
        return read_normalisation(
            beside, file
        ), "of the preprocessing.json that stands with the weights"
    entry, is_same = published_entry(file)
    if is_same:
        return entry_normalisation(entry), f"of torchvision's {entry}, which the file is"
    changed = (
        f"the content is not that of torchvision's {entry}, whose name the file has, and "
        if entry is not None
        else ""
    )
    return None, f"{changed}no preprocessing.json stands with the weights"


def _preprocessing_beside(file: Path) -> Path | None:
    """Return the ``preprocessing.json`` beside a file or, as among a run's artifacts, beside the folder ``checkpoint``."""
    folders = (
        [file.parent, file.parent.parent]
        if file.resolve().parent.name == "checkpoint"
        else [file.parent]
    )
    return next(
        (
            folder / "preprocessing.json"
            for folder in folders
            if (folder / "preprocessing.json").is_file()
        ),
        None,
    )


def read_normalisation(beside: Path, file: Path) -> Normalisation:
    """Return mean and standard deviation of a ``preprocessing.json``.

    Raises:
        UserError: It holds no mean and standard deviation of three channels.
    """
    try:
        raw = json.loads(beside.read_text(encoding="utf-8"))
        mean, std = (_three_numbers(raw[name]) for name in ("mean", "std"))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        mean = std = []
    if not mean or not std or min(std) <= 0:
        raise UserError(
            f"model.weights: {str(beside)!r} must hold mean and std, three numbers each, for {file.name}"
        )
    return mean, std


def _three_numbers(values: Any) -> list[float]:
    """Return three finite numbers as floats, an empty list where it is something else."""
    is_right = (
        isinstance(values, list)
        and len(values) == 3
        and all(type(value) in (int, float) for value in values)
    )
    numbers = [float(value) for value in values] if is_right else []
    return numbers if all(map(math.isfinite, numbers)) else []
