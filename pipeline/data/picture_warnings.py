"""What a person should know of the pictures before training: what was passed over, what the crop cuts, which greys are lost."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from pipeline.config import Data
from pipeline.data.examine import Examined
from pipeline.data.sources.source import Item
from pipeline.natural_order import natural_key

LONG = 2.0
"""Longer over shorter side beyond which a crop to a square sees less than half of a picture."""
MANY = 0.1
"""Part of a class's pictures that are long, beyond which it is warned of."""
DIM = 32.0
"""White over a picture's own brightest level from which the picture is warned of: 8 of 256 greys are left."""
DARK = 4.0
"""White over the brightest level of all pictures from which it is warned of: three quarters of the greys are not used."""


def picture_warnings(
    items: Sequence[Item], kept: Sequence[int], examined: Examined, data: Data
) -> list[str]:
    """Return what is unusual about the pictures that are used.

    Args:
        items: All images.
        kept: Numbers of those that are used.
        examined: What was found in them.
        data: `white` is no longer ``auto``.
    """
    return [
        *_passed_over(items, kept, examined),
        *_cut(items, kept, examined, data),
        *_greys(items, kept, examined, data),
    ]


def _passed_over(items: Sequence[Item], kept: Sequence[int], examined: Examined) -> list[str]:
    notes: defaultdict[str, list[str]] = defaultdict(list)
    for number in kept:
        if number in examined.notes:
            notes[examined.notes[number]].append(items[number].path)
    return [f"{_images(paths)}: {note}" for note, paths in sorted(notes.items())]


def _cut(items: Sequence[Item], kept: Sequence[int], examined: Examined, data: Data) -> list[str]:
    if data.fit != "crop":
        return []
    sizes = examined.sizes[kept]
    long = sizes.max(axis=1) > LONG * sizes.min(axis=1)
    all_of = Counter(items[number].label for number in kept)
    long_of = Counter(
        items[number].label for number, is_long in zip(kept, long, strict=True) if is_long
    )
    shares = [
        f"{label!r} {count / all_of[label]:.0%}"
        for label, count in _in_order(long_of)
        if count > MANY * all_of[label]
    ]
    if not shares:
        return []
    listed = ", ".join(shares[:10]) + f" and {len(shares) - 10} more classes" * (len(shares) > 10)
    return [
        f"pictures more than twice as long as wide, of which the crop shows the middle: {listed}; data.fit pad shows all of them"
    ]


def _greys(items: Sequence[Item], kept: Sequence[int], examined: Examined, data: Data) -> list[str]:
    numbers = np.array(kept, dtype=np.int64)
    warnings = []
    guessed = numbers[examined.bits[numbers] == 32] if data.white == "type" else numbers[:0]
    if len(guessed):
        warnings.append(
            f"{_images([items[number].path for number in guessed])}: grey levels of 32 bits do not say which is white: 1, 255 or 65535 is "
            "taken, picture by picture; data.white auto, or the level, makes it the same for all"
        )
    known = (
        numbers[examined.bits[numbers] == 16]
        if data.white == "type"
        else numbers[examined.bits[numbers] > 8]
    )
    white = 65535 if data.white == "type" else int(data.white)
    brightest = float(examined.brightest[known].max()) if len(known) else float(white)
    if brightest * DARK <= white:
        warnings.append(
            f"the brightest of {len(known)} images of more than 8 bits has the grey level {brightest:g}, and {white} is white: they are "
            "dark, and few of their greys are told apart; data.white auto uses all"
        )
    elif len(dim := known[examined.brightest[known] * DIM <= white]):
        paths = [items[number].path for number in dim]
        warnings.append(
            f"{_images(paths)}: no grey level above a {DIM:.0f}th of {white}, which is white: nearly black"
        )
    if len(over := known[examined.brightest[known] > white]):
        paths = [items[number].path for number in over]
        warnings.append(
            f"{_images(paths)}: grey levels above {white}, which is white: all of these look the same"
        )
    return warnings


def _in_order(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: natural_key(item[0]))


def _images(paths: Sequence[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{len(paths)} images ({paths[0]} and others)"
