"""Images decoded once into memory-mapped files, so that no epoch decodes again.

A shard, ``prepared/images-RECIPE/NAME.bin``, holds the pixels of images one after another, uint8,
each of shape (3, height, width). Only the process that made it writes to it, and it only appends.
The catalogue names a place in a shard only after the pixels there have reached the disk. What
follows the last place that the catalogue names was written by a process that was killed, and is
never read.

All that stands below ``prepared`` may be deleted by hand while nothing prepares or trains, whole or
folder by folder: the next prepare decodes anew what is missing. Folders ``images-…`` of other sizes
or of an older version are used by nobody else.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Container
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipeline.data.decode import Decoding
from pipeline.data.sources.source import Reader

_DAY = 24 * 60 * 60


class Store:
    """Random access to decoded images; safe to share with forked or spawned worker processes.

    Args:
        folder: Folder of the shards.
        shards: Names of the shards.
        index: One row (number of the shard, offset, height, width) per image, shape (images, 4).
    """

    def __init__(self, folder: Path, shards: list[str], index: NDArray[np.int64]) -> None:
        self._folder = folder
        self._shards = shards
        self._index = index
        self._maps: dict[int, NDArray[np.uint8]] = {}

    def __len__(self) -> int:
        return len(self._index)

    def __getstate__(self) -> dict[str, object]:
        # A memory map pickles as a copy of the whole file; each process maps it anew.
        return {**self.__dict__, "_maps": {}}

    def __getitem__(self, position: int) -> NDArray[np.uint8]:
        """Return one image, of shape (3, height, width). It is read-only."""
        shard, offset, height, width = self._index[position].tolist()
        pixels = self._maps.get(shard)
        if pixels is None:
            # A plain array over the map: slices of a memmap object cost several times as much.
            file = self._folder / self._shards[shard]
            pixels = np.asarray(np.memmap(file, dtype=np.uint8, mode="r"))
            self._maps[shard] = pixels
        return pixels[offset : offset + 3 * height * width].reshape(3, height, width)


class Undecoded:
    """The same images as in a `Store`, each decoded when it is asked for.

    Args:
        reader: Reader of the source.
        paths: One path per image.
        decoding: How a file becomes pixels.
    """

    def __init__(self, reader: Reader, paths: list[str], decoding: Decoding) -> None:
        self._reader = reader
        self._paths = paths
        self._decoding = decoding

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, position: int) -> NDArray[np.uint8]:
        """Return one image, of shape (3, height, width)."""
        decoded = self._reader.image(self._reader.read(self._paths[position]), self._decoding)
        return self._decoding.resize(decoded.image)


class ShardWriter:
    """Appends to a shard of its own. The file is made with the first image."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.name = f"{uuid.uuid4().hex}.bin"
        self._file: BinaryIO | None = None

    def append(self, pixels: NDArray[np.uint8]) -> int:
        """Write one image, shape (3, height, width), and return where it begins.

        Raises:
            OSError: The disk is full, or the folder cannot be written to.
        """
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = (self._folder / self.name).open("xb")
        offset = self._file.tell()
        self._file.write(pixels.tobytes())
        return offset

    def flush(self) -> None:
        """Hand everything over to the operating system."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Close the shard's file; nothing is appended any more."""
        if self._file is not None:
            self._file.close()


def sync(folder: Path, shard: str) -> None:
    """Wait until a shard's pixels have reached the disk."""
    descriptor = os.open(folder / shard, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def shard_size(folder: Path, shard: str) -> int:
    """Return the number of bytes of a shard; 0 if it is missing."""
    try:
        return (folder / shard).stat().st_size
    except FileNotFoundError:
        return 0


def find_lost_shards(folder: Path, shards: list[str], index: NDArray[np.int64]) -> list[str]:
    """Return the shards that are missing, or shorter than the index of `Store` says."""
    ends = np.zeros(len(shards), dtype=np.int64)
    np.maximum.at(ends, index[:, 0], index[:, 1] + 3 * index[:, 2] * index[:, 3])
    return [
        shard
        for shard, end in zip(shards, ends.tolist(), strict=True)
        if shard_size(folder, shard) < end
    ]


def remove_unnamed(folder: Path, named: Container[str]) -> None:
    """Remove the shards of a folder that the catalogue does not name.

    Nobody can read from them. Shards of the last day stay: another process may be about to name
    them.
    """
    for file in folder.glob("*.bin"):
        with suppress(OSError):
            if file.name not in named and time.time() - file.stat().st_mtime > _DAY:
                file.unlink()
