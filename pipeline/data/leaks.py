"""What stands on both sides of a split: copies, and groups that a source's own splits divide."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.data.quality_gate import Inspection

SplitOf = Callable[[int], str]
"""From an image's number to its split; empty where it has none (yet)."""

MOST_GROUPS = 20
"""Divided groups that are named; the rest is counted."""


def find_leaks(
    inspection: Inspection, split_of: SplitOf, order: Sequence[str]
) -> list[dict[str, Any]]:
    """Return each image that has a copy in a later split, with that copy: an equal one if there is, in the latest split.

    Images that ``drop`` has left out are among them, as removed.
    """
    rank = {split: place for place, split in enumerate(order)}
    pairs = []
    for members in inspection.duplicates:
        placed = [number for number in members if split_of(number) in rank]
        for number in placed:
            own = rank[split_of(number)]
            later = [other for other in placed if rank[split_of(other)] > own]
            if not later:
                continue
            # max keeps the first of equals.
            partner = max(
                later,
                key=lambda other: (
                    inspection.equal[other] == inspection.equal[number],
                    rank[split_of(other)],
                ),
            )
            pairs.append(
                {
                    "first": inspection.items[number].path,
                    "first_split": split_of(number),
                    "second": inspection.items[partner].path,
                    "second_split": split_of(partner),
                    "kind": "equal"
                    if inspection.equal[partner] == inspection.equal[number]
                    else "near",
                    "removed": number in inspection.quarantined,
                }
            )
    return pairs


def warn_of_divided_groups(inspection: Inspection, split_of: SplitOf) -> list[str]:
    """Return a warning for each of the source's groups that stands in several splits, as far as their number allows."""
    splits: defaultdict[str, set[str]] = defaultdict(set)
    for number in inspection.kept:
        if (group := inspection.items[number].group) and (split := split_of(number)):
            splits[group].add(split)
    divided = [
        f"group {group!r} stands in {' and '.join(sorted(found))}"
        for group, found in sorted(splits.items())
        if len(found) > 1
    ]
    return (
        divided
        if len(divided) <= MOST_GROUPS
        else [
            *divided[:MOST_GROUPS],
            f"and {len(divided) - MOST_GROUPS} more groups in several splits",
        ]
    )
