"""The way from a picture's file to the pixels that are stored and shown to a network.

Prepare, predict and the served model share it. The served model carries along what this module
imports. So it imports nothing else of this package than `pipeline.errors` and this folder's modules
on colours, grey levels, limits, metadata and shapes.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, assert_never

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageColor, ImageOps, _imaging

from pipeline.data.colour_profiles import convert_to_srgb
from pipeline.data.decoding_limits import TooSlow, why_refused, why_tiles_refused
from pipeline.data.grey_levels import Levels, to_eight_bits
from pipeline.data.resize import pad, resize_shorter_side, stretch
from pipeline.data.strip_metadata import strip_metadata
from pipeline.errors import first_line

if TYPE_CHECKING:
    from pipeline.config import Data, Fit

VERSION = 2
"""Version of the decoding. It is raised with each change of what a file's pixels become.

Pixels of another version are not taken for pixels of this one.

1: Colour profiles are passed over, and damaged metadata makes a picture unreadable (release 0.1.0).
2: Colours are converted to sRGB, and damaged metadata is passed over.

Each version stays callable, so that a network is shown the pixels that it was trained on.
"""

EXTENSIONS = frozenset(
    {
        ".avif",
        ".bmp",
        ".gif",
        ".jfif",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pgm",
        ".png",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    }
)

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "AVIF")
"""Formats that are opened, whatever a file's name says.

EPS is not among them: for it, Pillow runs Ghostscript, a program that need not end. The common
formats come first, since TIFF and the formats after it make Pillow import all of its readers. MPO
(several JPEGs in a file) is opened as JPEG.
"""

UNREADABLE = (OSError, ValueError)
"""What is raised for a file that is missing, no picture, truncated or too large."""

MAX_PIXELS = 64_000_000
"""More pixels than any camera's picture has.

A small file of more pixels may have been made to exhaust memory.
"""

# `decode` refuses a picture for which Pillow warns of too many pixels. Pillow's other warnings, for
# example of damaged EXIF data, name no file, and the picture is good.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
# Without a handler, what Pillow logs about a damaged TIFF would be printed.
logging.getLogger("PIL").addHandler(logging.NullHandler())

# libtiff writes its errors to the standard error output, past Python; Pillow raises them too. Where
# Pillow carries libtiff within itself, as on Windows, libtiff cannot be asked not to write.
with contextlib.suppress(AttributeError, OSError):
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings a picture upright, by its EXIF orientation."""

DAMAGED_EXIF = "damaged EXIF data: not turned"
DAMAGED_METADATA = "damaged metadata: neither turned nor its colours converted"


class TooLarge(OSError):
    """A picture has more pixels than are allowed."""


class TooCostly(TooLarge):
    """A picture takes far more time or memory than others with as many pixels."""


class Decoded(NamedTuple):
    """A picture as a person would see it.

    Attributes:
        image: The picture as RGB.
        levels: The picture's grey levels before, if they had more than 8 bits and the file does not
            say which level is white.
        is_changed: Whether version 1 makes other pixels of the picture.
        note: What was passed over; empty if nothing was.
    """

    image: Image.Image
    levels: Levels | None = None
    is_changed: bool = False
    note: str = ""


