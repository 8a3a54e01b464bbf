"""What the report on the images holds: what was found, counts, and small pictures."""

from __future__ import annotations

import io
from collections.abc import Callable, Container, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data import findings
from pipeline.data.image_store import Store, Undecoded
from pipeline.data.prepared import Prepared
from pipeline.data.quality_gate import Inspection
from pipeline.data.sources import Item, Source

SAMPLES_PER_CLASS = 8
THUMBNAIL = 96
"""Shorter side in pixels of the pictures in the report."""
Thumbnails = Callable[[Iterable[str]], dict[str, bytes]]
"""Returns small encoded pictures for paths; a picture that cannot be shown is left out."""
OnReport = Callable[[findings.Report, Thumbnails], None]
"""Called with a report on the images, and with what makes its pictures."""


def complete_report(
    prepared: Prepared, inspection: Inspection, source: Source, splits: Sequence[str]
) -> findings.Report:
    """Return all that report.json holds; warnings about classes are added to `inspection`.

    Args:
        prepared: The images that are used.
        inspection: What the quality gate has found.
        source: The source of the images.
        splits: Splits of the images that are kept, in the order of `inspection`.
    """
    counts = prepared.counts()
    inspection.warnings += findings.class_warnings(counts)
    largest, share = findings.find_majority(counts)
    report = findings.build_report(
        inspection, prepared.data, prepared.source, source.ignored, splits
    )
    return report | {
        "digest": prepared.digest,
        "classes": prepared.classes,
        "splits": prepared.splits,
        "counts": counts,
        "majority": {"class": largest, "share": share},
        "samples": _choose_samples(prepared),
    }


def _choose_samples(prepared: Prepared) -> dict[str, list[str]]:
    """Return the paths of some training images of each class, evenly spread."""
    train = prepared.positions("train")
    labels = prepared.labels()[train]
    paths = prepared.manifest["path"].to_numpy()
    chosen = {}
    for number, name in enumerate(prepared.classes):
        own = train[labels == number]
        num_chosen = min(len(own), SAMPLES_PER_CLASS)
        places = np.unique(np.linspace(0, len(own) - 1, num_chosen).astype(int))
        chosen[name] = paths[own[places]].tolist()
    return chosen


def make_thumbnails(
    images: Store | Undecoded, items: Sequence[Item], unreadable: Container[int]
) -> Thumbnails:
    """Return a function that makes small pictures of images, given by their paths.

    Args:
        images: Pixels of all images.
        items: All images.
        unreadable: Numbers of the images that cannot be read.
    """

    def encode(paths: Iterable[str]) -> dict[str, bytes]:
        wanted = set(paths)
        pictures = {}
        for number, item in enumerate(items):
            if item.path in wanted and number not in unreadable:
                pictures[item.path] = _encode_thumbnail(images[number])
        return pictures

    return encode


def _encode_thumbnail(pixels: NDArray[np.uint8]) -> bytes:
    image = Image.fromarray(pixels.transpose(1, 2, 0))
    scale = THUMBNAIL / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
