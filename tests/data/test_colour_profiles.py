"""Colours as a picture's profile means them."""

from __future__ import annotations

import io
from functools import partial
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from pipeline.data.decode import Decoded, Decoding
from tests.data import profiles

SRGB = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
GENTLE = (SRGB // 2 + 60).astype(np.uint8)
"""Colours that every space has."""


def decoded(image: Image.Image, kind: str = "PNG", version: int = 2, **options: Any) -> Decoded:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Decoding(version=version).decode(buffer.getvalue())


def difference(image: Image.Image, pixels: np.ndarray) -> int:
    return int(np.abs(np.asarray(image, np.int16) - pixels).max())


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize(
    ("primaries", "gamma", "off"),
    [(profiles.ADOBE_RGB, 2.19921875, 30), (profiles.DISPLAY_P3, 2.2, 20)],
    ids=["Adobe RGB", "Display P3"],
)
def test_the_same_picture_in_another_space_of_colours_decodes_to_the_same(
    kind: str, primaries: Any, gamma: float, off: int
) -> None:
    profile = profiles.rgb_profile(primaries, partial(profiles.power, gamma=gamma))
    written = Image.fromarray(profiles.srgb_as(GENTLE, primaries, gamma))
    options = {"lossless": True} if kind == "WEBP" else {}
    found = decoded(written, kind, icc_profile=profile, **options)
    assert found.is_changed and found.note == ""
    assert difference(found.image, GENTLE) <= 2
    first = decoded(written, kind, version=1, icc_profile=profile, **options)
    assert not first.is_changed and np.array_equal(first.image, written)
    assert difference(first.image, GENTLE) > off


def test_a_photograph_in_adobe_rgb_is_what_it_is_in_srgb() -> None:
    smooth = np.asarray(Image.fromarray(GENTLE).resize((320, 240), Image.Resampling.BICUBIC))
    profile = profiles.rgb_profile(profiles.ADOBE_RGB, partial(profiles.power, gamma=2.19921875))
    found = decoded(
        Image.fromarray(profiles.srgb_as(smooth, profiles.ADOBE_RGB, 2.19921875)),
        "JPEG",
        quality=95,
        icc_profile=profile,
    )
    assert np.abs(np.asarray(found.image, float) - smooth).mean() < 3


@pytest.mark.parametrize(
    "profile",
    [
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        profiles.rgb_profile(profiles.SRGB, profiles.linear_srgb),
        b"",
        b"no profile",
        profiles.rgb_profile(profiles.ADOBE_RGB, profiles.linear_srgb)[:300],
        profiles.grey_profile(1.0),
    ],
    ids=["sRGB", "sRGB of tables", "empty", "junk", "cut off", "of grey levels"],
)
def test_a_profile_that_is_srgb_or_says_nothing_changes_nothing(profile: bytes) -> None:
    found = decoded(Image.fromarray(SRGB), icc_profile=profile)
    assert np.array_equal(found.image, SRGB)
    assert not found.is_changed


def test_the_profile_of_grey_levels_is_followed() -> None:
    levels = np.arange(256, dtype=np.uint8)[None]
    expected = (profiles.levels_srgb(levels / 255) * 255).round()[..., None]
    found = decoded(Image.fromarray(levels), icc_profile=profiles.grey_profile(1.0))
    assert found.is_changed and difference(found.image, np.repeat(expected, 3, axis=2)) <= 2
    of_sixteen = decoded(
        Image.fromarray(levels.astype(np.uint16) * 257), icc_profile=profiles.grey_profile(1.0)
    )
    assert np.array_equal(of_sixteen.image, found.image)


def test_colours_are_converted_before_they_are_composed() -> None:
    profile = profiles.rgb_profile(profiles.ADOBE_RGB, partial(profiles.power, gamma=2.19921875))
    written = profiles.srgb_as(GENTLE, profiles.ADOBE_RGB, 2.19921875)
    alpha = np.zeros((*GENTLE.shape[:2], 1), np.uint8)
    alpha[:12] = 255
    found = decoded(Image.fromarray(np.concatenate([written, alpha], axis=2)), icc_profile=profile)
    assert difference(found.image.crop((0, 0, 32, 12)), GENTLE[:12]) <= 2
    assert difference(found.image.crop((0, 12, 32, 24)), np.full((12, 32, 3), 255)) == 0


def test_a_palettes_colours_are_converted() -> None:
    profile = profiles.rgb_profile(profiles.ADOBE_RGB, partial(profiles.power, gamma=2.19921875))
    colour = np.array([[[90, 160, 120]]], np.uint8)
    image = Image.new("P", (1, 1))
    image.putpalette(profiles.srgb_as(colour, profiles.ADOBE_RGB, 2.19921875).tobytes())
    assert difference(decoded(image, icc_profile=profile).image, colour) <= 2


def test_cmyk_without_a_profile_stays_as_it_was() -> None:
    image = Image.fromarray(
        np.random.default_rng(1).integers(0, 256, (8, 8, 4), dtype=np.uint8), "CMYK"
    )
    assert np.array_equal(decoded(image, "TIFF").image, decoded(image, "TIFF", version=1).image)
