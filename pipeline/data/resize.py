"""A picture of any shape in the square that a network sees."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageOps

WIDEST = 3.0
"""Longest shape, as longer side over shorter side: beyond it the ends of a picture are cut.

A strip of 1 by 5,000 pixels would not fit in memory when it is resized.
"""

_INTERPOLATION = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
}


def resize_shorter_side(image: Image.Image, size: int, interpolation: str) -> NDArray[np.uint8]:
    """Resize with antialiasing to a shorter side of `size` pixels; return (3, height, width).

    The aspect ratio is kept up to 3 to 1.
    """
    width, height = image.size
    longest = round(min(width, height) * WIDEST)
    if max(width, height) > longest:
        kept = (min(width, longest), min(height, longest))
        image = ImageOps.fit(image, kept, Image.Resampling.NEAREST)
        width, height = image.size
    scale = size / min(width, height)
    resized = (max(size, round(width * scale)), max(size, round(height * scale)))
    return _resize(image, resized, interpolation)


def pad(image: Image.Image, size: int, interpolation: str, background: str) -> NDArray[np.uint8]:
    """Resize the whole picture into the middle of a square of one colour.

    Returns:
        Pixels of shape (3, size, size).
    """
    scale = size / max(image.size)
    width = max(1, round(image.width * scale))
    height = max(1, round(image.height * scale))
    inner = _resize(image, (width, height), interpolation)
    top = (size - height) // 2
    left = (size - width) // 2
    square = np.empty((3, size, size), np.uint8)
    square[:] = np.array(ImageColor.getrgb(background)[:3], np.uint8)[:, None, None]
    square[:, top : top + height, left : left + width] = inner
    return square


def stretch(image: Image.Image, size: int, interpolation: str) -> NDArray[np.uint8]:
    """Resize the whole picture to a square, whatever that does to the shapes in it.

    Returns:
        Pixels of shape (3, size, size).
    """
    return _resize(image, (size, size), interpolation)


def center_crop(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Cut the middle `size` by `size` pixels out of an array of shape (3, height, width)."""
    top = (pixels.shape[1] - size) // 2
    left = (pixels.shape[2] - size) // 2
    return pixels[:, top : top + size, left : left + size]


def _resize(image: Image.Image, size: tuple[int, int], interpolation: str) -> NDArray[np.uint8]:
    if size != image.size:
        image = image.resize(size, _INTERPOLATION[interpolation])
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))
