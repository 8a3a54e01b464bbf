"""Files of pictures that take far more time or memory than pictures do, told by what the file says, on any machine alike."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from PIL import Image

MOST_SCANS = 100
"""Of a JPEG: cameras and programs write a dozen at most, and each goes over all pixels."""
MOST_CHUNKS = 100_000
"""Of a PNG: a gigabyte in the usual 8 KB has as many."""
MOST_PLAIN_BYTES = 64_000_000
"""Of a PBM, PGM or PPM whose numbers are written as text."""
MOST_RLE_PIXELS = 4_000_000
"""Of a BMP with run lengths, which Pillow decodes in Python."""
PROCESSOR_SECONDS = 60.0
"""What no picture that the rules above let pass should take on any machine."""

_PNG, _JPEG, _BMP, _PLAIN = b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"BM", (b"P1", b"P2", b"P3")
_SCAN = b"\xff\xda"
_TILE_WIDTH, _TILE_HEIGHT = 322, 323


class TooSlow(Exception):
    """Decoding an image has used up `PROCESSOR_SECONDS`."""


def refusal(content: bytes) -> str:
    """Return why a file is not decoded; empty where it is."""
    if content.startswith(_JPEG) and (scans := content.count(_SCAN)) > MOST_SCANS:
        # Within a scan the marker cannot stand; in a thumbnail of the metadata it may, a few times.
        return f"a JPEG of {scans} scans, more than {MOST_SCANS}"
    if content.startswith(_PNG) and len(content) > 12 * MOST_CHUNKS and _has_many_chunks(content):
        return f"a PNG of more than {MOST_CHUNKS} chunks"
    if content.startswith(_PLAIN) and len(content) > MOST_PLAIN_BYTES:
        return f"numbers as text in {len(content)} bytes, more than {MOST_PLAIN_BYTES}"
    if content.startswith(_BMP) and (pixels := _rle_pixels(content)) > MOST_RLE_PIXELS:
        return f"a BMP with run lengths of {pixels} pixels, more than {MOST_RLE_PIXELS}"
    return ""


def too_large_tiles(image: Image.Image, max_pixels: int) -> str:
    """Return why a picture that was opened, and is not decoded yet, is refused for its tiles; empty where it is not."""
    tags = getattr(image, "tag_v2", {})
    width, height = tags.get(_TILE_WIDTH, 0), tags.get(_TILE_HEIGHT, 0)
    if isinstance(width, int) and isinstance(height, int) and width * height > max_pixels:
        return f"tiles of {width} × {height} pixels, more than data.max_pixels ({max_pixels})"
    return ""


def _has_many_chunks(content: bytes) -> bool:
    place = len(_PNG)
    for _ in range(MOST_CHUNKS):
        if place + 12 > len(content):
            return False
        place += 12 + int.from_bytes(content[place : place + 4])
    return place + 12 <= len(content)


def _rle_pixels(content: bytes) -> int:
    """Return the pixels of a BMP with run lengths; 0 of any other."""
    if int.from_bytes(content[14:18], "little") < 40 or int.from_bytes(content[30:34], "little") not in (1, 2):
        return 0
    width, height = (int.from_bytes(content[place : place + 4], "little", signed=True) for place in (18, 22))
    return abs(width * height)


@contextmanager
def stopwatch(seconds: float = PROCESSOR_SECONDS) -> Iterator[None]:
    """End the block when it has used so many seconds of the processor, where the system can, in the main thread.

    Between two steps of Python; at twice as many seconds a process of a pool is ended wherever it is.

    Raises:
        TooSlow: It has.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
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
