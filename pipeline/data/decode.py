"""One way from a picture's file to the pixels that are stored and shown to a network, shared by prepare, predict and the served model.

Nothing of the rest of this package is imported here but this folder's modules on colours, grey levels, shapes and metadata, and
`pipeline.errors`: the served model carries them along.
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
"""Raised with each change of what a file's pixels become; pixels of another version are not taken for those of this one.

1: colour profiles are passed over, and damaged metadata makes a picture unreadable (release 0.1.0). 2: colours are converted to sRGB,
damaged metadata is passed over. Each stays callable, so that a network is shown the pixels that it was trained on.
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
# Without a handler, what Pillow logs of a damaged TIFF would be printed.
logging.getLogger("PIL").addHandler(logging.NullHandler())

# libtiff writes what it stumbles over to the standard error output, past Python; Pillow raises it too. Where Pillow carries libtiff
# within itself, as on Windows, it cannot be asked not to.
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
"""By the EXIF orientation, what brings a picture upright."""

DAMAGED_EXIF = "damaged EXIF data: not turned"
DAMAGED_METADATA = "damaged metadata: neither turned nor its colours converted"


class TooLarge(OSError):
    """A picture has more pixels than are allowed."""


class TooCostly(TooLarge):
    """A picture takes far more time or memory than one of its pixels does."""


class Decoded(NamedTuple):
    """A picture as a person would see it.

    Attributes:
        image: RGB.
        levels: Its grey levels before, where they had more than 8 bits and the file does not say which is white.
        is_changed: Whether version 1 makes other pixels of it.
        note: What was passed over; empty: nothing.
    """

    image: Image.Image
    levels: Levels | None = None
    is_changed: bool = False
    note: str = ""


