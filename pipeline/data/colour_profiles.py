"""Colours as the picture's colour profile means them, in sRGB."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
from PIL import Image, ImageCms

ALIKE = 4
"""Levels of 256 by which a profile may differ from sRGB and still be taken for it.

The many variants of sRGB differ by rounding.
"""

LARGEST_KEPT = 4_000_000
"""Bytes of the largest profile that is kept for the next picture.

Profiles for printers have two million.
"""

_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Modes of pictures by the colour space that a profile is for."""

_STEPS = 17
"""Levels of each channel that are tried to tell whether a profile is sRGB."""


def convert_to_srgb(image: Image.Image, profile: bytes) -> Image.Image | None:
    """Convert a picture from its profile's colours.

    Args:
        image: A picture of mode RGB, L or CMYK.
        profile: An ICC profile as the file holds it, perhaps damaged.

    Returns:
        The picture as RGB. None if nothing is to be converted: the profile is sRGB, or damaged, or
        for another mode than the picture's.
    """
    # The converter of a large profile is not kept: a stranger's profile may be of any size.
    is_kept = len(profile) <= LARGEST_KEPT
    build = _build_converter if is_kept else _build_converter.__wrapped__
    convert = build(profile, image.mode)
    return convert(image) if convert else None


@lru_cache(maxsize=16)
def _build_converter(profile: bytes, mode: str) -> Callable[[Image.Image], Image.Image] | None:
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if _SPACES.get(opened.profile.xcolor_space) != mode:
            return None
        # LittleCMS interpolates between few levels, which would be visible in dark greys.
        flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
        transform = ImageCms.buildTransform(
            opened, ImageCms.createProfile("sRGB"), mode, "RGB", flags=flags
        )
        tried = _palette(mode)
        found = np.asarray(ImageCms.applyTransform(tried, transform))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    if mode != "CMYK":
        differences = found.astype(np.int16) - np.asarray(tried.convert("RGB"))
        if np.abs(differences).max() <= ALIKE:
            return None
    if mode == "L":
        return lambda image: Image.fromarray(found[0][np.asarray(image)])
    return partial(_apply, transform)


def _apply(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> Image.Image:
    converted = ImageCms.applyTransform(image, transform)
    # It is None only for a conversion in place.
    assert converted is not None
    return converted


def _palette(mode: str) -> Image.Image:
    """Return a picture whose colours are spread over all colours of a mode."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    levels = np.linspace(0, 255, _STEPS).round().astype(np.uint8)
    channels = np.stack(np.meshgrid(*[levels] * 3), -1).reshape(1, -1, 3)
    return Image.fromarray(channels).convert(mode)
