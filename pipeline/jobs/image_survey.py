"""Look at a user's images: their number, their classes, their sizes, the time to read them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.config import Data, facts_of
from pipeline.data.decode import UNREADABLE, Decoding
from pipeline.data.picture_warnings import LONG, MANY
from pipeline.data.sources import Item, Source, open_source
from pipeline.data.splits import assign_splits, sample_images
from pipeline.errors import UserError
from pipeline.natural_order import natural_key

SIZES = (32, 48, 64, 80, 96, 112, 128, 160, 192, 224)
"""Sides, in pixels, of the squares that networks may see."""
SAMPLE = 60
"""Number of images that are looked at."""

_SHARED = {name for name, field in Data.model_fields.items() if facts_of(field).shared}


@dataclass(frozen=True)
class Survey:
    """What was found out about images.

    Attributes:
        name: Name of the images.
        source: The images, as ``data.source`` names them.
        changed: Options on the images that differ from their defaults, by field of `Data`.
        is_long: Whether so many pictures are long and narrow that they are kept whole.
        counts: Number of images of each class, in natural order.
        train_images: Number of training images.
        val_images: Number of validation images.
        test_images: Number of test images.
        num_folds: How often each configuration is trained: once, or on every fold.
        median_side: Median of the shorter sides of the pictures, in pixels.
        image_size: Side of the square, in pixels, that shows what the pictures have; a square of
            less than the smallest of `SIZES` shows networks too little.
        reading_seconds: Seconds to read and decode one of them.
    """

    name: str
    source: str
    changed: dict[str, Any]
    is_long: bool
    counts: dict[str, int]
    train_images: int
    val_images: int
    test_images: int
    num_folds: int
    median_side: int
    image_size: int
    reading_seconds: float


def look_at_images(data: Data, progress: Callable[[str], None]) -> Survey:
    """Look at the images that `data.source` names.

    Args:
        data: Source and fractions of the split.
        progress: Called with a line that says what is looked at.

    Raises:
        UserError: The images cannot be used.
    """
    source = open_source(data)
    items = sample_images(source.items, data)
    splits = Counter(assign_splits(items, data))
    train, val, test = _count_splits(splits, data)
    progress(f"{len(items)} images; looking at up to {SAMPLE} of them")
    sizes, seconds = _read_sizes(data, source, items)
    is_long = sum(max(size) > LONG * min(size) for size in sizes) > MANY * len(sizes)
    median_side = int(np.median([min(size) for size in sizes]))
    seen = median_side
    if is_long:
        # Kept whole, a picture is as long as the square.
        seen = int(np.median([max(size) for size in sizes]))
    labels = Counter(item.label for item in items)
    shown = [size for size in SIZES if size <= seen]
    return Survey(
        name=data.name,
        source=data.source,
        changed=_find_changed(data),
        is_long=is_long,
        counts={label: labels[label] for label in sorted(labels, key=natural_key)},
        train_images=train,
        val_images=val,
        test_images=test,
        num_folds=data.folds if data.fold == "all" else 1,
        median_side=median_side,
        image_size=max(shown, default=SIZES[0]),
        reading_seconds=seconds,
    )


def _count_splits(splits: Mapping[str, int], data: Data) -> tuple[int, int, int]:
    """Return the number of training, validation and test images of one training."""
    if not data.folds:
        return splits["train"], splits["val"], splits["test"]
    total = sum(splits.values()) - splits["test"]
    val = total // data.folds
    return total - val, val, splits["test"]


def _read_sizes(
    data: Data, source: Source, items: Sequence[Item]
) -> tuple[list[tuple[int, int]], float]:
    """Return the sizes in pixels of some images, spread evenly, and the seconds to read one."""
    places = np.linspace(0, len(items) - 1, min(len(items), SAMPLE))
    chosen = [items[int(place)] for place in places]
    sizes = []
    unreadable = []
    seconds = []
    decoding = Decoding.of(data)
    for item in chosen:
        started = time.perf_counter()
        try:
            content = source.reader.read(item.path)
            sizes.append(source.reader.image(content, decoding).image.size)
        except UNREADABLE:
            unreadable.append(item.path)
        seconds.append(time.perf_counter() - started)
    if not sizes:
        raise UserError(
            f"{len(unreadable)} of {len(chosen)} images looked at cannot be read", unreadable
        )
    return sizes, float(np.median(seconds))


def _find_changed(data: Data) -> dict[str, Any]:
    defaults = Data()
    return {
        name: value
        for name, value in data.model_dump(include=_SHARED).items()
        if name != "source" and value != getattr(defaults, name)
    }
