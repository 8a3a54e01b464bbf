"""The order in which people look for names: 2 before 10."""

from __future__ import annotations

import re
from collections.abc import Sequence


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Return what names are sorted by, so that numbers in them count as numbers, and case only where they are equal else."""
    parts = re.split(r"([0-9]+)", name)
    return [
        _number(part) if place % 2 else (1, 0, part.casefold())
        for place, part in enumerate(parts)
        if part
    ], name


def _number(digits: str) -> tuple[int, int, str]:
    # By their count and as text, since Python makes no number of more than 4,300.
    significant = digits.lstrip("0")
    return 0, len(significant), significant


def natural_order(names: Sequence[str]) -> list[int]:
    """Return the places of names in the order in which people look for them."""
    return sorted(range(len(names)), key=lambda place: natural_key(names[place]))
