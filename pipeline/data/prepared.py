"""Prepared data: a manifest of every image with its split and label, and the decoded store.

Under ``prepared/NAME-DIGEST/``: ``manifest.csv`` (path, label, split, sha256), ``classes.json``,
``data.json``, and for each size a store with its normalisation.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.config import Data
from pipeline.data.decode import UNREADABLE, center_crop, decode, resize
from pipeline.data.sources import SPLITS, Item, Source, open_source
from pipeline.data.splits import assign_splits
from pipeline.data.store import Store, in_threads, is_complete, write_store
from pipeline.errors import UserError, first_line
from pipeline.identity import data_digest

Progress = Callable[[str, int, int], None]
"""Called with what is done, how many of how many."""

NORMALISATION_SAMPLE = 2000
"""Training images over which mean and standard deviation are taken, at most."""


@dataclass(frozen=True)
class Prepared:
    """Labelled images, split and decoded.

    Attributes:
        folder: Where the files are.
        source: Where the images came from.
        digest: 32 hex digits over images, labels and splits.
        classes: Class names; an image's label is an index into them.
        manifest: One row per image: path, label, split, sha256.
    """

    folder: Path
    source: str
    digest: str
    classes: list[str]
    manifest: pd.DataFrame

    def positions(self, split: str) -> NDArray[np.int64]:
        """Return the row numbers of a split's images, which are their places in the store."""
        return np.array([row for row, name in enumerate(self.manifest["split"]) if name == split], dtype=np.int64)

    def labels(self) -> NDArray[np.int64]:
        """Return every image's label as an index into `classes`, shape (images,)."""
        index = {name: number for number, name in enumerate(self.classes)}
        return np.array([index[name] for name in self.manifest["label"]], dtype=np.int64)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return how many images each class has in each split."""
        found = Counter(zip(self.manifest["label"], self.manifest["split"], strict=True))
        return {label: {split: found[label, split] for split in SPLITS} for label in self.classes}

    def store(self, data: Data) -> Store:
        """Return the decoded images that `prepare` has written for this size."""
        return Store(_store_name(self.folder, data))

    def normalisation(self, data: Data) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation per channel of the training images, 0 to 1."""
        statistics = json.loads(_statistics_name(self.folder, data).read_text())
        return statistics["mean"], statistics["std"]


def prepare(data: Data, root: Path, progress: Progress = lambda *_: None) -> Prepared:
    """Read, check, split and decode the images; what is there already is used again.

    Args:
        data: Which images, their split and their size.
        root: Folder that holds all prepared data.
        progress: Told how many images are read and decoded.

    Raises:
        UserError: Unknown source, too few images, or unreadable ones (all are listed).
    """
    source = open_source(data.source)
    items = assign_splits(source.items, data)
    hashes = _hashes(source, items, progress)
    # In an order that the digest determines: a renamed file keeps its place in the store, and its part in training.
    order = sorted(range(len(items)), key=lambda i: (items[i].split, items[i].label, hashes[i], items[i].path))
    items, hashes = [items[i] for i in order], [hashes[i] for i in order]
    manifest = pd.DataFrame({"path": [i.path for i in items], "label": [i.label for i in items], "split": [i.split for i in items]})
    manifest["sha256"] = hashes
    digest = data_digest(zip(manifest["sha256"], manifest["label"], manifest["split"], strict=True))
    classes = sorted(set(manifest["label"]))
    prepared = Prepared(root / f"{data.name}-{digest[:8]}", source.description, digest, classes, manifest)
    try:
        if not (prepared.folder / "manifest.csv").is_file():
            _write_new(prepared, source, items, data, progress)
        if not _has_images(prepared.folder, data):
            _write_images(prepared.folder, prepared, source, items, data, progress)
    except OSError as error:
        raise UserError(f"prepared images cannot be written to {prepared.folder}: {error.strerror or error}") from error
    return prepared


