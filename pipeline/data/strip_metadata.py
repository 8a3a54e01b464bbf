"""Files of pictures without what does not belong to their pixels, which may be damaged where the pixels are not."""

from __future__ import annotations

from collections.abc import Iterator

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_JPEG = b"\xff\xd8"
_JPEG_SCAN = 0xDA
_JPEG_ALONE = (0x01, *range(0xD0, 0xD9))
"""Markers that no length follows."""
_JPEG_METADATA = (*range(0xE1, 0xEE), 0xEF, 0xFE)
"""Segments of applications and comments, but for JFIF's and Adobe's, which say what the channels mean."""


def strip_metadata(content: bytes) -> bytes:
    """Return a PNG or JPEG with what its pixels need and nothing else; empty for another file, or one that ends too early."""
    if content.startswith(_PNG):
        chunks = list(_png_chunks(content))
        is_whole = bool(chunks) and chunks[-1][0] == b"IEND"
        return (
            _PNG + b"".join(chunk for kind, chunk in chunks if kind in _PNG_PIXELS)
            if is_whole
            else b""
        )
    if content.startswith(_JPEG):
        segments = list(_jpeg_segments(content))
        has_scan = bool(segments) and segments[-1][0] == _JPEG_SCAN
        return (
            _JPEG
            + b"".join(segment for marker, segment in segments if marker not in _JPEG_METADATA)
            if has_scan
            else b""
        )
    return b""


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and bytes of each chunk, up to the first that is cut off."""
    place = len(_PNG)
    while place + 12 <= len(content):
        end = place + 12 + int.from_bytes(content[place : place + 4])
        if end > len(content):
            return
        yield content[place + 4 : place + 8], content[place:end]
        place = end


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield marker and bytes of each segment; from the first scan on, all that follows as one."""
    place = len(_JPEG)
    while place + 4 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if marker == 0xFF:
            place += 1
            continue
        if marker == _JPEG_SCAN:
            yield marker, content[place:]
            return
        end = (
            place
            + 2
            + (0 if marker in _JPEG_ALONE else int.from_bytes(content[place + 2 : place + 4]))
        )
        if end > len(content):
            return
        yield marker, content[place:end]
        place = end
