"""Images decoded once into one memory-mapped file, so that no epoch decodes again.

Two files: ``NAME.bin`` holds the pixels of all images one after another, uint8, each of shape
(3, height, width); ``NAME.npy`` holds one row (offset, height, width) per image and is written last, so
that its presence means the pixels are complete.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Given = TypeVar("Given")
Result = TypeVar("Result")


class Store:
    """Random access to decoded images; safe to share with forked or spawned worker processes."""

    def __init__(self, name: Path) -> None:
        self._name = name
        self._index: NDArray[np.int64] = np.load(name.with_suffix(".npy"))
        self._pixels: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self._index)

    def __getstate__(self) -> dict[str, object]:
        # A memory map pickles as a copy of the whole file; each process maps it anew.
        return {**self.__dict__, "_pixels": None}

    def __getitem__(self, position: int) -> NDArray[np.uint8]:
        """Return one image, of shape (3, height, width); read-only."""
        if self._pixels is None:
            self._pixels = np.memmap(self._name.with_suffix(".bin"), dtype=np.uint8, mode="r")
        offset, height, width = (int(value) for value in self._index[position])
        return self._pixels[offset : offset + 3 * height * width].reshape(3, height, width)


def is_complete(name: Path) -> bool:
    """Whether both files are there and of one another's size."""
    index, pixels = name.with_suffix(".npy"), name.with_suffix(".bin")
    if not (index.is_file() and pixels.is_file()):
        return False
    offset, height, width = (int(value) for value in np.load(index)[-1])
    return pixels.stat().st_size == offset + 3 * height * width


def write_store(name: Path, images: Iterable[NDArray[np.uint8]]) -> None:
    """Write the two files whole or not at all.

    Args:
        name: Path of the two files, without suffix.
        images: Pixels of one image after another, each of shape (3, height, width).
    """
    temporary = {suffix: name.with_name(f".{name.name}-{os.getpid()}{suffix}") for suffix in (".bin", ".npy")}
    rows: list[tuple[int, int, int]] = []
    offset = 0
    try:
        with temporary[".bin"].open("wb") as file:
            for pixels in images:
                file.write(pixels.tobytes())
                rows.append((offset, pixels.shape[1], pixels.shape[2]))
                offset += pixels.size
            file.flush()
            os.fsync(file.fileno())
        np.save(temporary[".npy"], np.array(rows, dtype=np.int64))
        for suffix, file_name in temporary.items():
            os.replace(file_name, name.with_suffix(suffix))
    finally:
        for file_name in temporary.values():
            file_name.unlink(missing_ok=True)


def in_threads(function: Callable[[Given], Result], items: Iterable[Given]) -> Iterator[Result]:
    """Yield ``function(item)`` in order, a bounded number of items ahead. Pillow decodes outside the GIL."""
    workers = os.cpu_count() or 1
    remaining = iter(items)
    with ThreadPoolExecutor(workers) as pool:
        pending: list[Future[Result]] = [pool.submit(function, item) for item in islice(remaining, 4 * workers)]
        try:
            while pending:
                yield pending.pop(0).result()
                pending.extend(pool.submit(function, item) for item in islice(remaining, 1))
        finally:
            for future in pending:
                future.cancel()
