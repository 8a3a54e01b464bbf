"""The normalisation that a file of weights was trained with, if something tells it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.models.torchvision_weights import identify_file, normalisation_of
from pipeline.models.weights import Normalisation

_FILE = "preprocessing.json"


def find_normalisation(file: Path) -> tuple[Normalisation | None, str]:
    """Return the normalisation that comes with a file of weights, and why it is taken.

    It is None if nothing tells it. The text then says what was looked for.

    Raises:
        UserError: There is a ``preprocessing.json``, and it is wrong.
    """
    beside = _find_beside(file)
    if beside is not None:
        why = f"of the {_FILE} that stands with the weights"
        return read_normalisation(beside, file), why
    entry, is_same = identify_file(file)
    if is_same:
        return normalisation_of(entry), f"of torchvision's {entry}, which the file is"
    why = f"no {_FILE} stands with the weights"
    if entry is not None:
        why = (
            f"the content is not that of torchvision's {entry}, whose name the file has, and {why}"
        )
    return None, why


def _find_beside(file: Path) -> Path | None:
    """Return the ``preprocessing.json`` of a file of weights, None if there is none.

    It stands beside the file or, as among a run's artifacts, beside the folder ``checkpoint``.
    """
    folders = [file.parent]
    if file.resolve().parent.name == "checkpoint":
        folders.append(file.parent.parent)
    found = [folder / _FILE for folder in folders if (folder / _FILE).is_file()]
    return found[0] if found else None


def read_normalisation(beside: Path, file: Path) -> Normalisation:
    """Return mean and standard deviation of a ``preprocessing.json``.

    Args:
        beside: The ``preprocessing.json``.
        file: The weights that it belongs to, for messages.

    Raises:
        UserError: The file holds no mean and standard deviation of three channels.
    """
    try:
        raw = json.loads(beside.read_text(encoding="utf-8"))
        mean = _three_numbers(raw["mean"])
        std = _three_numbers(raw["std"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        mean = std = []
    if not mean or not std or min(std) <= 0:
        raise UserError(
            f"model.weights: {str(beside)!r} must hold mean and std, three numbers each, "
            f"for {file.name}"
        )
    return mean, std


def _three_numbers(values: Any) -> list[float]:
    """Return three finite numbers as floats, or an empty list if `values` is something else."""
    if not isinstance(values, list) or len(values) != 3:
        return []
    if any(type(value) not in (int, float) for value in values):
        return []
    numbers = [float(value) for value in values]
    return numbers if all(map(math.isfinite, numbers)) else []
