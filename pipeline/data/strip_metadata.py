"""Files of pictures without their metadata, which may be damaged although the pixels are not."""

from __future__ import annotations

from collections.abc import Iterator

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_JPEG = b"\xff\xd8"
_JPEG_SCAN = 0xDA
_JPEG_ALONE = (0x01, *range(0xD0, 0xD9))
"""Markers that no length follows."""
_JPEG_METADATA = (*range(0xE1, 0xEE), 0xEF, 0xFE)
"""Segments of applications and comments.

Those of JFIF and Adobe are not among them, since they say what the channels mean.
"""


def strip_metadata(content: bytes) -> bytes:
    """Return a PNG or JPEG with what its pixels need, and nothing else.

    The result is empty for a file of another format, and for a file that ends too early.
    """
    if content.startswith(_PNG):
        return _strip_png(content)
    if content.startswith(_JPEG):
        return _strip_jpeg(content)
    return b""


def _strip_png(content: bytes) -> bytes:
    chunks = list(_split_png(content))
    if not chunks or chunks[-1][0] != b"IEND":
        return b""
    return _PNG + b"".join(chunk for kind, chunk in chunks if kind in _PNG_PIXELS)


def _strip_jpeg(content: bytes) -> bytes:
    segments = list(_split_jpeg(content))
    if not segments or segments[-1][0] != _JPEG_SCAN:
        return b""
    kept = [segment for marker, segment in segments if marker not in _JPEG_METADATA]
    return _JPEG + b"".join(kept)


def _split_png(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and bytes of each chunk, up to the first that is cut off."""
    place = len(_PNG)
    while place + 12 <= len(content):
        end = place + 12 + int.from_bytes(content[place : place + 4])
        if end > len(content):
            return
        yield content[place + 4 : place + 8], content[place:end]
        place = end


def _split_jpeg(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield marker and bytes of each segment; the first scan and all that follows are one."""
    place = len(_JPEG)
    while place + 4 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if marker == 0xFF:
            place += 1
            continue
        if marker == _JPEG_SCAN:
            yield marker, content[place:]
            return
        end = place + 2
        if marker not in _JPEG_ALONE:
            end += int.from_bytes(content[place + 2 : place + 4])
        if end > len(content):
            return
        yield marker, content[place:end]
        place = end
