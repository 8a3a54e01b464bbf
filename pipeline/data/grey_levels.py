"""Grey levels of more than 8 bits, and which of them is white."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_WHITES = (1.0, 255.0, 65535.0)
_OVERSHOOT = 0.25
"""Part of white by which resampling with bicubic or Lanczos may leave the range of grey levels; only floats can."""
_PART = 1 << 20
"""Grey levels that are scaled at a time."""


class Levels(NamedTuple):
    """What a picture's grey levels were before they were scaled to 8 bits.

    Attributes:
        bits: 16 or 32.
        brightest: The highest of them.
    """

    bits: int
    brightest: float


def next_white(brightest: float) -> int:
    """Return the least ``2^k - 1``, at least 1, that is not below a grey level."""
    return (1 << max(1, math.ceil(brightest).bit_length())) - 1


def to_eight_bits(image: Image.Image, white: str | int) -> tuple[Image.Image, Levels | None]:
    """Scale grey levels of 16 or 32 bits to 8.

    Args:
        image: Of a mode that starts with I or F.
        white: The level that is white; ``type``: what the number format says; ``auto``: of the picture's own brightest level.

    Returns:
        The picture as L, or as LA where one of the levels means transparent; and its levels, None where its file says which is white.

    Raises:
        OSError: There are levels that are not finite, below 0, or for which no white is known.
    """
    levels = np.asarray(image)
    # A PGM says what is white in it, and Pillow has scaled its levels to 65535.
    says_white = image.mode == "I" and image.format == "PPM"
    found = (
        None
        if says_white
        else Levels(16 if image.mode.startswith("I;16") else 32, float(levels.max()))
    )
    limit = 65535.0 if found is None else _limit(levels, found, white)
    flat, grey = levels.reshape(-1), np.empty(levels.size, np.uint8)
    # In parts: all of them as floats would take several times the memory of the picture.
    for start in range(0, levels.size, _PART):
        part = flat[start : start + _PART].astype(np.float32)
        grey[start : start + _PART] = part.clip(0, limit) * (255 / limit) + 0.5
    scaled = Image.fromarray(grey.reshape(levels.shape))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        scaled = Image.merge(
            "LA", (scaled, Image.fromarray((levels != transparent) * np.uint8(255)))
        )
    return scaled, found


def _limit(levels: NDArray[Any], found: Levels, white: str | int) -> float:
    """Return the grey level that is white.

    By its type it is 65535 of 16 bits. Of 32 bits no format tells it: it is the least of 1, 255 and 65535 that the picture's
    levels stay below. Other levels (Hounsfield units, heights, counts) are refused, as any white chosen for them would differ from
    picture to picture.
    """
    if found.bits == 32 and not math.isfinite(float(levels.min()) + found.brightest):
        raise OSError("holds values that are not finite")
    lowest = float(levels.min())
    overshoot = _OVERSHOOT if levels.dtype.kind == "f" else 0.0
    if white == "type":
        whites = (65535.0,) if found.bits == 16 else _WHITES
        limit = next((white for white in whites if found.brightest <= white * (1 + overshoot)), 0.0)
        if not limit or lowest < -limit * overshoot:
            raise OSError(
                f"grey levels from {lowest:g} to {found.brightest:g}, expected 0 to 1, 255 or 65535, or data.white"
            )
        return limit
    # Of the picture's own levels, so that a number and `auto`, which stands for one, refuse the same pictures.
    own = float(next_white(found.brightest))
    if lowest < -own * overshoot:
        raise OSError(
            f"grey levels from {lowest:g} to {found.brightest:g}; those below 0 would all be black"
        )
    return own if white == "auto" else float(white)
