"""Files of weights: the file that a configuration names, and files that are downloaded."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from pipeline.config import FILE, Model
from pipeline.errors import Unreachable, UserError, first_line, nearest

Normalisation = tuple[list[float], list[float]]
"""Mean and standard deviation per channel, of pixels from 0 to 1."""

BY_PLACE = "file:PATH, models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID/model"
"""The ways to name weights that no library publishes."""


def find_weights_file(model: Model) -> Path:
    """Return the file of ``file:PATH``.

    Raises:
        UserError: There is no file of that path.
    """
    return find_file(model.weights.removeprefix(FILE), "model.weights")


def find_file(path: str, field: str) -> Path:
    """Return the file of a path.

    Raises:
        UserError: There is no file of that path. The message names `field` and the nearest file.
    """
    file = Path(path).expanduser()
    if file.is_file():
        return file
    siblings: list[str] = []
    if file.parent.is_dir():
        siblings = [str(other) for other in file.parent.glob("*") if other.is_file()]
    raise UserError(f"{field}: file {path!r} does not exist{nearest(path, siblings)}")


def content_hash(path: Path) -> str:
    """Return the first 16 hex digits of the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def download_folder() -> Path:
    """Return torchvision's own folder of downloaded weights, which is used for all libraries."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def download(model: Model, url: str, file: Path, hash_prefix: str | None = None) -> None:
    """Download published weights.

    Args:
        model: The network that the weights are for, and the name of the weights.
        url: The address at which the weights are published.
        file: The file that is written.
        hash_prefix: The first digits of the file's SHA-256, if they are known.

    Raises:
        Unreachable: The weights cannot be downloaded. The message says where to put the file.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(file), hash_prefix=hash_prefix, progress=False)
    except (OSError, RuntimeError) as error:
        raise Unreachable(
            f"model.weights: {model.weights} of {model.name} cannot be downloaded from {url} "
            f"({first_line(error)}); put that file at {file}"
        ) from None
