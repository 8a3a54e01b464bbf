"""One way to decode a picture, shared by prepare, predict and the served model.

Nothing of the rest of this package is imported here but `pipeline.errors`: the served model carries it along.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageOps, _imaging

from pipeline.errors import first_line

DECODING = 1
"""Raised with each change of what `decode`, `resize` or `pipeline.data.worker.perceptual_hash` makes of a file: pixels stored
by another version are not taken for those of this one."""

EXTENSIONS = frozenset({".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "AVIF")
"""What is opened, whatever a file's name says: for EPS, Pillow runs Ghostscript, a program that need not end. The common ones
first, since TIFF and those after it make Pillow import all of its readers. (MPO, several JPEGs in a file, is opened as JPEG.)"""

UNREADABLE = (OSError, ValueError)
"""What reading and decoding raise for a file that is missing, no picture, truncated, or too large."""

MAX_PIXELS = 64_000_000
"""More than any camera's picture; a small file of more may be made to exhaust memory."""

# `decode` refuses where Pillow warns of too many pixels; what it warns of else, such as damaged EXIF data, names no file, and the
# picture is good.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

# libtiff writes what it stumbles over to the standard error output, past Python; Pillow raises it too. Where Pillow carries libtiff
# within itself, as on Windows, it cannot be asked not to.
with contextlib.suppress(AttributeError, OSError):
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)

_WHITES = (1.0, 255.0, 65535.0)
_OVERSHOOT = 0.25
"""Part of white by which resampling with bicubic or Lanczos may leave the range of grey levels; only floats can."""
_PART = 1 << 20
"""Grey levels that are scaled at a time."""

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

    EXIF orientation is applied, transparency composed on a background, CMYK converted, grey levels of 16 and 32 bits scaled to 8.

    Args:
        file: Encoded image.
        background: Colour below transparent pixels, a name or #rrggbb.
        max_pixels: An image of more is refused by its header, before it is decoded.

    Raises:
        OSError: The file is no picture, a damaged one, one of too many pixels, or its grey levels have no known white.
    """
    # Pillow makes room for a GIF's pixels when it is opened, unless they are more than twice as many. Never less than the default,
    # since the setting holds for every picture that this process opens.
    Image.MAX_IMAGE_PIXELS = max(max_pixels, MAX_PIXELS)
    try:
        with Image.open(file, formats=FORMATS) as opened:
            if problem := too_large(*opened.size, max_pixels):
                raise OSError(problem)
            opened.load()
            # In place, since the other form copies what it need not turn.
            ImageOps.exif_transpose(opened, in_place=True)
            return _rgb(opened, background)
    except (OSError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise OSError(f"more pixels than data.max_pixels ({max_pixels})") from error
    except Exception as error:
        # Pillow's readers raise whatever a damaged file makes them stumble over: SyntaxError, struct.error, KeyError and more.
        raise OSError(first_line(error)) from error


def too_large(width: int, height: int, max_pixels: int) -> str:
    """Return why an image of that size is refused; empty where it is not."""
    return f"{width} × {height} pixels, more than data.max_pixels ({max_pixels})" if width * height > max_pixels else ""


def reason(error: BaseException) -> str:
    """Return in a few words why an image cannot be read."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = first_line(error)
    return "not an image" if "cannot identify image file" in text else text


def _rgb(image: Image.Image, background: str) -> Image.Image:
    if image.mode[0] in "IF":
        image = _eight_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        # Where there is nothing to convert, it would copy.
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, ImageColor.getrgb(background)), image)
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale grey levels to 8 bits, as L; as LA where one of the levels means transparent."""
    levels = np.asarray(image)
    white = _white(image, levels)
    flat, grey = levels.reshape(-1), np.empty(levels.size, np.uint8)
    # In parts: all of them as floats would take several times the memory of the picture.
    for start in range(0, levels.size, _PART):
        part = flat[start : start + _PART].astype(np.float32)
        grey[start : start + _PART] = part.clip(0, white) * (255 / white) + 0.5
    scaled = Image.fromarray(grey.reshape(levels.shape))
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return scaled
    return Image.merge("LA", (scaled, Image.fromarray((levels != transparent) * np.uint8(255))))


def _white(image: Image.Image, levels: NDArray[Any]) -> float:
    """Return the grey level that is white.

    Of 16 bits it is 65535, also in a PGM, whose levels Pillow has scaled to that. Of 32 bits no format tells it: it is the
    least of 1, 255 and 65535 that the picture's levels stay below. Other levels (Hounsfield units, heights, counts) are refused, as any
    white chosen for them would differ from picture to picture.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return 65535.0
    lowest, highest = float(levels.min()), float(levels.max())
    if not math.isfinite(lowest + highest):
        raise OSError("holds values that are not finite")
    overshoot = _OVERSHOOT if image.mode == "F" else 0.0
    white = next((white for white in _WHITES if highest <= white * (1 + overshoot)), 0.0)
    if not white or lowest < -white * overshoot:
        raise OSError(f"grey levels from {lowest:g} to {highest:g}, expected 0 to 1, 255 or 65535")
    return white


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