@dataclass(frozen=True)
class Decoding:
    """All that the pixels depend on beside the file.

    Attributes:
        size: In pixels: of the shorter side with `fit` crop, of both sides else.
        interpolation: Of the resizing.
        background: Colour below transparent pixels and beside a padded picture, a name or #rrggbb.
        white: Of grey levels of more than 8 bits, which is white: ``type``, as the number format says; a number; or ``auto``, of each
            picture's own brightest, for a first look at it.
        fit: ``crop``: a picture that is not square keeps its shape, to be cropped later; ``pad`` and ``stretch`` keep all of it.
        max_pixels: Larger images are refused.
        version: Of the rules; see `VERSION`.
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
        """Return what a configuration says."""
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
        """Of all that changes pixels, for the names of what is kept of them; two of equal keys make equal pixels of images of 8 bits."""
        fit = "" if self.fit == "crop" else f"-{self.fit}"
        return f"{self.size}-{self.interpolation}{fit}-{self.colours_key}"

    @property
    def colours_key(self) -> str:
        """The same before images are resized."""
        return f"{self.background.lstrip('#')}-{self.version}-pillow{PIL.__version__.partition('.')[0]}"

    @property
    def grey_key(self) -> str:
        """What `key` lacks for images of more than 8 bits."""
        return "" if self.white == "type" else f"-white{self.white}"

    def decode(self, file: Path | str | BinaryIO | bytes) -> Decoded:
        """Decode the first frame of a picture to RGB, as a person would see it.

        EXIF orientation is applied, transparency composed on a background, colours converted to sRGB where there is a profile, grey
        levels of 16 and 32 bits scaled to 8. Damaged metadata changes nothing.

        Args:
            file: Encoded image.

        Raises:
            OSError: The file is no picture, a damaged one, one of too many pixels, or its grey levels have no known white.
        """
        content = _content(file)
        if problem := why_refused(content):
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
        # Pillow makes room for a GIF's pixels when it is opened, unless they are more than twice as many. Never less than the default,
        # since the setting holds for every picture that this process opens.
        Image.MAX_IMAGE_PIXELS = max(self.max_pixels, MAX_PIXELS)
        try:
            with Image.open(file, formats=FORMATS) as opened:
                if problem := why_too_large(*opened.size, self.max_pixels):
                    raise TooLarge(problem)
                if problem := why_tiles_refused(opened, self.max_pixels):
                    raise TooCostly(problem)
                opened.load()
                image, note = self._upright(opened)
                return self._rgb(image)._replace(note=note)
        except (OSError, MemoryError, TooSlow):
            raise
        except Image.DecompressionBombError as error:
            raise TooLarge(f"more pixels than data.max_pixels ({self.max_pixels})") from error
        except Exception as error:
            # Pillow's readers raise whatever a damaged file makes them stumble over: SyntaxError, struct.error, KeyError and more.
            raise OSError(first_line(error)) from error

    def _upright(self, image: Image.Image) -> tuple[Image.Image, str]:
        if self.version == 1:
            # In place, since the other form copies what it need not turn.
            ImageOps.exif_transpose(image, in_place=True)
            return image, ""
        try:
            exif = image.info.get("exif", b"").removeprefix(b"Exif\0\0")
            if exif and not exif.startswith((b"II", b"MM")):
                return image, DAMAGED_EXIF
            orientation = image.getexif().get(_ORIENTATION, 1)
            turn = _TURNS.get(orientation)
        except Exception:
            # As Pillow's readers, it raises whatever it stumbles over.
            return image, DAMAGED_EXIF
        if turn is None:
            return image, "" if orientation in (0, 1) else DAMAGED_EXIF
        turned = image.transpose(turn)
        # What it was opened from says more than the pixels do.
        turned.info, turned.format = image.info, image.format
        return turned, ""

    def _rgb(self, image: Image.Image) -> Decoded:
        profile = image.info.get("icc_profile") if self.version > 1 else None
        levels = None
        if image.mode[0] in "IF":
            image, levels = to_eight_bits(image, self.white)
        is_grey = image.mode in ("1", "L", "LA", "La")
        alpha = None
        if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
            # Where there is nothing to convert, it would copy.
            image = image if image.mode == "RGBA" else image.convert("RGBA")
            alpha = image.getchannel("A") if profile else None
        plain = self._composed(image)
        if not isinstance(profile, bytes):
            return Decoded(plain, levels)
        converted = convert_to_srgb(
            image if image.mode == "CMYK" else image.convert("L" if is_grey else "RGB"), profile
        )
        if converted is None:
            return Decoded(plain, levels)
        if alpha is not None:
            converted.putalpha(alpha)
        converted = self._composed(converted)
        return Decoded(
            converted,
            levels,
            is_changed=ImageChops.difference(converted, plain).getbbox() is not None,
        )

    def _composed(self, image: Image.Image) -> Image.Image:
        if image.mode == "RGBA":
            image = Image.alpha_composite(
                Image.new("RGBA", image.size, ImageColor.getrgb(self.background)), image
            )
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
    """Return how many pixels a picture has by its header, before any is decoded; 0 where that cannot be told."""
    Image.MAX_IMAGE_PIXELS = max(max_pixels, MAX_PIXELS)
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            return opened.width * opened.height
    except Exception:
        # As when it is decoded, which tells what is wrong.
        return 0


def why_too_large(width: int, height: int, max_pixels: int) -> str:
    """Return why an image of that size is refused; empty where it is not."""
    return (
        f"{width} × {height} pixels, more than data.max_pixels ({max_pixels})"
        if width * height > max_pixels
        else ""
    )


def explain_unreadable(error: BaseException) -> str:
    """Return in a few words why an image cannot be read."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = first_line(error)
    return "not an image" if "cannot identify image file" in text else text


def _content(file: Path | str | BinaryIO | bytes) -> bytes:
    if isinstance(file, bytes):
        return file
    if isinstance(file, Path | str):
        return Path(file).read_bytes()
    file.seek(0)
    return file.read()
