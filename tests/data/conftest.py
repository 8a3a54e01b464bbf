"""Folders of small pictures."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.image_store import ShardWriter, Store

WriteImages = Callable[..., Path]


def write_image(file: Path, size: tuple[int, int] = (12, 10)) -> None:
    """Write a picture whose pixels are of its own.

    They are seeded by its path below the class folder's parent.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32("/".join(file.parts[-3:]).encode()))
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)


def write_store(folder: Path, images: Iterable[NDArray[np.uint8]], num_shards: int = 1) -> Store:
    """Store images in order, taking turns among so many shards."""
    writers = [ShardWriter(folder) for _ in range(num_shards)]
    index = [
        (number % num_shards, writers[number % num_shards].append(pixels), *pixels.shape[1:])
        for number, pixels in enumerate(images)
    ]
    for writer in writers:
        writer.close()
    return Store(folder, [writer.name for writer in writers], np.array(index, dtype=np.int64))


@pytest.fixture
def photos(tmp_path: Path) -> WriteImages:
    """Return a function that writes so many pictures below ``photos``.

    It is called as ``photos({"cat": 3, "train/dog": 2})``.
    """

    def write(counts: dict[str, int], root: str = "photos") -> Path:
        for folder, count in counts.items():
            for number in range(count):
                write_image(tmp_path / root / folder / f"{number:03d}.png")
        return tmp_path / root

    return write
