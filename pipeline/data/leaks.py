"""What stands in two splits: copies of one image, and groups that a source's own splits divide."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.data.quality_gate import Inspection

SplitOf = Callable[[int], str]
"""Returns the split of an image's number; empty if the image has none (yet)."""

MOST_GROUPS = 20
"""Divided groups that are named; the rest is counted."""


def find_leaks(
    inspection: Inspection, split_of: SplitOf, order: Sequence[str]
) -> list[dict[str, Any]]:
    """Return each image that has a copy in a later split, with one of these copies.

    An equal copy is preferred to a nearly equal one, then a copy in the latest split. Images that
    ``drop`` has left out are among them, marked as removed.

    Args:
        inspection: What was found.
        split_of: Returns the split of an image.
        order: The splits; an image whose split is not among them is passed over.
    """
    rank = {split: place for place, split in enumerate(order)}
    equal = inspection.equal
    pairs = []
    for members in inspection.duplicates:
        placed = [number for number in members if split_of(number) in rank]
        for number in placed:
            own = rank[split_of(number)]
            later = [other for other in placed if rank[split_of(other)] > own]
            if not later:
                continue
            equal_ones = [other for other in later if equal[other] == equal[number]]
            # max keeps the first of equals.
            partner = max(equal_ones or later, key=lambda other: rank[split_of(other)])
            pairs.append(
                {
                    "first": inspection.items[number].path,
                    "first_split": split_of(number),
                    "second": inspection.items[partner].path,
                    "second_split": split_of(partner),
                    "kind": "equal" if equal_ones else "near",
                    "removed": number in inspection.quarantined,
                }
            )
    return pairs


def warn_of_divided_groups(inspection: Inspection, split_of: SplitOf) -> list[str]:
    """Return a warning for each of the source's groups that stands in several splits.

    Groups beyond the first `MOST_GROUPS` share one warning.
    """
    splits: defaultdict[str, set[str]] = defaultdict(set)
    for number in inspection.kept:
        group = inspection.items[number].group
        split = split_of(number)
        if group and split:
            splits[group].add(split)
    divided = [
        f"group {group!r} stands in {' and '.join(sorted(found))}"
        for group, found in sorted(splits.items())
        if len(found) > 1
    ]
    if len(divided) <= MOST_GROUPS:
        return divided
    more = f"and {len(divided) - MOST_GROUPS} more groups in several splits"
    return [*divided[:MOST_GROUPS], more]
