"""Warnings about pictures, to be read before training.

They say what was passed over, what the crop cuts off, and which grey levels are lost.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Data
from pipeline.data.examine import Examined
from pipeline.data.sources.source import Item
from pipeline.natural_order import natural_key

LONG = 2.0
"""Longer over shorter side beyond which a crop to a square shows less than half of a picture."""
MANY = 0.1
"""Part of a class's pictures that are long, beyond which there is a warning about the class."""
DIM = 32.0
"""White over a picture's own brightest level, from which there is a warning about the picture.

8 of 256 greys are left.
"""
DARK = 4.0
"""White over the brightest level of all pictures, from which there is a warning about them.

Three quarters of the greys are not used.
"""


def picture_warnings(
    items: Sequence[Item], kept: Sequence[int], examined: Examined, data: Data
) -> list[str]:
    """Return what is unusual about the pictures that are used.

    Args:
        items: All images.
        kept: Numbers of the images that are used.
        examined: What was found in the images.
        data: The configuration; its `white` is no longer ``auto``.
    """
    return [
        *_warn_of_passed_over(items, kept, examined),
        *_warn_of_crop(items, kept, examined, data),
        *_warn_of_greys(items, kept, examined, data),
    ]


def _warn_of_passed_over(
    items: Sequence[Item], kept: Sequence[int], examined: Examined
) -> list[str]:
    numbers_of: defaultdict[str, list[int]] = defaultdict(list)
    for number in kept:
        if number in examined.notes:
            numbers_of[examined.notes[number]].append(number)
    return [
        f"{_name_images(items, numbers)}: {note}" for note, numbers in sorted(numbers_of.items())
    ]


def _warn_of_crop(
    items: Sequence[Item], kept: Sequence[int], examined: Examined, data: Data
) -> list[str]:
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
        for label, count in sorted(long_of.items(), key=lambda item: natural_key(item[0]))
        if count > MANY * all_of[label]
    ]
    if not shares:
        return []
    listed = ", ".join(shares[:10])
    if len(shares) > 10:
        listed += f" and {len(shares) - 10} more classes"
    return [
        "pictures more than twice as long as wide, of which the crop shows the middle: "
        f"{listed}; data.fit pad shows all of them"
    ]


def _warn_of_greys(
    items: Sequence[Item], kept: Sequence[int], examined: Examined, data: Data
) -> list[str]:
    numbers = np.array(kept, dtype=np.int64)
    bits = examined.bits[numbers]
    if data.white != "type":
        return _warn_of_levels(items, numbers[bits > 8], examined, int(data.white))
    warnings = []
    guessed = numbers[bits == 32]
    if len(guessed):
        warnings.append(
            f"{_name_images(items, guessed)}: grey levels of 32 bits do not say which is white: "
            "1, 255 or 65535 is taken, picture by picture; data.white auto, or the level, makes it "
            "the same for all"
        )
    return warnings + _warn_of_levels(items, numbers[bits == 16], examined, 65535)


def _warn_of_levels(
    items: Sequence[Item], numbers: NDArray[np.int64], examined: Examined, white: int
) -> list[str]:
    """Return what is unusual about the grey levels of images, of which `white` is the brightest."""
    warnings = []
    levels = examined.brightest[numbers]
    brightest = float(levels.max()) if len(levels) else float(white)
    dim = numbers[levels * DIM <= white]
    if brightest * DARK <= white:
        warnings.append(
            f"the brightest of {len(numbers)} images of more than 8 bits has the grey level "
            f"{brightest:g}, and {white} is white: they are dark, and few of their greys are told "
            "apart; data.white auto uses all"
        )
    elif len(dim):
        warnings.append(
            f"{_name_images(items, dim)}: no grey level above a {DIM:.0f}th of {white}, which is "
            "white: nearly black"
        )
    over = numbers[levels > white]
    if len(over):
        warnings.append(
            f"{_name_images(items, over)}: grey levels above {white}, which is white: all of these "
            "look the same"
        )
    return warnings


def _name_images(items: Sequence[Item], numbers: Sequence[int] | NDArray[np.int64]) -> str:
    first = items[numbers[0]].path
    return first if len(numbers) == 1 else f"{len(numbers)} images ({first} and others)"
