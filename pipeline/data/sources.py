"""Where labelled images come from: each source lists its images and opens one of them."""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data.decode import EXTENSIONS
from pipeline.errors import UserError, nearest, unknown_name

SPLITS = ("train", "val", "test")
SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
SOURCES = ("digits", "folder:PATH")


@dataclass(frozen=True)
class Item:
    """One labelled image. `split` is empty where the source leaves the choice to us."""

    path: str
    label: str
    split: str = ""


class Source(ABC):
    """A set of labelled images.

    Attributes:
        description: Where the images are, for people and for the recorded dataset.
        items: Every image, in a fixed order.
    """

    description: str
    items: list[Item]

    @abstractmethod
    def read(self, item: Item) -> bytes:
        """Return the encoded image.

        Raises:
            OSError: The file cannot be read.
        """

    def content_hash(self, item: Item) -> str:
        """Return the SHA-256 of the encoded image, in hex."""
        return hashlib.sha256(self.read(item)).hexdigest()


class Digits(Source):
    """Scikit-learn's 1,797 handwritten digits of 8 by 8 pixels, grey levels 0 to 16."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        self.description = "scikit-learn digits"
        self._pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
        self._index = {f"digits/{i:04d}.png": i for i in range(len(digits.target))}
        self.items = [Item(path, str(label)) for path, label in zip(self._index, digits.target, strict=True)]

    def read(self, item: Item) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(self._pixels[self._index[item.path]]).save(buffer, "PNG", compress_level=0)
        return buffer.getvalue()

    def content_hash(self, item: Item) -> str:
        # Of the pixels: the bytes of an encoded PNG may change with Pillow's version.
        return hashlib.sha256(self._pixels[self._index[item.path]].tobytes()).hexdigest()


class Folder(Source):
    """One folder per class, or train, val and test above the class folders."""

    def __init__(self, path: str) -> None:
        self._root = Path(path).expanduser()
        if not self._root.is_dir():
            siblings = [str(other) for other in self._root.parent.glob("*") if other.is_dir()] if self._root.parent.is_dir() else []
            raise UserError(f"data.source: folder {path!r} does not exist{nearest(str(self._root), siblings)}")
        self.description = str(self._root.resolve())
        folders = _subfolders(self._root)
        split_folders = [folder for folder in folders if folder.name.lower() in SPLIT_FOLDERS]
        if any(SPLIT_FOLDERS[folder.name.lower()] == "train" and _subfolders(folder) for folder in split_folders):
            others = [folder.name for folder in folders if folder not in split_folders]
            if others:
                raise UserError(
                    f"data.source: {path!r} has class folders beside its train folder; move them into it, or rename train", others
                )
            self.items = [item for folder in split_folders for item in self._classes(folder, SPLIT_FOLDERS[folder.name.lower()])]
        else:
            self.items = self._classes(self._root, "")
        unnameable = [repr(item.path) for item in self.items if not _is_utf8(item.path)]
        if unnameable:
            raise UserError(f"data.source: {len(unnameable)} file names are not UTF-8; rename them", unnameable)
        if not self.items:
            raise UserError(
                f"data.source: folder {path!r} has no images in class folders; "
                f"expected {path}/CLASS/IMAGE with one of {', '.join(sorted(EXTENSIONS))}"
            )

    def _classes(self, folder: Path, split: str) -> list[Item]:
        return [
            Item(str(file.relative_to(self._root)), class_folder.name, split)
            for class_folder in _subfolders(folder)
            for file in sorted(class_folder.rglob("*"))
            if file.suffix.lower() in EXTENSIONS and not file.name.startswith(".") and file.is_file()
        ]

    def read(self, item: Item) -> bytes:
        return (self._root / item.path).read_bytes()


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _subfolders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def open_source(name: str) -> Source:
    """Return the source that ``data.source`` names.

    Raises:
        UserError: Unknown source, missing folder, no images, or fewer than two classes.
    """
    kind, colon, path = name.partition(":")
    if name == "digits":
        source: Source = Digits()
    elif kind == "folder" and path:
        source = Folder(path)
    elif colon == "" and Path(name).expanduser().is_dir():
        raise UserError(f"unknown data.source {name!r}; nearest: folder:{name}")
    else:
        raise unknown_name("data.source", name, SOURCES)
    labels = Counter(item.label for item in source.items)
    if len(labels) < 2:
        raise UserError(f"data.source: {name!r} has one class only ({next(iter(labels))!r}); a classifier needs at least two class folders")
    return source
