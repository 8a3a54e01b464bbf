"""Pictures as a person sees them."""

from __future__ import annotations

import contextlib
import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.data.decode import EXTENSIONS, UNREADABLE, Decoding, explain_unreadable
from pipeline.data.resize import center_crop
from tests.conftest import PROJECT

PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 14
INTERPOLATIONS = ["bilinear", "bicubic", "nearest", "lanczos"]


def decode(
    file: Path | io.BytesIO, background: str = "white", max_pixels: int = 64_000_000
) -> Image.Image:
    return Decoding(background=background, max_pixels=max_pixels).decode(file).image


def resize(image: Image.Image, size: int, interpolation: str) -> np.ndarray:
    return Decoding(size, interpolation).resize(image)


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


@pytest.mark.parametrize(
    ("alpha", "expected"), [(0, (255, 255, 255)), (128, (255, 127, 127)), (255, (255, 0, 0))]
)
def test_transparency_is_composed_on_white(alpha: int, expected: tuple[int, int, int]) -> None:
    image = decode(encoded(Image.new("RGBA", (4, 4), (255, 0, 0, alpha)), "PNG"))
    assert image.mode == "RGB"
    assert image.getpixel((1, 1)) == expected


def test_grey_with_transparency_is_composed_on_white() -> None:
    assert decode(encoded(Image.new("LA", (4, 4), (0, 0)), "PNG")).getpixel((0, 0)) == (
        255,
        255,
        255,
    )


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


def test_every_sixteen_bit_level_becomes_the_nearest_of_eight() -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert np.array_equal(
        np.asarray(decode(encoded(Image.fromarray(levels), "PNG")))[:, :, 0], np.round(levels / 257)
    )


@pytest.mark.parametrize("kind", ["PNG", "PPM"])
@pytest.mark.parametrize("highest", [1, 200, 257 * 100, 65535])
def test_white_is_white_for_dark_sixteen_bit_pictures_too(kind: str, highest: int) -> None:
    levels = np.array([[0, highest]], dtype=np.uint16)
    assert np.asarray(decode(encoded(Image.fromarray(levels), kind)))[0, :, 0].tolist() == [
        0,
        round(highest / 257),
    ]


def test_a_pgm_of_twelve_bits_is_scaled_by_its_own_white() -> None:
    assert np.asarray(decode(io.BytesIO(b"P5 2 1 4095\n\x0f\xff\x00\x10")))[0, :, 0].tolist() == [
        255,
        1,
    ]


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (np.array([0, 0.5, 1], np.float32), [0, 128, 255]),
        (np.array([-0.01, 0.5, 1.01], np.float32), [0, 128, 255]),
        (np.array([0, 100, 255], np.float32), [0, 100, 255]),
        (np.array([-0.5, 100, 255.5], np.float32), [0, 100, 255]),
        (np.array([0, 25700, 65540], np.float32), [0, 100, 255]),
        (np.array([0, 0, 0], np.float32), [0, 0, 0]),
        (np.array([0, 100, 255], np.int32), [0, 100, 255]),
        (np.array([0, 256, 257], np.int32), [0, 1, 1]),
        (np.array([0, 25700, 65535], np.int32), [0, 100, 255]),
    ],
)
def test_thirty_two_bit_grey_is_scaled_by_the_white_it_stays_below(
    levels: np.ndarray, expected: list[int]
) -> None:
    assert (
        np.asarray(decode(encoded(Image.fromarray(levels[None]), "TIFF")))[0, :, 0].tolist()
        == expected
    )


@pytest.mark.parametrize(
    ("levels", "why"),
    [
        (np.array([0, 0.5, np.nan], np.float32), "holds values that are not finite"),
        (np.array([0, 0.5, np.inf], np.float32), "holds values that are not finite"),
        (np.array([-np.inf, 0.5, np.inf], np.float32), "holds values that are not finite"),
        (
            np.array([0, 1e6], np.float32),
            "grey levels from 0 to 1e+06, expected 0 to 1, 255 or 65535, or data.white",
        ),
        (
            np.array([-1, 1], np.float32),
            "grey levels from -1 to 1, expected 0 to 1, 255 or 65535, or data.white",
        ),
        (
            np.array([0, 2**31 - 1], np.int32),
            "grey levels from 0 to 2.14748e+09, expected 0 to 1, 255 or 65535, or data.white",
        ),
        (
            np.array([-1024, 3071], np.int32),
            "grey levels from -1024 to 3071, expected 0 to 1, 255 or 65535, or data.white",
        ),
    ],
)
@pytest.mark.filterwarnings("error")
def test_levels_without_a_known_white_are_unreadable(levels: np.ndarray, why: str) -> None:
    with pytest.raises(UNREADABLE) as caught:
        decode(encoded(Image.fromarray(levels[None]), "TIFF"))
    assert explain_unreadable(caught.value) == why


