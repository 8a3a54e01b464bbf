"""Files that take far more than pictures do."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import signal
import struct
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.config import Data
from pipeline.data import examine_worker as module
from pipeline.data import prepare_data
from pipeline.data.decode import Decoded, Decoding, TooLarge
from pipeline.data.decoding_limits import MOST_CHUNKS, TooSlow, stopwatch, why_refused
from pipeline.errors import UserError
from tests.data.conftest import WriteImages


def encoded(kind: str, image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg_of_scans(count: int) -> bytes:
    content = encoded("JPEG", Image.new("L", (64, 64)), progressive=True)
    last, end = content.rindex(b"\xff\xda"), content.rindex(b"\xff\xd9")
    missing = count - content.count(b"\xff\xda")
    return content[:end] + content[last:end] * missing + b"\xff\xd9"


def jpeg_of_segments(count: int) -> bytes:
    content = encoded("JPEG", Image.new("L", (64, 64)))
    return content[:2] + (b"\xff\xe1\0\x08Exif\0\0") * count + content[2:]


def photograph_with_film(count: int) -> bytes:
    """Return a JPEG with so many scans' marks in its metadata and behind its end.

    Behind its end phones put a film.
    """
    content = encoded("JPEG", Image.new("L", (64, 64)), progressive=True)
    marks = b"\xff\xda\0\1" * count
    return (
        content[:2]
        + b"\xff\xe2"
        + (2 + len(marks[:60_000])).to_bytes(2, "big")
        + marks[:60_000]
        + content[2:]
        + marks
    )


def bmp_of_runs(side: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, 0, 0, 0, 256, 0)
    # Each run skips 255 columns and 255 rows.
    return (
        b"BM"
        + struct.pack("<IHHI", 0, 0, 0, 54 + 1024)
        + header
        + bytes(1024)
        + b"\0\2\xff\xff" * (side // 255 + 2)
        + b"\0\1"
    )


def png_of_chunks(count: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    content = encoded("PNG", Image.new("L", (8, 8)))
    return content[:33] + chunk(b"prIv", b"") * count + content[33:]


def tiff_of_one_tile(side: int) -> bytes:
    content = encoded("TIFF", Image.new("L", (64, 64)))
    place = int.from_bytes(content[4:8], "little")
    entries = int.from_bytes(content[place : place + 2], "little")
    listed = [
        struct.unpack("<HHI4s", content[place + 2 + 12 * number : place + 14 + 12 * number])
        for number in range(entries)
    ]
    changed = []
    for tag, kind, count, value in listed:
        if tag == 273:
            changed.append((324, kind, count, value))
        elif tag == 279:
            changed.append((325, kind, count, value))
        elif tag != 278:
            changed.append((tag, kind, count, value))
    changed += [(322, 4, 1, struct.pack("<I", side)), (323, 4, 1, struct.pack("<I", side))]
    table = (
        struct.pack("<H", len(changed))
        + b"".join(struct.pack("<HHI4s", *one) for one in sorted(changed))
        + bytes(4)
    )
    start = len(content) + len(content) % 2
    return (
        bytes(content[:4])
        + struct.pack("<I", start)
        + bytes(content[8:])
        + bytes(len(content) % 2)
        + table
    )


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (jpeg_of_scans(101), "a JPEG of 101 scans, more than 100"),
        (jpeg_of_scans(100_000), "a JPEG of 100000 scans, more than 100"),
        (jpeg_of_segments(1100), "a JPEG of more than 1000 segments before its first scan"),
        (
            b"\xff\xd8" + b"\xff" * 20_000_000,
            "a JPEG with more than 10000 bytes between two segments",
        ),
        (b"\xff\xd8" + bytes(20_000_000), "a JPEG with more than 10000 bytes between two segments"),
        (b"P5 #" + b"x" * 30_000_000 + b"\n2 2 255 1234", "a header of more than 10000 bytes"),
        (b"P6" + b" " * 30_000_000 + b"2 2 255 123456789012", "a header of more than 10000 bytes"),
        (bmp_of_runs(8000), "a BMP with run lengths of 64000000 pixels, more than 4000000"),
        (png_of_chunks(MOST_CHUNKS + 1), "a PNG of more than 100000 chunks"),
        (
            b"P2 1 1 255\n" + b"1 " * 33_000_000,
            "numbers as text in 66000011 bytes, more than 64000000",
        ),
        (
            tiff_of_one_tile(16_000),
            "tiles of 16000 × 16000 pixels, more than data.max_pixels (64000000)",
        ),
    ],
    ids=[
        "scans",
        "many scans",
        "segments",
        "fill",
        "junk",
        "comment",
        "blanks",
        "runs",
        "chunks",
        "text",
        "tile",
    ],
)
def test_what_takes_too_long_is_refused_by_what_the_file_says(content: bytes, why: str) -> None:
    started = time.process_time()
    with pytest.raises(TooLarge) as caught:
        Decoding().decode(content)
    assert str(caught.value) == why
    # Not decoded at all: that would take from six seconds on.
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "content",
    [
        jpeg_of_scans(100),
        photograph_with_film(20_000),
        jpeg_of_segments(900),
        bmp_of_runs(1900),
        png_of_chunks(50_000),
        b"P2 2 2 255\n1 2 3 4\n",
        b"P5\n# by a program\n2 #w\n 2\n255\n" + b"#" * 20_000,
        encoded("TIFF", Image.new("L", (64, 64))),
    ],
    ids=["scans", "film", "segments", "runs", "chunks", "text", "comments", "strips"],
)
def test_what_is_within_the_limits_is_not_refused(content: bytes) -> None:
    assert why_refused(content) == ""


@pytest.mark.skipif(
    not hasattr(signal, "setitimer"), reason="this system has no timers of processor time"
)
def test_a_block_ends_when_its_seconds_are_used_up() -> None:
    with pytest.raises(TooSlow, match=r"more than 0\.2 seconds of the processor"), stopwatch(0.2):
        while True:
            np.zeros(10).sum()
    with stopwatch(0.2):
        time.sleep(0.4)


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(signal, "setitimer"), reason="this system has no timers of processor time"
)
def test_a_block_that_passes_over_exceptions_ends_too() -> None:
    def busy(seconds: float) -> None:
        started = time.process_time()
        while time.process_time() - started < seconds:
            np.zeros(10).sum()

    with pytest.raises(TooSlow), stopwatch(0.2):
        with suppress(Exception):
            busy(1)
        busy(20)


def call_without_end() -> None:
    with stopwatch(0.2):
        # Python acts upon signals when it is back.
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(signal, "setitimer"), reason="this system has no timers of processor time"
)
def test_a_call_without_end_ends_its_process() -> None:
    process = multiprocessing.get_context("spawn").Process(target=call_without_end)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGPROF


@pytest.mark.skipif(
    not hasattr(signal, "setitimer"), reason="this system has no timers of processor time"
)
def test_prepare_stops_and_names_the_picture_that_takes_too_long(
    photos: WriteImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(self: Decoding, file: object) -> Decoded:
        while True:
            np.zeros(10).sum()

    monkeypatch.setattr(module, "stopwatch", lambda: stopwatch(0.3))
    monkeypatch.setattr(Decoding, "decode", endless)
    root = photos({"cat": 2, "dog": 2})
    with pytest.raises(
        UserError,
        match=r"^cat/000\.png: takes more than 0\.3 seconds of the processor to decode; remove it",
    ):
        prepare_data.prepare(Data(source=f"folder:{root}", image_size=8), tmp_path / "prepared")


def test_a_picture_that_memory_does_not_suffice_for_is_named(
    photos: WriteImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(self: Decoding, file: object) -> Decoded:
        raise MemoryError

    monkeypatch.setattr(Decoding, "decode", out_of_memory)
    root = photos({"cat": 2, "dog": 2})
    with pytest.raises(UserError, match=r"^cat/000\.png: memory does not suffice to decode it"):
        prepare_data.prepare(Data(source=f"folder:{root}", image_size=8), tmp_path / "prepared")
