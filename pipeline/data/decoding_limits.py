"""Files of pictures that take far more time or memory than pictures do, told by what the file says, on any machine alike."""

from __future__ import annotations

import multiprocessing
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from PIL import Image

MOST_SCANS = 100
"""Of a JPEG: cameras and programs write a dozen at most, and each goes over all pixels."""
MOST_SEGMENTS = 1_000
"""Of a JPEG before its first scan, where programs write a few, and some 300 where a profile is large."""
MOST_BETWEEN = 10_000
"""Bytes between two segments of a JPEG, or in the header of a PBM, PGM or PPM, which Pillow reads one by one."""
MOST_CHUNKS = 100_000
"""Of a PNG: a gigabyte in the usual 8 KB has as many."""
MOST_PLAIN_BYTES = 64_000_000
"""Of a PBM, PGM or PPM whose numbers are written as text."""
MOST_RLE_PIXELS = 4_000_000
"""Of a BMP with run lengths, which Pillow decodes in Python."""
PROCESSOR_SECONDS = 60.0
"""What no picture that the rules above let pass should take on any machine."""

_PNG, _JPEG, _BMP, _PLAIN = b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"BM", (b"P1", b"P2", b"P3")
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""In the data of a scan, 0xFF is followed by 0, or is one of eight marks to begin again at."""
_SCAN, _END, _ALONE = 0xDA, 0xD9, (0x01, 0xD8)
_NETPBM, _BLANK, _NO_BLANK = (
    re.compile(rb"P[1-6]"),
    re.compile(rb"\s+|#[^\r\n]*[\r\n]?"),
    re.compile(rb"[^\s#]+"),
)
_TILE_WIDTH, _TILE_HEIGHT = 322, 323


class TooSlow(Exception):
    """Decoding an image has used up `PROCESSOR_SECONDS`."""


def why_refused(content: bytes) -> str:
    """Return why a file is not decoded; empty where it is."""
    if content.startswith(_JPEG):
        return _of_jpeg(content)
    if content.startswith(_PNG) and len(content) > 12 * MOST_CHUNKS and _has_many_chunks(content):
        return f"a PNG of more than {MOST_CHUNKS} chunks"
    if _NETPBM.match(content):
        return _of_netpbm(content)
    if content.startswith(_BMP) and (pixels := _rle_pixels(content)) > MOST_RLE_PIXELS:
        return f"a BMP with run lengths of {pixels} pixels, more than {MOST_RLE_PIXELS}"
    return ""


def why_tiles_refused(image: Image.Image, max_pixels: int) -> str:
    """Return why a picture that was opened, and is not decoded yet, is refused for its tiles; empty where it is not."""
    tags = getattr(image, "tag_v2", {})
    width, height = tags.get(_TILE_WIDTH, 0), tags.get(_TILE_HEIGHT, 0)
    if isinstance(width, int) and isinstance(height, int) and width * height > max_pixels:
        return f"tiles of {width} × {height} pixels, more than data.max_pixels ({max_pixels})"
    return ""


def _of_jpeg(content: bytes) -> str:
    # Counted first, as that is fast: in metadata, and behind the end, where phones put a film, these bytes mean nothing.
    if content.count(bytes((0xFF, _SCAN))) > MOST_SCANS and (scans := _scans(content)) > MOST_SCANS:
        return f"a JPEG of {scans} scans, more than {MOST_SCANS}"
    return _slow_segments(content)


def _scans(content: bytes) -> int:
    """Return how many scans a JPEG has up to its end, by its markers (ITU-T T.81, B.1)."""
    place, scans = len(_JPEG), 0
    while (marker := _MARKER.search(content, place)) is not None:
        kind, place = content[marker.start() + 1], marker.end()
        if kind == _END:
            break
        scans += kind == _SCAN
        if kind not in _ALONE:
            place += int.from_bytes(content[place : place + 2])
    return scans


def _slow_segments(content: bytes) -> str:
    """Return why what stands before a JPEG's first scan takes long to read; empty where it does not."""
    place = len(_JPEG)
    for _ in range(MOST_SEGMENTS):
        marker = _MARKER.search(content, place)
        if (marker.start() if marker else len(content)) - place > MOST_BETWEEN:
            return f"a JPEG with more than {MOST_BETWEEN} bytes between two segments"
        if marker is None or content[marker.start() + 1] in (_SCAN, _END):
            return ""
        place = marker.end()
        if content[marker.start() + 1] not in _ALONE:
            place += int.from_bytes(content[place : place + 2])
    return f"a JPEG of more than {MOST_SEGMENTS} segments before its first scan"


def _of_netpbm(content: bytes) -> str:
    if _netpbm_header(content) > MOST_BETWEEN:
        return f"a header of more than {MOST_BETWEEN} bytes"
    if content.startswith(_PLAIN) and len(content) > MOST_PLAIN_BYTES:
        return f"numbers as text in {len(content)} bytes, more than {MOST_PLAIN_BYTES}"
    return ""


def _netpbm_header(content: bytes) -> int:
    """Return about how many bytes stand before a PBM's, PGM's or PPM's pixels, or more than `MOST_BETWEEN`: comments and three numbers."""
    place = 2
    for _ in range(3):
        while (
            blank := _BLANK.match(content, place, place + MOST_BETWEEN + 1)
        ) is not None and place <= MOST_BETWEEN:
            place = blank.end()
        number = _NO_BLANK.match(content, place, place + MOST_BETWEEN + 1)
        place = number.end() if number else place
        if place > MOST_BETWEEN:
            break
    return place


def _has_many_chunks(content: bytes) -> bool:
    place = len(_PNG)
    for _ in range(MOST_CHUNKS):
        if place + 12 > len(content):
            return False
        place += 12 + int.from_bytes(content[place : place + 4])
    return place + 12 <= len(content)


def _rle_pixels(content: bytes) -> int:
    """Return the pixels of a BMP with run lengths; 0 of any other."""
    if int.from_bytes(content[14:18], "little") < 40 or int.from_bytes(
        content[30:34], "little"
    ) not in (1, 2):
        return 0
    width, height = (
        int.from_bytes(content[place : place + 4], "little", signed=True) for place in (18, 22)
    )
    return abs(width * height)


@contextmanager
def stopwatch(seconds: float = PROCESSOR_SECONDS) -> Iterator[None]:
    """End the block when it has used so many seconds of the processor, where the system can, in the main thread.

    Between two steps of Python; at twice as many seconds a process of a pool is ended wherever it is.

    Raises:
        TooSlow: It has.
    """
    if (
        not hasattr(signal, "setitimer")
        or threading.current_thread() is not threading.main_thread()
    ):
        yield
        return

    if signal.getsignal(signal.SIGVTALRM) is not _stop:
        # Once, since it takes longer than the rest of this, for every image; nobody else here uses the signal.
        signal.signal(signal.SIGVTALRM, _stop)
    # Again and again: what reads metadata may pass over any exception.
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 1)
    if multiprocessing.parent_process() is not None:
        # Of a single call of compiled code, the end of which no exception comes before, the system ends a worker process.
        signal.setitimer(signal.ITIMER_PROF, 2 * seconds)
    try:
        yield
    except TooSlow:
        raise TooSlow(f"takes more than {seconds:g} seconds of the processor to decode") from None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)


def _stop(number: int, frame: FrameType | None) -> None:
    raise TooSlow
