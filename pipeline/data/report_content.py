"""What the report on the images holds: what was found, counts, and small pictures."""

from __future__ import annotations

import io
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from pipeline.data import findings, quality_gate
from pipeline.data.image_store import Store, Undecoded
from pipeline.data.prepared import Prepared
from pipeline.data.sources import Item, Source

SAMPLES_PER_CLASS = 8
THUMBNAIL = 96
"""Shorter side in pixels of the pictures in the report."""
Thumbnails = Callable[[Iterable[str]], dict[str, bytes]]
"""From paths to encoded small pictures; what cannot be shown is left out."""
OnReport = Callable[[findings.Report, Thumbnails], None]


def complete_report(
    prepared: Prepared, inspection: quality_gate.Inspection, source: Source, splits: Sequence[str]
) -> findings.Report:
    counts = prepared.counts()
    inspection.warnings += findings.class_warnings(counts)
    largest, share = findings.find_majority(counts)
    report: dict[str, Any] = findings.build_report(
        inspection, prepared.data, prepared.source, source.ignored, splits
    )
    report |= {
        "digest": prepared.digest,
        "classes": prepared.classes,
        "splits": prepared.splits,
        "counts": counts,
    }
    report |= {"majority": {"class": largest, "share": share}, "samples": _samples(prepared)}
    return report


def _samples(prepared: Prepared) -> dict[str, list[str]]:
    """Return for each class some of its training images, evenly spread."""
    train = prepared.positions("train")
    labels = prepared.labels()[train]
    paths = prepared.manifest["path"].to_numpy()
    chosen = {}
    for number, name in enumerate(prepared.classes):
        own = train[labels == number]
        places = np.unique(
            np.linspace(0, len(own) - 1, min(len(own), SAMPLES_PER_CLASS)).astype(int)
        )
        chosen[name] = paths[own[places]].tolist()
    return chosen


def make_thumbnails(
    images: Store | Undecoded, items: Sequence[Item], unreadable: Container[int]
) -> Thumbnails:
    def encoded(paths: Iterable[str]) -> dict[str, bytes]:
        wanted = set(paths)
        pictures = {}
        for number, item in enumerate(items):
            if item.path in wanted and number not in unreadable:
                image = Image.fromarray(images[number].transpose(1, 2, 0))
                scale = THUMBNAIL / min(image.size)
                image = image.resize(
                    (round(image.width * scale), round(image.height * scale)),
                    Image.Resampling.BICUBIC,
                )
                buffer = io.BytesIO()
                image.save(buffer, "JPEG", quality=85)
                pictures[item.path] = buffer.getvalue()
        return pictures

    return encoded
