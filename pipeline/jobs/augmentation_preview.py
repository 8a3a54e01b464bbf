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

MOST_IMAGES = 6
NUM_VIEWS = 8


def log_previews(
    run: RunLog,
    prepared: Prepared,
    configurations: Iterable[Configuration],
) -> None:
    """Log one picture for each different augmentation among some configurations.

    A picture shows a few training images, and eight augmented views of each. The first one is
    ``prepare/augmentation.png``, further ones are ``prepare/augmentation_2.png``, …, in the order
    of the configurations. A configuration without augmentation, or with `tracking.log_images`
    false, adds no picture.
    """
    shown: list[list[str | dict[str, Any]]] = []
    for configuration in configurations:
        augment = configuration.data.augment
        if augment and augment not in shown and configuration.tracking.log_images:
            shown.append(augment)
            suffix = f"_{len(shown)}" if len(shown) > 1 else ""
            _log_preview(run, prepared, configuration, f"augmentation{suffix}.png")


def _log_preview(
    run: RunLog,
    prepared: Prepared,
    configuration: Configuration,
    name: str,
) -> None:
    data = configuration.data
    augmentation = build_augmentation(data)
    labels = prepared.labels()
    positions = prepared.positions("train")
    images = Images(
        prepared.images,
        positions,
        labels,
        data.image_size,
        augmentation,
        configuration.training.seed,
    )

    def class_of(number: int) -> str:
        return prepared.classes[int(labels[positions[number]])]

    shown = one_of_each_class(labels[positions], MOST_IMAGES)
    numbers = sorted(shown, key=lambda number: natural_key(class_of(number)))
    originals = [prepared.images[int(positions[number])] for number in numbers]
    views = preview_views(images, numbers, NUM_VIEWS)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        draw_augmentation_preview(file, originals, views, [class_of(number) for number in numbers])
        run.file(file, "prepare")
        run.flush()


def one_of_each_class(labels: NDArray[np.int64], most: int) -> list[int]:
    """Return the place of the first image of each class that occurs.

    If there are more than `most` classes, `most` of them are taken, spread evenly.
    """
    _, first = np.unique(labels, return_index=True)
    chosen = np.linspace(0, len(first) - 1, min(len(first), most)).round().astype(int)
    return [int(number) for number in first[chosen]]