def _store_name(folder: Path, data: Data) -> Path:
    return folder / f"images-{data.stored_size}-{data.interpolation}"


def _statistics_name(folder: Path, data: Data) -> Path:
    return folder / f"normalisation-{data.stored_size}-{data.image_size}-{data.interpolation}.json"


def _has_images(folder: Path, data: Data) -> bool:
    return is_complete(_store_name(folder, data)) and _statistics_name(folder, data).is_file()


def _hashes(source: Source, items: Sequence[Item], progress: Progress) -> list[str]:
    hashes, unreadable = [], []
    for number, item in enumerate(items, 1):
        try:
            hashes.append(source.content_hash(item))
        except OSError as error:
            unreadable.append(f"{item.path}: {error.strerror or error}")
        progress("reading", number, len(items))
    _refuse(unreadable, source)
    return hashes


def _refuse(unreadable: list[str], source: Source) -> None:
    if unreadable:
        count = "1 image" if len(unreadable) == 1 else f"{len(unreadable)} images"
        raise UserError(f"{count} in {source.description} cannot be read; repair or remove", sorted(unreadable))


def _write_new(prepared: Prepared, source: Source, items: Sequence[Item], data: Data, progress: Progress) -> None:
    prepared.folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{prepared.folder.name}-", dir=prepared.folder.parent))
    temporary.chmod(0o755)
    try:
        _write_images(temporary, prepared, source, items, data, progress)
        prepared.manifest.to_csv(temporary / "manifest.csv", index=False)
        (temporary / "classes.json").write_text(json.dumps(prepared.classes, ensure_ascii=False, indent=1))
        description = {"source": prepared.source, "digest": prepared.digest, "seed": data.seed, "images": prepared.counts()}
        (temporary / "data.json").write_text(json.dumps(description, ensure_ascii=False, indent=1))
        temporary.rename(prepared.folder)
    except OSError:
        # Another process may have prepared the same images meanwhile; the digest says they are equal.
        if not (prepared.folder / "manifest.csv").is_file():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_images(folder: Path, prepared: Prepared, source: Source, items: Sequence[Item], data: Data, progress: Progress) -> None:
    def pixels(item: Item) -> NDArray[np.uint8] | str:
        try:
            return resize(decode(io.BytesIO(source.read(item))), data.stored_size, data.interpolation)
        except UNREADABLE as error:
            return f"{item.path}: {_reason(error)}"

    def readable() -> Iterator[NDArray[np.uint8]]:
        unreadable = []
        for number, image in enumerate(in_threads(pixels, items), 1):
            progress("decoding", number, len(items))
            if isinstance(image, str):
                unreadable.append(image)
            else:
                yield image
        _refuse(unreadable, source)

    name = _store_name(folder, data)
    write_store(name, readable())
    mean, std = _normalisation(Store(name), prepared.positions("train"), data)
    statistics = _statistics_name(folder, data)
    temporary = statistics.with_name(f".{statistics.name}-{os.getpid()}")
    temporary.write_text(json.dumps({"mean": mean, "std": std}))
    os.replace(temporary, statistics)


def _reason(error: Exception) -> str:
    text = first_line(error)
    return "not an image" if "cannot identify image file" in text else text


def _normalisation(store: Store, positions: NDArray[np.int64], data: Data) -> tuple[list[float], list[float]]:
    chosen = positions[np.linspace(0, len(positions) - 1, min(len(positions), NORMALISATION_SAMPLE)).astype(int)]
    total, squares = np.zeros(3), np.zeros(3)
    for position in chosen:
        crop = center_crop(store[position], data.image_size).reshape(3, -1).astype(np.float64) / 255
        total += crop.mean(axis=1)
        squares += (crop**2).mean(axis=1)
    mean = total / len(chosen)
    # A channel that never varies (all images blank) must not divide by zero.
    std = np.sqrt(np.maximum(squares / len(chosen) - mean**2, 1e-6))
    return mean.round(6).tolist(), std.round(6).tolist()
