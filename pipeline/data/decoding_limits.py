"""Limits that keep out files which take far more time or memory than pictures do.

What is refused follows from what the file says, so that it is the same on every machine.
"""

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
"""Scans of a JPEG. Cameras and programs write a dozen at most, and each goes over all pixels."""

MOST_SEGMENTS = 1_000
"""Segments of a JPEG before its first scan.

Programs write a few there, and some 300 if a profile is large.
"""

MOST_BETWEEN = 10_000
"""Bytes between two segments of a JPEG, or in the header of a PBM, PGM or PPM.

Pillow reads them one by one.
"""

MOST_CHUNKS = 100_000
"""Chunks of a PNG. A gigabyte in the usual chunks of 8 KB has as many."""

MOST_PLAIN_BYTES = 64_000_000
"""Bytes of a PBM, PGM or PPM whose numbers are written as text."""

MOST_RLE_PIXELS = 4_000_000
"""Pixels of a BMP with run lengths, which Pillow decodes in Python."""

PROCESSOR_SECONDS = 60.0
"""Processor time of decoding. No picture that the rules above let pass should take as much.

It is long enough for every machine.
"""

_PNG = b"\x89PNG\r\n\x1a\n"

_JPEG = b"\xff\xd8"
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""A marker of a JPEG that is not part of a scan's data.

In that data 0xFF is followed by 0, or begins one of the eight markers at which a reader can begin
again.
"""
_SCAN = 0xDA
_END = 0xD9
_ALONE = (0x01, 0xD8)
"""Markers that no length follows."""

_BMP = b"BM"

_NETPBM = re.compile(rb"P[1-6]")
_PLAIN = (b"P1", b"P2", b"P3")
"""Beginnings of a PBM, PGM or PPM whose numbers are written as text."""
_BLANK = re.compile(rb"\s+|#[^\r\n]*[\r\n]?")
_NO_BLANK = re.compile(rb"[^\s#]+")

_TILE_WIDTH = 322
_TILE_HEIGHT = 323
"""Tags of a TIFF."""


class TooSlow(Exception):
    """Decoding an image has used up `PROCESSOR_SECONDS`."""


def why_refused(content: bytes) -> str:
    """Return why a file is not decoded; empty if it is."""
    if content.startswith(_JPEG):
        return _why_jpeg_refused(content)
    if content.startswith(_PNG) and len(content) > 12 * MOST_CHUNKS and _has_many_chunks(content):
        return f"a PNG of more than {MOST_CHUNKS} chunks"
    if _NETPBM.match(content):
        return _why_netpbm_refused(content)
    if content.startswith(_BMP):
        return _why_bmp_refused(content)
    return ""


def why_tiles_refused(image: Image.Image, max_pixels: int) -> str:
    """Return why a picture is refused for its tiles; empty if it is not.

    Args:
        image: A picture that was opened, and is not decoded yet.
        max_pixels: Pixels of the largest tile that is decoded.
    """
    tags = getattr(image, "tag_v2", {})
    width = tags.get(_TILE_WIDTH, 0)
    height = tags.get(_TILE_HEIGHT, 0)
    if isinstance(width, int) and isinstance(height, int) and width * height > max_pixels:
        return f"tiles of {width} × {height} pixels, more than data.max_pixels ({max_pixels})"
    return ""


def _why_jpeg_refused(content: bytes) -> str:
    # Counting these two bytes is fast, but they need not be markers: in metadata, and behind the
    # end, where phones put a film, they mean nothing.
    if content.count(bytes((0xFF, _SCAN))) > MOST_SCANS:
        scans = _count_scans(content)
        if scans > MOST_SCANS:
            return f"a JPEG of {scans} scans, more than {MOST_SCANS}"
    return _why_segments_refused(content)


def _count_scans(content: bytes) -> int:
    """Return how many scans a JPEG has up to its end, by its markers (ITU-T T.81, B.1)."""
    scans = 0
    place = len(_JPEG)
    while (marker := _MARKER.search(content, place)) is not None:
        kind = content[marker.start() + 1]
        place = marker.end()
        if kind == _END:
            break
        if kind == _SCAN:
            scans += 1
        if kind not in _ALONE:
            place += int.from_bytes(content[place : place + 2])
    return scans


def _why_segments_refused(content: bytes) -> str:
    """Return why what precedes a JPEG's first scan takes long to read; empty if it does not."""
    place = len(_JPEG)
    for _ in range(MOST_SEGMENTS):
        marker = _MARKER.search(content, place)
        start = marker.start() if marker else len(content)
        if start - place > MOST_BETWEEN:
            return f"a JPEG with more than {MOST_BETWEEN} bytes between two segments"
        if marker is None or content[start + 1] in (_SCAN, _END):
            return ""
        place = marker.end()
        if content[start + 1] not in _ALONE:
            place += int.from_bytes(content[place : place + 2])
    return f"a JPEG of more than {MOST_SEGMENTS} segments before its first scan"


def _why_netpbm_refused(content: bytes) -> str:
    if _measure_netpbm_header(content) > MOST_BETWEEN:
        return f"a header of more than {MOST_BETWEEN} bytes"
    if content.startswith(_PLAIN) and len(content) > MOST_PLAIN_BYTES:
        return f"numbers as text in {len(content)} bytes, more than {MOST_PLAIN_BYTES}"
    return ""


def _measure_netpbm_header(content: bytes) -> int:
    """Return about how many bytes stand before the pixels of a PBM, PGM or PPM.

    They are comments and three numbers. Reading ends after more than `MOST_BETWEEN` bytes.
    """
    place = 2
    for _ in range(3):
        while place <= MOST_BETWEEN:
            blank = _BLANK.match(content, place, place + MOST_BETWEEN + 1)
            if blank is None:
                break
            place = blank.end()
        number = _NO_BLANK.match(content, place, place + MOST_BETWEEN + 1)
        if number is not None:
            place = number.end()
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


def _why_bmp_refused(content: bytes) -> str:
    header_size = int.from_bytes(content[14:18], "little")
    compression = int.from_bytes(content[30:34], "little")
    if header_size < 40 or compression not in (1, 2):
        # It has no run lengths.
        return ""
    width = int.from_bytes(content[18:22], "little", signed=True)
    height = int.from_bytes(content[22:26], "little", signed=True)
    pixels = abs(width * height)
    if pixels > MOST_RLE_PIXELS:
        return f"a BMP with run lengths of {pixels} pixels, more than {MOST_RLE_PIXELS}"
    return ""


@contextmanager
def stopwatch(seconds: float = PROCESSOR_SECONDS) -> Iterator[None]:
    """End the block when it has used so many seconds of the processor.

    It does so in the main thread only, and if the system can. The block ends between two steps of
    Python. At twice as many seconds a process of a pool is ended wherever it is.

    Raises:
        TooSlow: The block has used so many seconds.
    """
    if (
        not hasattr(signal, "setitimer")
        or threading.current_thread() is not threading.main_thread()
    ):
        yield
        return

    if signal.getsignal(signal.SIGVTALRM) is not _stop:
        # Only the first time: it takes longer than the rest of this function, which is called for
        # every image. Nobody else here uses the signal.
        signal.signal(signal.SIGVTALRM, _stop)
    # The signal comes again every second, since what reads metadata may pass over any exception.
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 1)
    if multiprocessing.parent_process() is not None:
        # An exception comes only when a call of compiled code has returned. If it does not return,
        # this timer's signal makes the system end the worker process.
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
