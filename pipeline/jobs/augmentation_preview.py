"""A picture of what augmentation does to some training images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Configuration
from pipeline.data.loader import Images, preview_views
from pipeline.data.prepared import Prepared
from pipeline.data.transforms import build_augmentation
from pipeline.natural_order import natural_key
from pipeline.report.training_figures import draw_augmentation_preview
from pipeline.tracking.run_log import RunLog

MOST_IMAGES, NUM_VIEWS = 6, 8


def log_previews(
    run: RunLog,
    prepared: Prepared,
    configurations: Iterable[Configuration],
) -> None:
    """Log ``prepare/augmentation.png``, and where configurations augment in several ways ``augmentation_2.png``, …, in their order.

    Each shows a few training images, and eight augmented views of each. Nothing is logged without augmentation, or where
    `tracking.log_images` is false.
    """
    shown: list[list[str | dict[str, Any]]] = []
    for configuration in configurations:
        augment = configuration.data.augment
        if augment and augment not in shown and configuration.tracking.log_images:
            shown.append(augment)
            _log_preview(
                run,
                prepared,
                configuration,
                f"augmentation_{len(shown)}.png" if len(shown) > 1 else "augmentation.png",
            )


def _log_preview(
    run: RunLog,
    prepared: Prepared,
    configuration: Configuration,
    name: str,
) -> None:
    data = configuration.data
    augmentation = build_augmentation(data)
    labels, positions = prepared.labels(), prepared.positions("train")
    images = Images(
        prepared.images,
        positions,
        labels,
        data.image_size,
        augmentation,
        configuration.training.seed,
    )
    shown = one_of_each_class(labels[positions], MOST_IMAGES)
    numbers = sorted(
        shown, key=lambda number: natural_key(prepared.classes[labels[positions[number]]])
    )
    originals = [prepared.images[int(positions[number])] for number in numbers]
    names = [prepared.classes[labels[positions[number]]] for number in numbers]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        draw_augmentation_preview(file, originals, preview_views(images, numbers, NUM_VIEWS), names)
        run.file(file, "prepare")
        run.flush()


def one_of_each_class(labels: NDArray[np.int64], most: int) -> list[int]:
    """Return the place of the first image of each class that occurs, of `most` classes spread evenly where there are more."""
    _, first = np.unique(labels, return_index=True)
    chosen = np.linspace(0, len(first) - 1, min(len(first), most)).round().astype(int)
    return [int(number) for number in first[chosen]]
