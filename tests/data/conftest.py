"""Folders of small pictures."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WriteImages = Callable[..., Path]


def write_image(file: Path, size: tuple[int, int] = (12, 10)) -> None:
    """Write a picture whose pixels are of its own: seeded by its path below the class folder's parent."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32("/".join(file.parts[-3:]).encode()))
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)


@pytest.fixture
def photos(tmp_path: Path) -> WriteImages:
    """Return a function that writes so many pictures below ``photos``: ``photos({"cat": 3, "train/dog": 2})``."""

    def write(counts: dict[str, int], root: str = "photos") -> Path:
        for folder, count in counts.items():
            for number in range(count):
                write_image(tmp_path / root / folder / f"{number:03d}.png")
        return tmp_path / root

    return write
