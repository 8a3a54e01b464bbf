"""Grey levels of more than 8 bits, and which of them is white."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_WHITES = (1.0, 255.0, 65535.0)
"""Levels that may be white in pictures of 32 bits."""

_OVERSHOOT = 0.25
"""Part of white by which bicubic or Lanczos resampling may leave the range of grey levels.

Only levels that are floats can leave it.
"""

_PART = 1 << 20
"""Grey levels that are scaled at a time."""


class Levels(NamedTuple):
    """What a picture's grey levels were before they were scaled to 8 bits.

    Attributes:
        bits: Bits of a level: 16 or 32.
        brightest: The highest level.
    """

    bits: int
    brightest: float


def next_white(brightest: float) -> int:
    """Return the least ``2^k - 1``, at least 1, that is not below a grey level."""
    return (1 << max(1, math.ceil(brightest).bit_length())) - 1


def to_eight_bits(image: Image.Image, white: str | int) -> tuple[Image.Image, Levels | None]:
    """Scale grey levels of 16 or 32 bits to 8.

    Args:
        image: A picture of a mode that starts with I or F.
        white: The level that is white; ``type`` for what the number format says; ``auto`` for what
            the picture's own brightest level says.

    Returns:
        The picture as L, or as LA if one of the levels means transparent; and its levels, or None
        if its file says which level is white.

    Raises:
        OSError: There are levels that are not finite, or below 0, or for which no white is known.
    """
    levels = np.asarray(image)
    found = None
    limit = 65535.0
    # A PGM says which level is white, and Pillow has scaled its levels to 65535.
    if image.mode != "I" or image.format != "PPM":
        bits = 16 if image.mode.startswith("I;16") else 32
        found = Levels(bits, float(levels.max()))
        limit = _find_white(levels, found, white)
    scaled = Image.fromarray(_scale(levels, limit))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        alpha = Image.fromarray((levels != transparent) * np.uint8(255))
        scaled = Image.merge("LA", (scaled, alpha))
    return scaled, found


def _scale(levels: NDArray[Any], limit: float) -> NDArray[np.uint8]:
    flat = levels.reshape(-1)
    grey = np.empty(levels.size, np.uint8)
    # Part by part: all levels as floats would take several times the memory of the picture.
    for start in range(0, levels.size, _PART):
        part = flat[start : start + _PART].astype(np.float32)
        grey[start : start + _PART] = part.clip(0, limit) * (255 / limit) + 0.5
    return grey.reshape(levels.shape)


def _find_white(levels: NDArray[Any], found: Levels, white: str | int) -> float:
    """Return the grey level that is white.

    If `white` is ``type``, the level is 65535 for 16 bits. For 32 bits no format tells it: it is
    the least of 1, 255 and 65535 that the picture's levels stay below. Other levels (Hounsfield
    units, heights, counts) are refused, as any white that is chosen for them would differ from
    picture to picture.
    """
    lowest = float(levels.min())
    if found.bits == 32 and not math.isfinite(lowest + found.brightest):
        raise OSError("holds values that are not finite")
    overshoot = _OVERSHOOT if levels.dtype.kind == "f" else 0.0
    if white == "type":
        candidates = (65535.0,) if found.bits == 16 else _WHITES
        limits = [limit for limit in candidates if found.brightest <= limit * (1 + overshoot)]
        if not limits or lowest < -limits[0] * overshoot:
            raise OSError(
                f"grey levels from {lowest:g} to {found.brightest:g}, "
                "expected 0 to 1, 255 or 65535, or data.white"
            )
        return limits[0]
    # The check is of the picture's own levels, so that a number and `auto`, which stands for a
    # number, refuse the same pictures.
    own = float(next_white(found.brightest))
    if lowest < -own * overshoot:
        raise OSError(
            f"grey levels from {lowest:g} to {found.brightest:g}; those below 0 would all be black"
        )
    return own if white == "auto" else float(white)
