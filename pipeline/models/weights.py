"""Files of weights: the one that a configuration names, and those that are downloaded."""

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
        UserError: There is none.
    """
    return find_file(model.weights.removeprefix(FILE), "model.weights")


def find_file(path: str, field: str) -> Path:
    """Return the file of a path.

    Raises:
        UserError: There is none; the message names `field` and the nearest file.
    """
    file = Path(path).expanduser()
    if file.is_file():
        return file
    siblings: list[str] = []
    if file.parent.is_dir():
        siblings = [str(other) for other in file.parent.glob("*") if other.is_file()]
    raise UserError(f"{field}: file {path!r} does not exist{nearest(path, siblings)}")


def content_hash(path: Path) -> str:
    """Return 16 hex digits over a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def download_folder() -> Path:
    """Return the folder of all downloaded weights: torchvision's own, whatever library they are for."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def download(model: Model, url: str, file: Path, hash_prefix: str | None = None) -> None:
    """Download published weights.

    Args:
        model: The network that they are for, and their name.
        url: The address at which they are published.
        file: The place to put them.
        hash_prefix: The first digits of the file's SHA-256, if they are known.

    Raises:
        Unreachable: They cannot be downloaded; the message says where to put the file.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(file), hash_prefix=hash_prefix, progress=False)
    except (OSError, RuntimeError) as error:
        raise Unreachable(
            f"model.weights: {model.weights} of {model.name} cannot be downloaded from {url} "
            f"({first_line(error)}); put that file at {file}"
        ) from None