@dataclass(frozen=True)
class Decoding:
    """All that the pixels depend on beside the file.

    Attributes:
        size: Length in pixels of the shorter side if `fit` is crop, else of both sides.
        interpolation: Interpolation of the resizing.
        background: Colour below transparent pixels and beside a padded picture: a name or #rrggbb.
        white: The level that is white in grey levels of more than 8 bits: a number; ``type`` for
            what the number format says; or ``auto`` for what the brightest level of each picture
            says, for a first look at it.
        fit: ``crop`` lets a picture that is not square keep its shape, so that it can be cropped
            later; ``pad`` and ``stretch`` make a square of the whole picture.
        max_pixels: Images of more pixels are refused.
        version: Version of the rules; see `VERSION`.
    """

    size: int = 0
    interpolation: str = "bilinear"
    background: str = "white"
    white: str | int = "type"
    fit: Fit = "crop"
    max_pixels: int = MAX_PIXELS
    version: int = VERSION

    @classmethod
    def of(cls, data: Data, version: int = VERSION) -> Decoding:
        """Return the decoding of a configuration."""
        return cls(
            data.stored_size,
            data.interpolation,
            data.background,
            data.white,
            data.fit,
            data.max_pixels,
            version,
        )

    @property
    def key(self) -> str:
        """All that changes pixels, as a part of the names of what is kept of them.

        Two decodings with equal keys make equal pixels of images of 8 bits.
        """
        fit = "" if self.fit == "crop" else f"-{self.fit}"
        return f"{self.size}-{self.interpolation}{fit}-{self.colours_key}"

    @property
    def colours_key(self) -> str:
        """All that changes pixels before images are resized."""
        pillow = PIL.__version__.partition(".")[0]
        return f"{self.background.lstrip('#')}-{self.version}-pillow{pillow}"

    @property
    def grey_key(self) -> str:
        """What is added to `key` for images of more than 8 bits."""
        return "" if self.white == "type" else f"-white{self.white}"

    def decode(self, file: Path | str | BinaryIO | bytes) -> Decoded:
        """Decode the first frame of a picture to RGB, as a person would see it.

        EXIF orientation is applied. Transparency is composed on the background. Colours are
        converted to sRGB if there is a profile. Grey levels of 16 and 32 bits are scaled to 8.
        Damaged metadata changes nothing.

        Args:
            file: The encoded image.

        Raises:
            OSError: The file is no picture, or a damaged picture, or one of too many pixels, or one
                whose grey levels have no known white.
        """
        content = _read(file)
        problem = why_refused(content)
        if problem:
            raise TooCostly(problem)
        try:
            return self._decode(io.BytesIO(content))
        except TooLarge:
            raise
        except OSError as error:
            bare = strip_metadata(content) if self.version > 1 else b""
            if len(bare) in (0, len(content)):
                raise
            try:
                return self._decode(io.BytesIO(bare))._replace(note=DAMAGED_METADATA)
            except OSError:
                raise error from None

    def _decode(self, file: BinaryIO) -> Decoded:
        # Pillow makes room for a GIF's pixels when it opens the file, unless there are more than
        # twice as many as this setting. It is never less than the default, since it holds for every
        # picture that this process opens.
        Image.MAX_IMAGE_PIXELS = max(self.max_pixels, MAX_PIXELS)
        try:
            with Image.open(file, formats=FORMATS) as opened:
                problem = why_too_large(*opened.size, self.max_pixels)
                if problem:
                    raise TooLarge(problem)
                problem = why_tiles_refused(opened, self.max_pixels)
                if problem:
                    raise TooCostly(problem)
                opened.load()
                image, note = self._turn_upright(opened)
                return self._convert_to_rgb(image)._replace(note=note)
        except (OSError, MemoryError, TooSlow):
            raise
        except Image.DecompressionBombError as error:
            raise TooLarge(f"more pixels than data.max_pixels ({self.max_pixels})") from error
        except Exception as error:
            # On a damaged file Pillow's readers raise anything: SyntaxError, struct.error, KeyError
            # and more.
            raise OSError(first_line(error)) from error

    def _turn_upright(self, image: Image.Image) -> tuple[Image.Image, str]:
        """Return a picture turned as its EXIF data says, and what was passed over."""
        if self.version == 1:
            # In place, since otherwise Pillow copies a picture that need not be turned.
            ImageOps.exif_transpose(image, in_place=True)
            return image, ""
        try:
            exif = image.info.get("exif", b"").removeprefix(b"Exif\0\0")
            if exif and not exif.startswith((b"II", b"MM")):
                return image, DAMAGED_EXIF
            orientation = image.getexif().get(_ORIENTATION, 1)
            turn = _TURNS.get(orientation)
        except Exception:
            # On damaged EXIF data Pillow raises anything, as its readers do.
            return image, DAMAGED_EXIF
        if turn is None:
            note = "" if orientation in (0, 1) else DAMAGED_EXIF
            return image, note
        turned = image.transpose(turn)
        # The next steps need what the file says: its colour profile, its transparency, its format.
        turned.info = image.info
        turned.format = image.format
        return turned, ""

    def _convert_to_rgb(self, image: Image.Image) -> Decoded:
        profile = image.info.get("icc_profile") if self.version > 1 else None
        levels = None
        if image.mode[0] in "IF":
            image, levels = to_eight_bits(image, self.white)
        is_grey = image.mode in ("1", "L", "LA", "La")
        alpha = None
        if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
            # Pillow would copy a picture that is RGBA already.
            if image.mode != "RGBA":
                image = image.convert("RGBA")
            alpha = image.getchannel("A") if profile else None
        plain = self._compose_on_background(image)
        if not isinstance(profile, bytes):
            return Decoded(plain, levels)
        if image.mode != "CMYK":
            image = image.convert("L" if is_grey else "RGB")
        converted = convert_to_srgb(image, profile)
        if converted is None:
            return Decoded(plain, levels)
        if alpha is not None:
            converted.putalpha(alpha)
        converted = self._compose_on_background(converted)
        is_changed = ImageChops.difference(converted, plain).getbbox() is not None
        return Decoded(converted, levels, is_changed)

    def _compose_on_background(self, image: Image.Image) -> Image.Image:
        if image.mode == "RGBA":
            background = Image.new("RGBA", image.size, ImageColor.getrgb(self.background))
            image = Image.alpha_composite(background, image)
        return image.convert("RGB")

    def resize(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return the pixels that are stored, of shape (3, height, width)."""
        match self.fit:
            case "crop":
                return resize_shorter_side(image, self.size, self.interpolation)
            case "pad":
                return pad(image, self.size, self.interpolation, self.background)
            case "stretch":
                return stretch(image, self.size, self.interpolation)
            case _:
                assert_never(self.fit)


def claimed_pixels(content: bytes, max_pixels: int = MAX_PIXELS) -> int:
    """Return how many pixels a picture has by its header, before any is decoded.

    The result is 0 if the header cannot be read.
    """
    Image.MAX_IMAGE_PIXELS = max(max_pixels, MAX_PIXELS)
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            return opened.width * opened.height
    except Exception:
        # Pillow raises anything, as when the picture is decoded. That will tell what is wrong.
        return 0


def why_too_large(width: int, height: int, max_pixels: int) -> str:
    """Return why an image of that size is refused; empty if it is not."""
    if width * height > max_pixels:
        return f"{width} × {height} pixels, more than data.max_pixels ({max_pixels})"
    return ""


def explain_unreadable(error: BaseException) -> str:
    """Return in a few words why an image cannot be read."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = first_line(error)
    return "not an image" if "cannot identify image file" in text else text


def _read(file: Path | str | BinaryIO | bytes) -> bytes:
    if isinstance(file, bytes):
        return file
    if isinstance(file, Path | str):
        return Path(file).read_bytes()
    file.seek(0)
    return file.read()
