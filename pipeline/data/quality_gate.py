"""The quality gate: it finds what is wrong with the images, and applies the policies.

Nothing in the source folder is touched. Images that cannot be used are quarantined, that is, listed
and left out.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Data
from pipeline.data.duplicates import Sets, find_duplicate_sets
from pipeline.data.examine import Examined
from pipeline.data.sources.source import Item

FEW = 10
"""Number of training images below which a class is reported as small."""
MUCH = 0.05
"""Part of all images beyond which one set of nearly equal images is doubtful."""


@dataclass
class Inspection:
    """What the gate has found.

    Attributes:
        items: All images.
        kept: Numbers of the images that are used, in order.
        quarantined: The reason why an image is left out, by its number.
        duplicates: Sets of equal or nearly equal images; an image is given by its number.
        equal: A number per image that is equal for equal pixels.
        groups: A number per image; images of equal number stay on one side of a split.
        warnings: Warnings about classes, and about duplicates that may be no copies.
    """

    items: list[Item]
    kept: list[int]
    quarantined: dict[int, str]
    duplicates: list[list[int]]
    equal: NDArray[np.int64]
    groups: NDArray[np.int64]
    warnings: list[str] = field(default_factory=list)

    @property
    def kept_items(self) -> list[Item]:
        """The images that are used."""
        return [self.items[number] for number in self.kept]


def inspect(items: list[Item], examined: Examined, data: Data) -> Inspection:
    """Look for duplicates among the readable images, and apply the policies except ``error``."""
    readable = [number for number in range(len(items)) if number not in examined.unreadable]
    numbers = np.array(readable, dtype=np.int64)
    equal = np.arange(len(items))
    sets: list[list[int]] = []
    if data.duplicates != "ignore":
        found, same = find_duplicate_sets(
            examined.pixels[numbers],
            examined.phash[numbers],
            examined.has_phash[numbers],
            data.near_distance,
        )
        sets = [numbers[places].tolist() for places in found]
        equal[numbers] = same
    quarantined = dict(examined.unreadable)
    if data.duplicates == "drop":
        for first, copy in _find_copies(items, sets):
            quarantined[copy] = f"copy of {items[first].path}"
    together = Sets(len(items))
    _unite_groups(together, items)
    if data.duplicates == "group":
        for members in sets:
            for other in members[1:]:
                together.unite(members[0], other)
    kept = [number for number in range(len(items)) if number not in quarantined]
    inspection = Inspection(items, kept, quarantined, sets, equal, together.roots())
    inspection.warnings += _warn_of_alike_names(items)
    inspection.warnings += _warn_of_large_set(inspection, data)
    return inspection


def _find_copies(items: Sequence[Item], sets: list[list[int]]) -> list[tuple[int, int]]:
    """Return pairs (image that is kept, copy of it that is left out).

    A test image is never left out. A validation image is kept rather than a training image.
    """
    rank = {"test": 0, "val": 1}

    def sort_key(number: int) -> tuple[int, str]:
        item = items[number]
        return rank.get(item.split, 2), item.path

    pairs = []
    for members in sets:
        kept, *others = sorted(members, key=sort_key)
        pairs += [(kept, number) for number in others if items[number].split != "test"]
    return pairs


def _unite_groups(sets: Sets, items: Sequence[Item]) -> None:
    named = np.array([number for number, item in enumerate(items) if item.group], dtype=np.int64)
    if len(named):
        groups = [items[number].group for number in named]
        keys = np.unique(groups, return_inverse=True)[1]
        sets.unite_equal(keys.astype(np.int64), named)


def _warn_of_alike_names(items: Sequence[Item]) -> list[str]:
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for label in sorted({item.label for item in items}):
        alike[_normalise_spelling(label)].append(label)
    return [
        f"classes {' and '.join(map(repr, labels))} differ only in how they are written: "
        f"one class in {len(labels)} spellings?"
        for labels in alike.values()
        if len(labels) > 1
    ]


def _normalise_spelling(label: str) -> str:
    """Return a text that is equal for labels that differ only in how they are written.

    They may differ in case, blanks, hyphens, the form of accents, or how a number is written.
    """
    # Composed and decomposed accents look the same; after this they are the same.
    text = unicodedata.normalize("NFKC", label)
    number = text.strip()
    if re.fullmatch(r"[+-]?[0-9]{1,15}([.,][0-9]+)?", number):
        return str(float(number.replace(",", ".")))
    return re.sub(r"[\s_-]", "", text).casefold() or label


def _warn_of_large_set(inspection: Inspection, data: Data) -> list[str]:
    largest = max(map(len, inspection.duplicates), default=0)
    if largest < max(FEW, MUCH * len(inspection.items)) or data.near_distance < 0:
        return []
    return [
        f"{largest} of {len(inspection.items)} images are one set of nearly equal ones: look at it "
        "in the report; pictures all of one kind (a centred shape, a scan) may hash alike without "
        "being copies; a lower data.near_distance, or -1 for equal ones only, suits them"
    ]
