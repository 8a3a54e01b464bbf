"""The order in which people look for names: 2 before 10."""

from __future__ import annotations

import re
from collections.abc import Sequence


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Return the key that a name is sorted by.

    Numbers in names count as numbers, and case counts only if the names are equal otherwise.
    """
    key = []
    for place, part in enumerate(re.split(r"([0-9]+)", name)):
        if not part:
            continue
        is_number = place % 2 == 1
        key.append(_number_key(part) if is_number else (1, 0, part.casefold()))
    return key, name


def _number_key(digits: str) -> tuple[int, int, str]:
    # Numbers are compared by the count of their digits and then as text, since Python makes no
    # number of more than 4,300 digits.
    significant = digits.lstrip("0")
    return 0, len(significant), significant


def natural_order(names: Sequence[str]) -> list[int]:
    """Return the positions of names, in the order in which people look for the names."""
    return sorted(range(len(names)), key=lambda place: natural_key(names[place]))
