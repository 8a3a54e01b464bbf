"""A source of labelled images: a list of items, and a reader that opens one of them."""

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
"""Most bytes of an image's file or of a list: far more than any has, and few enough for memory."""

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
"""The three splits by the names that people give them, in lower case."""


@dataclass(frozen=True, slots=True)
class Item:
    """One labelled image.

    Attributes:
        path: Name of the image, which no other image of the source has.
        label: Class name.
        split: Split of the image; empty if the source leaves the choice to us.
        group: Group of the image. Images of one group (a patient, a scene) stay on one side of a
            split; if it is empty, the image is a group of its own.
    """

    path: str
    label: str
    split: str = ""
    group: str = ""


class Reader(ABC):
    """Opens the images of a source; it is small, so that it can be sent to worker processes."""

    @abstractmethod
    def fingerprint(self, path: str) -> str:
        """Return a text that changes whenever the content may have changed, without reading it.

        Raises:
            OSError: There is no file of that name.
        """

    @abstractmethod
    def read(self, path: str) -> bytes:
        """Return the content; its SHA-256 identifies the image.

        Raises:
            OSError: The file cannot be read.
        """

    @abstractmethod
    def image(self, content: bytes, decoding: Decoding) -> Decoded:
        """Return the image of a content that `read` has returned.

        An image of more than `max_pixels` is refused if it would have to be decoded.

        Raises:
            Any of `pipeline.data.decode.UNREADABLE`: The content is no image, or a damaged one.
        """


@dataclass(frozen=True)
class Files(Reader):
    """Image files below one folder."""

    root: Path

    def fingerprint(self, path: str) -> str:
        # The time of change cannot be set back. The time of modification can, by `cp -p` or
        # `touch -r`. The path stays a text: as a Path it takes six times as long, for every image.
        status = os.stat(f"{self.root}{os.sep}{path}")  # noqa: PTH116
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
    """Pixels in an uncompressed file; one image at a time is mapped into memory.

    Attributes:
        file: File that holds the pixels as bytes.
        offset: Place in the file where the pixels begin, in bytes.
        shape: (images, height, width) or (images, height, width, 3).
        order: C, or F if the first index varies fastest.
    """

    file: Path
    offset: int
    shape: tuple[int, ...]
    order: Literal["C", "F"]

    def __getitem__(self, number: int, /) -> NDArray[np.uint8]:
        # A map that is kept would add every page ever read to this process's memory.
        pixels = np.memmap(self.file, np.uint8, "r", self.offset, self.shape, self.order)
        return np.array(pixels[number])


@dataclass(frozen=True)
class Arrays(Reader):
    """Images that are pixels already.

    Attributes:
        arrays: Arrays by name; each is uint8 of shape (images, height, width) or (images, height,
            width, 3). An image's path is ``NAME/NUMBER``, with leading zeros.
        version: A text that changes when the arrays may have changed.
    """

    arrays: Mapping[str, Pixels]
    version: str

    def fingerprint(self, path: str) -> str:
        return self.version

    def read(self, path: str) -> bytes:
        name, _, number = path.rpartition("/")
        pixels = self.arrays[name][int(number)]
        shape = pixels.shape if pixels.ndim == 3 else (*pixels.shape, 1)
        return np.array(shape, dtype="<u4").tobytes() + pixels.tobytes()

    def image(self, content: bytes, decoding: Decoding) -> Decoded:
        height, width, channels = np.frombuffer(content, dtype="<u4", count=3)
        pixels = np.frombuffer(content, dtype=np.uint8, offset=12).reshape(height, width, channels)
        if channels == 1:
            pixels = pixels[:, :, 0]
        return Decoded(Image.fromarray(pixels).convert("RGB"))

    @staticmethod
    def path(name: str, number: int) -> str:
        """Return an image's path."""
        return f"{name}/{number:06d}"


@dataclass
class Source:
    """A set of labelled images.

    Attributes:
        description: Text that says where the images are, for people and for the recorded dataset.
        reader: Opens the images.
        items: Every image, in a fixed order.
        ignored: Number of files that were passed over, by extension.
        warnings: What is unusual about the places where the images lie.
    """

    description: str
    reader: Reader
    items: list[Item]
    ignored: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