def png(header: bytes, transparent: bytes, rows: bytes) -> io.BytesIO:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    chunks = [
        (b"IHDR", header),
        (b"tRNS", transparent),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    return io.BytesIO(
        b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, content) for kind, content in chunks)
    )


def test_the_transparent_level_of_sixteen_bit_grey_is_composed() -> None:
    header = struct.pack(">IIBBBBB", 3, 1, 16, 0, 0, 0, 0)
    image = decode(
        png(header, struct.pack(">H", 257), b"\0" + struct.pack(">3H", 0, 257, 65535)), "red"
    )
    assert [image.getpixel((x, 0)) for x in range(3)] == [(0, 0, 0), (255, 0, 0), (255, 255, 255)]


MEMORY = """
import io, sys
from pathlib import Path
from PIL import Image
from pipeline.data.decode import Decoding

def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])

buffer = io.BytesIO()
Image.new("I;16", (4000, 4000), 25700).save(buffer, "PNG")
before = peak()
assert Decoding().decode(buffer).image.getpixel((0, 0)) == (100, 100, 100)
print(peak() - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(),
    reason="the peak of a process's memory is read as Linux tells it",
)
def test_scaling_takes_little_memory() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", MEMORY], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    # 16 million pixels: 48 MB as RGB, 128 MB as double precision.
    assert int(ended.stdout) < 140_000


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [("L", 77, (77, 77, 77)), ("1", 1, (255, 255, 255)), ("RGB", (1, 2, 3), (1, 2, 3))],
)
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
    Image.new(
        "L" if extension == ".pgm" else "RGB",
        (16, 16),
        200 if extension == ".pgm" else (200, 200, 200),
    ).save(file)
    image = decode(file)
    assert (image.mode, image.size) == ("RGB", (16, 16))
    assert np.allclose(image.getpixel((8, 8)), 200, atol=5)


def test_the_first_of_two_pictures_in_a_jpeg_is_taken() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert np.allclose(decode(content).getpixel((8, 8)), (255, 0, 0), atol=3)


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "TGA", "SPIDER", "IM"])
def test_other_formats_are_refused_whatever_they_are_called(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "image.png"
    # Not to the file itself: Pillow's SPIDER writer would register .png for itself.
    file.write_bytes(
        encoded(Image.new("F" if kind == "SPIDER" else "L", (16, 16)), kind).getvalue()
    )
    with pytest.raises(UNREADABLE) as caught:
        decode(file)
    assert explain_unreadable(caught.value) == "not an image"


def test_a_program_in_postscript_is_not_run(tmp_path: Path) -> None:
    file = tmp_path / "image.png"
    file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n{} loop\n")
    with pytest.raises(UNREADABLE, match="cannot identify"):
        decode(file)


def damaged(kind: str) -> bytes:
    rng = np.random.default_rng(0)
    return encoded(
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind
    ).getvalue()


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


@pytest.mark.slow
@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "AVIF"]),
    st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=4))),
)
def test_whatever_pillow_stumbles_over_is_unreadable(
    kind: str, changes: list[tuple[float, bytes]]
) -> None:
    content = bytearray(damaged(kind))
    for place, change in changes:
        # Most of them near the beginning, where formats keep what matters.
        start = int(place**4 * len(content))
        content[start : start + len(change)] = change
    with contextlib.suppress(OSError):
        assert decode(io.BytesIO(bytes(content)), max_pixels=10**6).mode == "RGB"


@pytest.mark.parametrize(
    ("width", "height", "limit"), [(9_000, 9_000, 64_000_000), (60_000, 30_000, 10**9), (11, 1, 10)]
)
def test_too_many_pixels_are_refused_by_our_own_limit(width: int, height: int, limit: int) -> None:
    header = encoded(Image.new("1", (8, 8)), "BMP").getvalue()
    content = header[:18] + width.to_bytes(4, "little") + height.to_bytes(4, "little") + header[26:]
    with pytest.raises(UNREADABLE) as caught:
        decode(io.BytesIO(content), max_pixels=limit)
    assert (
        explain_unreadable(caught.value)
        == f"{width} × {height} pixels, more than data.max_pixels ({limit})"
    )


@pytest.mark.parametrize("kind", ["BMP", "GIF"])
@pytest.mark.parametrize("limit", [1000, 64_000_000, 10**9])
def test_far_too_many_pixels_are_refused_when_the_file_is_opened(kind: str, limit: int) -> None:
    content = bytearray(encoded(Image.new("L", (8, 8)), kind).getvalue())
    if kind == "BMP":
        content[18:26] = 2 * (60_000).to_bytes(4, "little")
    else:
        place = content.index(b"\x2c" + bytes(4) + b"\x08\0\x08\0")
        # With a block that has the frame cleared after it, for which Pillow makes room at once.
        content[place + 5 : place + 9] = 2 * (60_000).to_bytes(2, "little")
        content[place:place] = b"\x21\xf9\x04\x08\0\0\0\0"
    with pytest.raises(UNREADABLE) as caught:
        decode(io.BytesIO(bytes(content)), max_pixels=limit)
    assert explain_unreadable(caught.value) == f"more pixels than data.max_pixels ({limit})"


def test_a_picture_too_large_for_memory_is_unreadable() -> None:
    header = encoded(Image.new("1", (8, 8)), "BMP").getvalue()
    size = (60_000).to_bytes(4, "little")
    with pytest.raises(UNREADABLE):
        decode(io.BytesIO(header[:18] + size + size + header[26:]))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(8, 40), st.sampled_from(INTERPOLATIONS))
def test_the_shorter_side_is_as_asked_and_the_longer_at_most_three_times_it(
    width: int, height: int, side: int, interpolation: str
) -> None:
    pixels = resize(Image.new("RGB", (width, height), (9, 9, 9)), side, interpolation)
    assert pixels.shape[0] == 3 and pixels.dtype == np.uint8
    assert min(pixels.shape[1:]) == side
    assert max(pixels.shape[1:]) <= 3 * side
    assert (pixels == 9).all()
    if max(width, height) <= 3 * min(width, height):
        assert max(pixels.shape[1:]) == pytest.approx(
            side * max(width, height) / min(width, height), abs=0.5
        )


def test_a_strip_keeps_its_middle() -> None:
    strip = np.zeros((10, 100, 3), dtype=np.uint8)
    strip[:, 40:60] = 255
    pixels = resize(Image.fromarray(strip), 10, "bilinear")
    assert pixels.shape == (3, 10, 30)
    assert (
        pixels[:, :, 5:25].min() == 255 and pixels[:, :, :5].max() == pixels[:, :, 25:].max() == 0
    )


def test_a_picture_of_the_size_asked_stays_as_it_is() -> None:
    assert np.array_equal(resize(Image.fromarray(PIXELS), 2, "bilinear"), PIXELS.transpose(2, 0, 1))


def test_interpolations_differ() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    assert len({resize(image, 11, name).tobytes() for name in INTERPOLATIONS}) == len(
        INTERPOLATIONS
    )


def test_shrinking_is_antialiased() -> None:
    board = np.tile(np.array([[0, 255], [255, 0]], dtype=np.uint8), (16, 16))
    pixels = resize(Image.fromarray(board).convert("RGB"), 8, "bilinear")
    assert pixels.min() > 100 and pixels.max() < 155


def test_the_middle_is_cut_out() -> None:
    pixels = np.arange(3 * 4 * 6, dtype=np.uint8).reshape(3, 4, 6)
    assert np.array_equal(center_crop(pixels, 2), pixels[:, 1:3, 2:4])
    assert np.array_equal(center_crop(pixels, 4), pixels[:, :, 1:5])


def test_what_libraries_say_of_damaged_files_stays_off_the_console(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8))
    broken_exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\x01\0\0\0\x06\0"
    twice = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x02\0\x06\0\x06\0\0\0\0"
    for name, exif in (("broken.jpg", broken_exif), ("twice.jpg", twice)):
        image.save(tmp_path / name, exif=exif)
    for kind in ("tiff_lzw", "tiff_adobe_deflate", "jpeg"):
        content = bytearray(encoded(image, "TIFF", compression=kind).getvalue())
        content[40:3000:7] = bytes(len(content[40:3000:7]))
        (tmp_path / f"{kind}.tif").write_bytes(content)
    script = (
        "import sys; from pathlib import Path; from pipeline.data.decode import Decoding\n"
        "for name in sys.argv[1:]:\n"
        "    try: print(Decoding().decode(Path(name)).image.size)\n"
        "    except OSError: print('refused')"
    )
    files = [str(file) for file in sorted(tmp_path.iterdir())]
    done = subprocess.run(
        [sys.executable, "-c", script, *files],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    seen = dict(zip([Path(file).name for file in files], done.stdout.splitlines(), strict=True))
    assert (
        seen["broken.jpg"] == seen["twice.jpg"] == "(60, 60)"
        and list(seen.values()).count("refused") >= 2
    )
    assert done.stderr == ""
