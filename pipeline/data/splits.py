"""Which image trains, validates or tests: stratified by class, seeded, disjoint and complete."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pipeline.config import Data
from pipeline.data.sources import SPLITS, Item
from pipeline.errors import UserError


def assign_splits(items: Sequence[Item], data: Data) -> list[Item]:
    """Give every image a split, keeping those a source has given.

    Parts that the source lacks are taken from its training images, class by class: the rounded
    fraction, at least one image, at least one left to train.

    Raises:
        UserError: Classes too small to split, or without a training image; all are listed.
    """
    items = _sample(items, data) if data.limit else list(items)
    given = {item.split for item in items if item.split}
    fractions = {split: fraction for split, fraction in (("val", data.val_fraction), ("test", data.test_fraction)) if split not in given}
    by_class: defaultdict[str, list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        if item.split in ("", "train"):
            by_class[item.label].append(index)
    labels = sorted({item.label for item in items})
    needed = 1 + len(fractions)
    short = [f"{label}: {len(by_class[label])} {_plural(len(by_class[label]))}" for label in labels if len(by_class[label]) < needed]
    if short:
        parts = ", ".join(["train", *fractions])
        raise UserError(
            f"{len(short)} of {len(labels)} classes have too few images for the {_ordinal(needed)} ({parts}); at least {needed} are needed",
            short,
        )
    splits = [item.split or "train" for item in items]
    rng = np.random.default_rng(data.seed)
    for label in labels:
        members = rng.permutation(by_class[label])
        start = 0
        for split, count in _counts(len(members), fractions).items():
            for index in members[start : start + count]:
                splits[index] = split
            start += count
    return [replace(item, split=split) for item, split in zip(items, splits, strict=True)]


def _counts(available: int, fractions: dict[str, float]) -> dict[str, int]:
    counts = {split: max(1, round(available * fraction)) for split, fraction in fractions.items()}
    while sum(counts.values()) >= available:
        largest = max(counts, key=lambda split: counts[split])
        counts[largest] -= 1
    return counts


def _sample(items: Sequence[Item], data: Data) -> list[Item]:
    """Keep at most `data.limit` images in the proportions of classes and given splits, at least enough of each to split.

    A limit below that minimum keeps the minimum.
    """
    groups: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        groups[item.label, item.split].append(index)
    rng = np.random.default_rng(data.seed)
    sizes = {key: len(groups[key]) for key in sorted(groups)}
    share = min(1.0, data.limit / len(items))
    counts = {key: min(size, max(len(SPLITS), round(size * share))) for key, size in sizes.items()}
    while sum(counts.values()) > data.limit and max(counts.values()) > len(SPLITS):
        counts[max(counts, key=lambda key: counts[key])] -= 1
    kept = [index for key, count in counts.items() for index in rng.permutation(groups[key])[:count].tolist()]
    return [items[index] for index in sorted(kept)]


def _plural(count: int) -> str:
    return "image" if count == 1 else "images"


def _ordinal(count: int) -> str:
    return "one split" if count == 1 else f"{count} splits"
