"""Prepared data: checked, split and decoded images.

The folder ``prepared/NAME-DIGEST/`` holds ``manifest.csv`` (path, label, split, group, sha256, and
the reason for each image that is left out), ``classes.json``, ``data.json``, and the normalisation
of each size. The decoded pixels stand beside the folder; all data sets share them (see
`pipeline.data.image_store`).
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.config import Data
from pipeline.data.decode import VERSION, Decoding
from pipeline.data.image_store import Store, Undecoded
from pipeline.data.resize import center_crop
from pipeline.data.sources import SPLITS
from pipeline.data.splits import fold_name
from pipeline.files import write_whole
from pipeline.identity import data_digest
from pipeline.scores.intervals import number_groups

NORMALISATION_SAMPLE = 2000
"""Largest number of training images from which mean and standard deviation are computed."""


@dataclass(frozen=True)
class Prepared:
    """Labelled images, split and decoded.

    Attributes:
        folder: Folder of the files.
        source: Description of the source that the images came from.
        digest: 32 hex digits over images, labels and splits or folds.
        classes: Class names; an image's label is an index into them.
        manifest: One row per image that is used: path, label, split, group (may be empty), sha256.
            With folds a split is ``fold 0`` … or ``test``.
        images: The decoded pixels, in the manifest's order.
        data: The configuration that they were prepared from; its `white` is no longer ``auto``.
        version: Version of the decoding.
        fold: Number of the fold that validates; it means nothing if there are no folds.
    """

    folder: Path
    source: str
    digest: str
    classes: list[str]
    manifest: pd.DataFrame
    images: Store | Undecoded
    data: Data
    version: int = VERSION
    fold: int = 0

    @property
    def decoding(self) -> Decoding:
        """How a file was decoded into pixels."""
        return Decoding.of(self.data, self.version)

    def first_digest(self) -> str:
        """Return the digest that these images have as release 0.1.0 decoded them.

        That release may not have been able to use all of them.
        """
        manifest = self.manifest
        return data_digest(
            zip(manifest["sha256"], manifest["label"], manifest["split"], strict=True)
        )

    def positions(self, split: str) -> NDArray[np.int64]:
        """Return the row numbers of a split's images, which are their places in `images`."""
        given = self.manifest["split"]
        if not self.data.folds or split == "test":
            return np.flatnonzero(given == split)
        validates = given == fold_name(self.fold)
        if split == "val":
            return np.flatnonzero(validates)
        return np.flatnonzero(~validates & (given != "test"))

    def labels(self) -> NDArray[np.int64]:
        """Return every image's label as an index into `classes`, shape (images,)."""
        labels = pd.Categorical(self.manifest["label"], categories=self.classes)
        return np.asarray(labels.codes, dtype=np.int64)

    def groups(self, split: str) -> NDArray[np.int64] | None:
        """Return a number for the group of each of a split's images; None if none has a group.

        An image without a group is a group of its own.
        """
        return number_groups(self.manifest["group"].iloc[self.positions(split)].tolist())

    def counts(self) -> dict[str, dict[str, int]]:
        """Return how many images each class has in each split."""
        found = self.manifest.groupby(["label", "split"], observed=True).size().to_dict()
        counts = {}
        for label in self.classes:
            counts[label] = {split: int(found.get((label, split), 0)) for split in self.splits}
        return counts

    @property
    def splits(self) -> list[str]:
        """Names of the splits, in order."""
        if not self.data.folds:
            return list(SPLITS)
        return [*map(fold_name, range(self.data.folds)), "test"]

    def with_fold(self, fold: int) -> Prepared:
        """Return the same images with another fold validating."""
        return replace(self, fold=fold)

    def normalisation(self) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation per channel of the training images, 0 to 1.

        They are computed when they are asked for the first time.
        """
        size = self.data.image_size
        key = f"{size}-{self.decoding.key}{self.decoding.grey_key}"
        if self.data.folds:
            key += f"-fold-{self.fold}"
        file = self.folder / f"normalisation-{key}.json"
        if not file.is_file():
            mean, std = _measure_normalisation(self.images, self.positions("train"), size)
            # The file only saves time: if the folder cannot be written to, the next call computes
            # them again.
            with suppress(OSError):
                write_if_changed(file, json.dumps({"mean": mean, "std": std}))
            return mean, std
        statistics = json.loads(file.read_text())
        return statistics["mean"], statistics["std"]


def write_if_changed(file: Path, text: str) -> None:
    """Write a file whole or not at all; a file that has this text already stays as it is."""
    if file.is_file() and file.read_text(encoding="utf-8") == text:
        return
    write_whole(file, text)


def _measure_normalisation(
    images: Store | Undecoded, positions: NDArray[np.int64], size: int
) -> tuple[list[float], list[float]]:
    num_chosen = min(len(positions), NORMALISATION_SAMPLE)
    chosen = positions[np.linspace(0, len(positions) - 1, num_chosen).astype(int)]
    total = np.zeros(3)
    squares = np.zeros(3)
    for position in chosen.tolist():
        crop = center_crop(images[position], size).reshape(3, -1).astype(np.float64) / 255
        total += crop.mean(axis=1)
        squares += (crop**2).mean(axis=1)
    mean = total / len(chosen)
    # A channel that never varies (all images blank) must not divide by zero.
    std = np.sqrt(np.maximum(squares / len(chosen) - mean**2, 1e-6))
    return mean.round(6).tolist(), std.round(6).tolist()
