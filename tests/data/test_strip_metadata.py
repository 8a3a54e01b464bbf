"""Metadata may be damaged where the pixels are not."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.data.decode import DAMAGED_EXIF, DAMAGED_METADATA, UNREADABLE, Decoding
from pipeline.data.strip_metadata import strip_metadata

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def encoded(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image or Image.fromarray(PIXELS)).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes, checksum: int | None = None) -> bytes:
    right = zlib.crc32(kind + content)
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", right if checksum is None else checksum)
    )


def with_chunk(*added: bytes) -> bytes:
    content = encoded("PNG")
    return content[:33] + b"".join(added) + content[33:]


def with_segment(marker: int, content: bytes) -> bytes:
    jpeg = encoded("JPEG", quality=95)
    return jpeg[:20] + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + jpeg[20:]


EXIF_OF_NINE = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x09\0\0\0\0\0\0"


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (with_chunk(chunk(b"eXIf", b"junk")), DAMAGED_EXIF),
        (with_chunk(chunk(b"eXIf", EXIF_OF_NINE)), DAMAGED_EXIF),
        (with_chunk(chunk(b"eXIf", b"")), ""),
        (
            with_chunk(
                chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n 4\nzzzz"))
            ),
            DAMAGED_EXIF,
        ),
        (with_chunk(chunk(b"iTXt", b"a\0\0\0", checksum=1)), DAMAGED_METADATA),
        (with_chunk(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(3_000_000)))), DAMAGED_METADATA),
        (with_chunk(chunk(b"tEXt", b"a\0" + bytes(2_000_000))), ""),
        (with_chunk(chunk(b"pHYs", b"1")), DAMAGED_METADATA),
        (with_chunk(chunk(b"gAMA", b"")), DAMAGED_METADATA),
        (with_chunk(chunk(b"acTL", b"12345678")), ""),
        (with_chunk(chunk(b"iCCP", b"icc\0\0junk")), ""),
    ],
    ids=[
        "junk",
        "9",
        "none",
        "junk as text",
        "checksum",
        "a bomb of text",
        "long text",
        "pHYs",
        "gAMA",
        "acTL",
        "profile",
    ],
)
def test_a_png_with_damaged_metadata_keeps_its_pixels(content: bytes, note: str) -> None:
    found = Decoding().decode(content)
    assert np.array_equal(found.image, PIXELS)
    assert (found.note, found.is_changed) == (note, False)


@pytest.mark.parametrize(
    ("marker", "content", "note"),
    [
        (0xE1, b"Exif\0\0junk", DAMAGED_EXIF),
        (0xE1, b"Exif\0\0" + EXIF_OF_NINE, DAMAGED_EXIF),
        (0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff", ""),
        (0xE2, b"ICC_PROFILE\0\x01\x02junk", ""),
        (0xED, b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0\0\0\xff\xffjunk", ""),
        (0xE2, b"MPF\0junk", ""),
        (0xFE, b"\xff\xfe", ""),
    ],
    ids=["junk", "9", "offset", "profile", "photoshop", "several pictures", "comment"],
)
def test_a_jpeg_with_damaged_metadata_keeps_its_pixels(
    marker: int, content: bytes, note: str
) -> None:
    found = Decoding().decode(with_segment(marker, content))
    assert np.array_equal(found.image, Decoding().decode(encoded("JPEG", quality=95)).image)
    assert found.note == note


def test_release_0_1_0_refuses_it_still() -> None:
    with pytest.raises(UNREADABLE):
        Decoding(version=1).decode(with_chunk(chunk(b"eXIf", b"junk")))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_without_metadata_the_pixels_are_the_same(kind: str) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a description"
    rgb, grey = Image.fromarray(PIXELS), Image.fromarray(PIXELS[:, :, 0])
    pictures = {
        "PNG": [
            (rgb, {"transparency": (1, 2, 3)}),
            (grey, {"transparency": 3}),
            (rgb.convert("P"), {"transparency": 3}),
        ],
        "JPEG": [
            (rgb, {"progressive": True}),
            (grey, {"comment": "a description"}),
            (rgb.convert("CMYK"), {}),
        ],
    }
    for image, options in pictures[kind]:
        content = encoded(kind, image, exif=exif, **options)
        bare = strip_metadata(content)
        assert len(bare) < len(content) and b"description" not in bare
        assert np.array_equal(Decoding().decode(bare).image, Decoding().decode(content).image)


CUT_OFF = [
    b"",
    b"\xff\xd8",
    b"\xff\xd8\xff",
    b"\xff\xd8\xff\xe1\xff\xff",
    b"\x89PNG\r\n\x1a\n",
    encoded("PNG")[:200],
    encoded("GIF"),
]


@pytest.mark.parametrize("content", CUT_OFF)
def test_what_is_cut_off_or_of_another_kind_has_none_to_take_out(content: bytes) -> None:
    assert strip_metadata(content) == b""


def test_a_file_is_read_again_from_its_path(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(with_chunk(chunk(b"pHYs", b"1")))
    assert Decoding().decode(file).note == DAMAGED_METADATA
    with file.open("rb") as opened:
        assert Decoding().decode(opened).note == DAMAGED_METADATA
