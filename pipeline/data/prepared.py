"""Prepared data: checked, split and decoded images.

Under ``prepared/NAME-DIGEST/``: ``manifest.csv`` (path, label, split, group, sha256, and the reason for each image that is left
out), ``classes.json``, ``data.json``, and the normalisation of each size. The decoded pixels stand
beside it, shared by all data sets (see `pipeline.data.image_store`).
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

NORMALISATION_SAMPLE = 2000
"""Training images over which mean and standard deviation are taken, at most."""


@dataclass(frozen=True)
class Prepared:
    """Labelled images, split and decoded.

    Attributes:
        folder: Where the files are.
        source: Where the images came from.
        digest: 32 hex digits over images, labels and splits or folds.
        classes: Class names; an image's label is an index into them.
        manifest: One row per image that is used: path, label, split, sha256. With folds a split is ``fold 0`` … or ``test``.
        images: The decoded pixels, in the manifest's order.
        data: What they were prepared from; `white` is no longer ``auto``.
        version: Of the decoding.
        fold: The one that validates; without meaning where there are no folds.
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
        """What was made of a file."""
        return Decoding.of(self.data, self.version)

    def first_digest(self) -> str:
        """Return the digest that these images have as release 0.1.0 decoded them, if it could use all of them."""
        return data_digest(
            zip(
                self.manifest["sha256"], self.manifest["label"], self.manifest["split"], strict=True
            )
        )

    def positions(self, split: str) -> NDArray[np.int64]:
        """Return the row numbers of a split's images, which are their places in `images`."""
        given = self.manifest["split"]
        if self.data.folds and split != "test":
            validates = given == fold_name(self.fold)
            return np.flatnonzero(validates if split == "val" else ~validates & (given != "test"))
        return np.flatnonzero(given == split)

    def labels(self) -> NDArray[np.int64]:
        """Return every image's label as an index into `classes`, shape (images,)."""
        return np.asarray(
            pd.Categorical(self.manifest["label"], categories=self.classes).codes, dtype=np.int64
        )

    def counts(self) -> dict[str, dict[str, int]]:
        """Return how many images each class has in each split."""
        found = self.manifest.groupby(["label", "split"], observed=True).size().to_dict()
        return {
            label: {split: int(found.get((label, split), 0)) for split in self.splits}
            for label in self.classes
        }

    @property
    def splits(self) -> list[str]:
        """Names of the splits, in order."""
        return (
            [*map(fold_name, range(self.data.folds)), "test"] if self.data.folds else list(SPLITS)
        )

    def with_fold(self, fold: int) -> Prepared:
        """Return the same images with another fold validating."""
        return replace(self, fold=fold)

    def normalisation(self) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation per channel of the training images, 0 to 1; computed when first asked for."""
        data = self.data
        fold = f"-fold-{self.fold}" if data.folds else ""
        decoding = self.decoding
        file = (
            self.folder
            / f"normalisation-{data.image_size}-{decoding.key}{decoding.grey_key}{fold}.json"
        )
        if not file.is_file():
            mean, std = _normalisation(self.images, self.positions("train"), data.image_size)
            # Kept only so that it is not computed again; where the folder cannot be written to, it is.
            with suppress(OSError):
                write_if_changed(file, json.dumps({"mean": mean, "std": std}))
            return mean, std
        statistics = json.loads(file.read_text())
        return statistics["mean"], statistics["std"]


def write_if_changed(file: Path, text: str) -> None:
    """Write a file whole or not at all; an equal one stays as it is."""
    if file.is_file() and file.read_text(encoding="utf-8") == text:
        return
    write_whole(file, text)


def _normalisation(
    images: Store | Undecoded, positions: NDArray[np.int64], size: int
) -> tuple[list[float], list[float]]:
    chosen = positions[
        np.linspace(0, len(positions) - 1, min(len(positions), NORMALISATION_SAMPLE)).astype(int)
    ]
    total, squares = np.zeros(3), np.zeros(3)
    for position in chosen.tolist():
        crop = center_crop(images[position], size).reshape(3, -1).astype(np.float64) / 255
        total += crop.mean(axis=1)
        squares += (crop**2).mean(axis=1)
    mean = total / len(chosen)
    # A channel that never varies (all images blank) must not divide by zero.
    std = np.sqrt(np.maximum(squares / len(chosen) - mean**2, 1e-6))
    return mean.round(6).tolist(), std.round(6).tolist()
