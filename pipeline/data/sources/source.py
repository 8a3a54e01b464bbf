"""What a source of labelled images is: a list of items, and a reader that opens one of them."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.decode import Decoded, Decoding
from pipeline.files import read_regular

MOST_BYTES = 1 << 30
"""Of an image's file or a list: far more than any has, and what memory takes."""

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""How people name the three, in lower case."""


@dataclass(frozen=True, slots=True)
class Item:
    """One labelled image.

    Attributes:
        path: Its name, of its own within the source.
        label: Class name.
        split: Empty where the source leaves the choice to us.
        group: Images of one group (a patient, a scene) stay on one side of a split; empty: of its own.
    """

    path: str
    label: str
    split: str = ""
    group: str = ""


class Reader(ABC):
    """Opens the images of a source; small, so that worker processes can be given one."""

    @abstractmethod
    def fingerprint(self, path: str) -> str:
        """Return a text that changes whenever the content may have changed, without reading it.

        Raises:
            OSError: There is no such file.
        """

    @abstractmethod
    def read(self, path: str) -> bytes:
        """Return the content, of which the SHA-256 identifies the image.

        Raises:
            OSError: The file cannot be read.
        """

    @abstractmethod
    def image(self, content: bytes, decoding: Decoding) -> Decoded:
        """Return the image that `read` has brought; one of more than `max_pixels` is refused where it would take decoding.

        Raises:
            Any of `pipeline.data.decode.UNREADABLE`: It is no image, or a damaged one.
        """


@dataclass(frozen=True)
class Files(Reader):
    """Image files below one folder."""

    root: Path

    def fingerprint(self, path: str) -> str:
        # The time of change cannot be set back, as that of modification can by `cp -p` or `touch -r`.
        status = os.stat(f"{self.root}{os.sep}{path}")  # noqa: PTH116 - as a Path it takes six times as long, for every image
        return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}"

    def read(self, path: str) -> bytes:
        return read_regular(f"{self.root}{os.sep}{path}", MOST_BYTES)

    def image(self, content: bytes, decoding: Decoding) -> Decoded:
        return decoding.decode(content)


class Pixels(Protocol):
    """Pixels of many images: a NumPy array, or something that reads from one on disk."""

    def __getitem__(self, number: int, /) -> NDArray[np.uint8]:
        """Return one image, of shape (height, width) or (height, width, 3)."""
        ...


@dataclass(frozen=True)
class PixelsOnDisk:
    """Pixels in an uncompressed file, of which one image at a time is mapped into memory.

    Attributes:
        file: Holds them as bytes.
        offset: Where in it they begin.
        shape: (images, height, width) or (images, height, width, 3).
        order: C, or F where the first index varies fastest.
    """

    file: Path
    offset: int
    shape: tuple[int, ...]
    order: Literal["C", "F"]

    def __getitem__(self, number: int, /) -> NDArray[np.uint8]:
        # A map that is kept would add every page ever read to this process's memory.
        return np.array(
            np.memmap(self.file, np.uint8, "r", self.offset, self.shape, self.order)[number]
        )


@dataclass(frozen=True)
class Arrays(Reader):
    """Images that are pixels already.

    Attributes:
        arrays: By name; each uint8 of shape (images, height, width) or (images, height, width, 3). An image's path
            is ``NAME/NUMBER``, with leading zeros.
        version: Changes when the arrays may have changed.
    """

    arrays: Mapping[str, Pixels]
    version: str

    def fingerprint(self, path: str) -> str:
        return self.version

    def read(self, path: str) -> bytes:
        name, _, number = path.rpartition("/")
        pixels = self.arrays[name][int(number)]
        shape = np.array(
            pixels.shape[:2] + (1,) * (pixels.ndim == 2) + pixels.shape[2:], dtype="<u4"
        )
        return shape.tobytes() + pixels.tobytes()

    def image(self, content: bytes, decoding: Decoding) -> Decoded:
        height, width, channels = np.frombuffer(content, dtype="<u4", count=3)
        pixels = np.frombuffer(content, dtype=np.uint8, offset=12).reshape(height, width, channels)
        return Decoded(Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels).convert("RGB"))

    @staticmethod
    def path(name: str, number: int) -> str:
        """Return an image's path."""
        return f"{name}/{number:06d}"


@dataclass
class Source:
    """A set of labelled images.

    Attributes:
        description: Where the images are, for people and for the recorded dataset.
        reader: Opens them.
        items: Every image, in a fixed order.
        ignored: Files that were passed over, counted by extension.
        warnings: What is unusual about where they lie.
    """

    description: str
    reader: Reader
    items: list[Item]
    ignored: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
