"""One way to decode a picture, shared by prepare, predict and the served model.

Nothing of the rest of this package is imported here but `pipeline.errors`: the served model carries it along.
"""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageOps

EXTENSIONS = frozenset({".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, struct.error, Image.DecompressionBombError)
"""What Pillow raises for a file that is no picture, truncated, or too large to be one."""

MAX_PIXELS = 64_000_000
"""More than any camera's picture; a small file of more may be made to exhaust memory."""

# Our own limit is checked first, and refuses where Pillow's warns.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

WIDEST = 3.0
"""Longer over shorter side beyond which the ends are cut: a strip of 1 by 5,000 pixels would not fit in memory resized."""

_INTERPOLATION = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
}


def decode(file: Path | str | BinaryIO, background: str = "white", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode the first frame of a picture to RGB, as a person would see it.

    EXIF orientation is applied, transparency composed on a background, CMYK converted, 16-bit grey scaled to 8.

    Args:
        file: Encoded image.
        background: Colour below transparent pixels, a name or #rrggbb.
        max_pixels: An image of more is refused by its header, before it is decoded.

    Raises:
        Any of `UNREADABLE`: The file is no picture, a damaged one, or one of too many pixels.
    """
    if max_pixels > (Image.MAX_IMAGE_PIXELS or max_pixels):
        Image.MAX_IMAGE_PIXELS = max_pixels
    with Image.open(file) as opened:
        width, height = opened.size
        if width * height > max_pixels:
            raise Image.DecompressionBombError(f"{width} × {height} pixels, more than data.max_pixels ({max_pixels})")
        opened.load()
        # In place, since the other form copies what it need not turn.
        ImageOps.exif_transpose(opened, in_place=True)
        image: Image.Image = opened
        if image.mode[0] in "IF":
            image = _eight_bits(np.asarray(image, dtype=np.float64), image.mode)
        if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
            image = image if image.mode == "RGBA" else image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, ImageColor.getrgb(background)), image)
        return image.convert("RGB")


def reason(error: BaseException) -> str:
    """Return in a few words why an image cannot be read."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "not an image" if "cannot identify image file" in text else text


def _eight_bits(levels: NDArray[np.float64], mode: str) -> Image.Image:
    """Scale grey levels to 8 bits: of 16 bits by a constant; of 32, whose range no format tells, by what range they use."""
    highest = float(levels.max(initial=0))
    white = 65535.0 if mode.startswith("I;16") or highest > 255 else 1.0 if 0 < highest <= 1 else 255.0
    return Image.fromarray((levels.clip(0, white) * (255 / white)).astype(np.uint8))


def resize(image: Image.Image, shorter_side: int, interpolation: str) -> NDArray[np.uint8]:
    """Resize with antialiasing, aspect ratio kept up to 3 to 1.

    Returns:
        Array of shape (3, height, width), whose smaller side is `shorter_side` pixels.
    """
    width, height = image.size
    longest = round(min(width, height) * WIDEST)
    if max(width, height) > longest:
        image = ImageOps.fit(image, (min(width, longest), min(height, longest)), Image.Resampling.NEAREST)
        width, height = image.size
    scale = shorter_side / min(width, height)
    size = (max(shorter_side, round(width * scale)), max(shorter_side, round(height * scale)))
    if size != image.size:
        image = image.resize(size, _INTERPOLATION[interpolation])
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))


def center_crop(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Cut the middle `size` by `size` pixels out of an array of shape (3, height, width)."""
    top, left = (pixels.shape[1] - size) // 2, (pixels.shape[2] - size) // 2
    return pixels[:, top : top + size, left : left + size]
