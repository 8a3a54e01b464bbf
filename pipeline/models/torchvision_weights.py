"""Weights that torchvision publishes: names, files, and the normalisation of their training."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torchvision

from pipeline.config import Model
from pipeline.errors import UserError, nearest
from pipeline.models.weights import BY_PLACE, Normalisation, download, download_folder

_HALVES: Normalisation = ([0.5] * 3, [0.5] * 3)
_TRANSFORMED = ("GoogLeNet_Weights", "Inception_V3_Weights")
"""Weights that expect pixels from -1 to 1.

torchvision normalises the images as for its other networks, and these two networks then map them.
"""


@lru_cache
def torchvision_names() -> list[str]:
    """Return the names of torchvision's classification networks."""
    return list(torchvision.models.list_models(module=torchvision.models))


def find_entry(model: Model) -> Any:
    """Return torchvision's entry (name, url, meta, transforms) of one of its networks' weights.

    Raises:
        UserError: The network has no weights of that name.
    """
    available = torchvision.models.get_model_weights(model.name)
    # VGG16's IMAGENET1K_FEATURES has no classes: its classifier is NaN.
    entries = {entry.name: entry for entry in available if entry.meta["categories"]}
    entries["DEFAULT"] = getattr(available, "DEFAULT", None)
    entry = entries.get(model.weights)
    if entry is None:
        raise UserError(
            f"unknown model.weights {model.weights!r} of {model.name}"
            f"{nearest(model.weights, entries)}; allowed: none, {', '.join(entries)}, {BY_PLACE}"
        )
    return entry


def fetch(model: Model) -> Path:
    """Return the file of published weights; download it if it is not here yet.

    Raises:
        UserError: The network has no weights of that name.
        Unreachable: The weights cannot be downloaded. The message says where to put the file.
    """
    url = find_entry(model).url
    file = download_folder() / _file_name(url)
    if not file.is_file():
        download(model, url, file, file.stem.rpartition("-")[2])
    return file


def normalisation_of(entry: Any) -> Normalisation:
    """Return the normalisation of an entry, for a network that does not map its input itself."""
    if type(entry).__name__ in _TRANSFORMED:
        return _HALVES
    return _as_published(entry)


def _as_published(entry: Any) -> Normalisation:
    preset = entry.transforms()
    mean = [float(value) for value in preset.mean]
    std = [float(value) for value in preset.std]
    return mean, std


def correct_recorded(model: Model, normalisation: Normalisation) -> Normalisation:
    """Return the normalisation under which a run's network, built as now, computes what it did.

    Release 0.1.0 gave published weights of GoogLeNet and Inception torchvision's normalisation, and
    had the network map its input to the one they need. Now there is no such map, and later runs
    have recorded what they need.

    Args:
        model: The network and weights that the run has recorded.
        normalisation: The normalisation that the run has recorded.
    """
    if model.weights_kind == "published" and model.name in torchvision_names():
        entry = find_entry(model)
        if type(entry).__name__ in _TRANSFORMED and normalisation == _as_published(entry):
            return _HALVES
    return normalisation


@lru_cache
def _entries_by_file() -> dict[str, Any]:
    """Return torchvision's entries by the names of their files.

    Entries that share a file have the same normalisation.
    """
    found = {}
    for name in torchvision_names():
        for entry in torchvision.models.get_model_weights(name):
            found[_file_name(entry.url)] = entry
    return found


def _file_name(url: str) -> str:
    return Path(urlsplit(url).path).name


def identify_file(file: Path) -> tuple[Any, bool]:
    """Return torchvision's entry whose name a file has, and whether it has the content too.

    The entry is None for a file of another name. The first digits of the content's SHA-256 stand
    in the name: ``resnet18-f37072fd.pth``.
    """
    entry = _entries_by_file().get(file.name)
    if entry is None:
        return None, False
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return entry, digest.startswith(file.stem.rpartition("-")[2])
