"""The quality gate: what is wrong with the images, and what the policies make of it.

Nothing in the source folder is touched: what cannot be used is quarantined, that is, listed and left out.
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
"""Training images below which a class is reported as small."""
MUCH = 0.05
"""Part of all images beyond which one set of nearly equal ones is doubtful."""


@dataclass
class Inspection:
    """What the gate has found.

    Attributes:
        items: All images.
        kept: Numbers of those that are used, in order.
        quarantined: Reasons by number of the item.
        duplicates: Sets of equal or nearly equal images, by number.
        equal: A number per image, equal for equal pixels.
        groups: A number per image; images of equal number stay on one side of a split.
        warnings: On classes, and on what may be no copies.
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
    readable = np.array(
        [number not in examined.unreadable for number in range(len(items))], dtype=np.bool_
    )
    numbers = np.flatnonzero(readable)
    equal, sets = np.arange(len(items)), list[list[int]]()
    if data.duplicates != "ignore":
        found, same = find_duplicate_sets(
            examined.pixels[numbers],
            examined.phash[numbers],
            examined.has_phash[numbers],
            data.near_distance,
        )
        sets = [[int(numbers[place]) for place in places] for places in found]
        equal[numbers] = same
    quarantined = dict(examined.unreadable)
    if data.duplicates == "drop":
        quarantined |= {
            number: f"copy of {items[first].path}" for first, number in _copies(items, sets)
        }
    together = Sets(len(items))
    _unite_groups(together, items)
    if data.duplicates == "group":
        for members in sets:
            for other in members[1:]:
                together.unite(members[0], other)
    kept = [number for number in range(len(items)) if number not in quarantined]
    inspection = Inspection(items, kept, quarantined, sets, equal, together.roots())
    inspection.warnings += [*_alike_names(items), *_too_much_alike(inspection, data)]
    return inspection


def _copies(items: Sequence[Item], sets: list[list[int]]) -> list[tuple[int, int]]:
    """Return pairs (kept image, copy of it): a test image is never the copy, and a training image gives way first."""
    rank = {"test": 0, "val": 1}
    pairs = []
    for members in sets:
        order = sorted(
            members, key=lambda number: (rank.get(items[number].split, 2), items[number].path)
        )
        pairs += [(order[0], number) for number in order[1:] if items[number].split != "test"]
    return pairs


def _unite_groups(sets: Sets, items: Sequence[Item]) -> None:
    named = np.array([number for number, item in enumerate(items) if item.group], dtype=np.int64)
    if len(named):
        keys = np.unique([items[number].group for number in named], return_inverse=True)[1]
        sets.unite_equal(keys.astype(np.int64), named)


def _alike_names(items: Sequence[Item]) -> list[str]:
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for label in sorted({item.label for item in items}):
        alike[_spelling(label)].append(label)
    return [
        f"classes {' and '.join(map(repr, labels))} differ only in how they are written: one class in {len(labels)} spellings?"
        for labels in alike.values()
        if len(labels) > 1
    ]


def _spelling(label: str) -> str:
    """Return what is equal for labels that mean the same but for case, blanks, hyphens, the form of accents, or how a number is written."""
    # Composed and decomposed accents look the same.
    text = re.sub(r"[\s_-]", "", unicodedata.normalize("NFKC", label)).casefold()
    number = unicodedata.normalize("NFKC", label).strip()
    return (
        str(float(number.replace(",", ".")))
        if re.fullmatch(r"[+-]?[0-9]{1,15}([.,][0-9]+)?", number)
        else text or label
    )


def _too_much_alike(inspection: Inspection, data: Data) -> list[str]:
    largest = max(map(len, inspection.duplicates), default=0)
    if largest < max(FEW, MUCH * len(inspection.items)) or data.near_distance < 0:
        return []
    return [
        f"{largest} of {len(inspection.items)} images are one set of nearly equal ones: look at it in the report; pictures all of one kind "
        "(a centred shape, a scan) may hash alike without being copies; a lower data.near_distance, or -1 for equal ones only, suits them"
    ]
