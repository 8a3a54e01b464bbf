"""Scikit-learn's 1,797 handwritten digits of 8 by 8 pixels, grey levels 0 to 16."""

from __future__ import annotations

import zlib

import numpy as np

from pipeline.data.sources.source import Arrays, Item, Source


def open_digits() -> Source:
    """Return the digits, which are built into scikit-learn."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    items = [
        Item(Arrays.path("digits", number), str(label))
        for number, label in enumerate(digits.target)
    ]
    version = f"{zlib.crc32(pixels.tobytes()):08x}"
    return Source("scikit-learn digits", Arrays({"digits": pixels}, version), items)
