"""Pictures as a person sees them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.data.decode import EXTENSIONS, UNREADABLE, center_crop, decode, resize

PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 14
INTERPOLATIONS = ["bilinear", "bicubic", "nearest", "lanczos"]


def encoded(image: Image.Image, kind: str, **options: Any) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    buffer.seek(0)
    return buffer


@pytest.mark.parametrize(
    ("orientation", "seen"),
    [
        (1, PIXELS),
        (2, PIXELS[:, ::-1]),
        (3, PIXELS[::-1, ::-1]),
        (4, PIXELS[::-1]),
        (5, PIXELS.transpose(1, 0, 2)),
        (6, np.rot90(PIXELS, -1)),
        (7, PIXELS[::-1, ::-1].transpose(1, 0, 2)),
        (8, np.rot90(PIXELS, 1)),
    ],
)
def test_the_cameras_orientation_is_applied(orientation: int, seen: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decode(encoded(Image.fromarray(PIXELS), "PNG", exif=exif)), seen)


@pytest.mark.parametrize(("alpha", "expected"), [(0, (255, 255, 255)), (128, (255, 127, 127)), (255, (255, 0, 0))])
def test_transparency_is_composed_on_white(alpha: int, expected: tuple[int, int, int]) -> None:
    image = decode(encoded(Image.new("RGBA", (4, 4), (255, 0, 0, alpha)), "PNG"))
    assert image.mode == "RGB"
    assert image.getpixel((1, 1)) == expected


def test_grey_with_transparency_is_composed_on_white() -> None:
    assert decode(encoded(Image.new("LA", (4, 4), (0, 0)), "PNG")).getpixel((0, 0)) == (255, 255, 255)


def test_a_palettes_transparent_colour_is_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    decoded = decode(encoded(image, "PNG", transparency=0))
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 255)]


def test_a_palette_becomes_its_colours() -> None:
    image = Image.new("P", (1, 1))
    image.putpalette([10, 20, 30])
    assert decode(encoded(image, "PNG")).getpixel((0, 0)) == (10, 20, 30)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_to_eight(kind: str) -> None:
    image = Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16))
    assert np.asarray(decode(encoded(image, kind))).tolist() == [[[0] * 3, [100] * 3, [255] * 3]]


@pytest.mark.parametrize(("mode", "value", "expected"), [("L", 77, (77, 77, 77)), ("1", 1, (255, 255, 255)), ("RGB", (1, 2, 3), (1, 2, 3))])
def test_each_mode_becomes_rgb(mode: str, value: Any, expected: tuple[int, int, int]) -> None:
    image = decode(encoded(Image.new(mode, (3, 3), value), "PNG"))
    assert (image.mode, image.getpixel((1, 1))) == ("RGB", expected)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(kind: str) -> None:
    image = decode(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), kind))
    assert image.mode == "RGB"
    assert np.allclose(image.getpixel((4, 4)), (255, 0, 0), atol=3)


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    image = decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert image.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("extension", sorted(EXTENSIONS))
def test_each_extension_is_read(tmp_path: Path, extension: str) -> None:
    file = tmp_path / f"image{extension}"
    Image.new("L" if extension == ".pgm" else "RGB", (16, 16), 200 if extension == ".pgm" else (200, 200, 200)).save(file)
    image = decode(file)
    assert (image.mode, image.size) == ("RGB", (16, 16))
    assert np.allclose(image.getpixel((8, 8)), 200, atol=5)


def damaged(kind: str) -> bytes:
    rng = np.random.default_rng(0)
    return encoded(Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind).getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"this is no picture",
        b"\x89PNG\r\n\x1a\n",
        damaged("PNG")[:2000],
        damaged("JPEG")[:1000],
        damaged("GIF")[:30],
        damaged("TIFF")[:500],
        damaged("WEBP")[:200],
        damaged("BMP")[:200],
    ],
    ids=["empty", "text", "PNG header", "PNG", "JPEG", "GIF", "TIFF", "WebP", "BMP"],
)
def test_a_damaged_picture_is_unreadable(content: bytes) -> None:
    with pytest.raises(UNREADABLE):
        decode(io.BytesIO(content))


def test_a_picture_too_large_for_memory_is_unreadable() -> None:
    header = encoded(Image.new("1", (8, 8)), "BMP").getvalue()
    size = (60_000).to_bytes(4, "little")
    with pytest.raises(UNREADABLE):
        decode(io.BytesIO(header[:18] + size + size + header[26:]))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(8, 40), st.sampled_from(INTERPOLATIONS))
def test_the_shorter_side_is_as_asked_and_the_longer_at_most_three_times_it(width: int, height: int, side: int, interpolation: str) -> None:
    pixels = resize(Image.new("RGB", (width, height), (9, 9, 9)), side, interpolation)
    assert pixels.shape[0] == 3 and pixels.dtype == np.uint8
    assert min(pixels.shape[1:]) == side
    assert max(pixels.shape[1:]) <= 3 * side
    assert (pixels == 9).all()
    if max(width, height) <= 3 * min(width, height):
        assert max(pixels.shape[1:]) == pytest.approx(side * max(width, height) / min(width, height), abs=0.5)


def test_a_strip_keeps_its_middle() -> None:
    strip = np.zeros((10, 100, 3), dtype=np.uint8)
    strip[:, 40:60] = 255
    pixels = resize(Image.fromarray(strip), 10, "bilinear")
    assert pixels.shape == (3, 10, 30)
    assert pixels[:, :, 5:25].min() == 255 and pixels[:, :, :5].max() == pixels[:, :, 25:].max() == 0


def test_a_picture_of_the_size_asked_stays_as_it_is() -> None:
    assert np.array_equal(resize(Image.fromarray(PIXELS), 2, "bilinear"), PIXELS.transpose(2, 0, 1))


def test_interpolations_differ() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    assert len({resize(image, 11, name).tobytes() for name in INTERPOLATIONS}) == len(INTERPOLATIONS)


def test_shrinking_is_antialiased() -> None:
    board = np.tile(np.array([[0, 255], [255, 0]], dtype=np.uint8), (16, 16))
    pixels = resize(Image.fromarray(board).convert("RGB"), 8, "bilinear")
    assert pixels.min() > 100 and pixels.max() < 155


def test_the_middle_is_cut_out() -> None:
    pixels = np.arange(3 * 4 * 6, dtype=np.uint8).reshape(3, 4, 6)
    assert np.array_equal(center_crop(pixels, 2), pixels[:, 1:3, 2:4])
    assert np.array_equal(center_crop(pixels, 4), pixels[:, :, 1:5])
