"""A picture of what augmentation does to some training images."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Configuration
from pipeline.data.loader import Images, preview_views
from pipeline.data.prepared import Prepared
from pipeline.data.transforms import build_augmentation
from pipeline.report import figures
from pipeline.tracking.run import RunLog

MOST_IMAGES, NUM_VIEWS = 6, 8


def log_preview(run: RunLog, prepared: Prepared, configuration: Configuration) -> None:
    """Log ``prepare/augmentation.png``: a few training images, and how the network sees them in epochs 1 to 8.

    Nothing is logged without augmentation, or where `tracking.log_images` is false.
    """
    data = configuration.data
    augmentation = build_augmentation(data)
    if augmentation is None or not configuration.tracking.log_images:
        return
    labels, positions = prepared.labels(), prepared.positions("train")
    images = Images(prepared.images, positions, labels, data.image_size, augmentation, configuration.training.seed)
    numbers = one_of_each_class(labels[positions], MOST_IMAGES)
    originals = [prepared.images[int(positions[number])] for number in numbers]
    names = [prepared.classes[labels[positions[number]]] for number in numbers]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "augmentation.png"
        figures.augmentation_preview(file, originals, preview_views(images, numbers, NUM_VIEWS), names)
        run.file(file, "prepare")


def one_of_each_class(labels: NDArray[np.int64], most: int) -> list[int]:
    """Return the place of the first image of each class that occurs, of `most` classes spread evenly where there are more."""
    _, first = np.unique(labels, return_index=True)
    chosen = np.linspace(0, len(first) - 1, min(len(first), most)).round().astype(int)
    return [int(number) for number in first[chosen]]
