"""Which image trains, validates or tests: stratified by class, groups on one side, seeded, disjoint and complete."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Data
from pipeline.data.sources.source import SPLITS, Item
from pipeline.errors import UserError


def assign_splits(items: Sequence[Item], data: Data, groups: NDArray[np.int64] | None = None) -> list[str]:
    """Return a split for every image, keeping those a source has given.

    Parts that the source lacks are taken from its training images, class by class: the rounded fraction, at least
    one image, at least one left to train. Groups are taken whole. With ``data.folds`` what is not test is divided into
    ``fold 0``, ``fold 1``, … of about equal size instead.

    Args:
        items: Images.
        data: Fractions, seed and folds.
        groups: A number per image; images of equal number are not separated. None: each on its own.

    Raises:
        UserError: Classes too small to split, or without a training image; all are listed.
    """
    groups = np.arange(len(items)) if groups is None else groups
    given = {item.split for item in items if item.split}
    wanted = (("test", data.test_fraction),) if data.folds else (("val", data.val_fraction), ("test", data.test_fraction))
    fractions = {split: fraction for split, fraction in wanted if split not in given}
    splits = [item.split or "train" for item in items]
    units = _units(items, groups, [split == "train" for split in splits])
    _check_sizes(items, units, ["train", *fractions])
    rng = np.random.default_rng(data.seed)
    for label in sorted(units):
        order = [units[label][number] for number in rng.permutation(len(units[label]))]
        counts = _counts(sum(map(len, order)), fractions)
        for parts_after, (split, count) in zip(range(len(counts), 0, -1), counts.items(), strict=True):
            taken, order = _take(order, count, most=len(order) - parts_after)
            for unit in taken:
                for index in unit:
                    splits[index] = split
    return _into_folds(items, splits, groups, data) if data.folds else splits


def _units(items: Sequence[Item], groups: NDArray[np.int64], free: Sequence[bool]) -> dict[str, list[list[int]]]:
    """Return for each class the sets of training images that stay together; a set belongs to its most frequent class."""
    members: defaultdict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(groups.tolist()):
        if free[index]:
            members[group].append(index)
    units: dict[str, list[list[int]]] = {item.label: [] for item in items}
    for unit in members.values():
        label = items[unit[0]].label
        if len(unit) > 1:
            found = Counter(items[index].label for index in unit)
            label = min(found, key=lambda name: (-found[name], name))
        units[label].append(unit)
    return units


def _check_sizes(items: Sequence[Item], units: dict[str, list[list[int]]], parts: list[str]) -> None:
    short = []
    for label in sorted(units):
        if len(units[label]) < len(parts):
            images = sum(item.label == label for item in items if item.split in ("", "train"))
            grouped = "" if images == len(units[label]) else f", in {len(units[label])} {_plural(len(units[label]), 'group')}"
            short.append(f"{label}: {images} {_plural(images, 'image')}{grouped}")
    if short:
        needed = f"the {'one split' if len(parts) == 1 else f'{len(parts)} splits'} ({', '.join(parts)})"
        raise UserError(
            f"{len(short)} of {len(units)} classes have too few images for {needed}; at least {len(parts)} are needed",
            short,
        )


def _counts(available: int, fractions: dict[str, float]) -> dict[str, int]:
    counts = {split: max(1, round(available * fraction)) for split, fraction in fractions.items()}
    while sum(counts.values()) >= available:
        largest = max(counts, key=lambda split: counts[split])
        counts[largest] -= 1
    return counts


def _take(order: list[list[int]], count: int, most: int) -> tuple[list[list[int]], list[list[int]]]:
    """Take units of together about `count` images, in order, at most so many units; return them, and the rest.

    Large ones are left to training, or a single one might be most of a small split.
    """
    largest = max(count // 4, sorted(map(len, order))[len(order) // 2], 1)
    taken: list[list[int]] = []
    rest: list[list[int]] = []
    remaining = count
    for unit in order:
        if len(unit) <= min(remaining, largest) and len(taken) < most:
            taken.append(unit)
            remaining -= len(unit)
        else:
            rest.append(unit)
    if not taken:
        smallest = min(range(len(order)), key=lambda number: len(order[number]))
        taken = [order[smallest]]
        rest = order[:smallest] + order[smallest + 1 :]
    return taken, rest


def _into_folds(items: Sequence[Item], splits: list[str], groups: NDArray[np.int64], data: Data) -> list[str]:
    """Divide what is not test into folds, stratified and with groups whole."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    numbers = np.array([index for index, split in enumerate(splits) if split != "test"])
    labels = np.array([items[index].label for index in numbers])
    own = np.unique(groups[numbers], return_inverse=True)[1]
    short = sorted(label for label, count in Counter(labels.tolist()).items() if count < data.folds)
    short = sorted({*short, *(label for label in set(labels.tolist()) if len(set(own[labels == label].tolist())) < 2)})
    if short:
        counts = Counter(labels.tolist())
        raise UserError(
            f"{len(short)} of {len(counts)} classes have too few images for data.folds {data.folds}; a class needs one image for each fold",
            [f"{label}: {counts[label]} {_plural(counts[label], 'image')} beside the test split" for label in short],
        )
    grouped = len(set(own.tolist())) < len(own)
    # Where every image is its own group, the plain form gives the more even folds, and takes seconds less.
    kind = StratifiedGroupKFold if grouped else StratifiedKFold
    folds = kind(data.folds, shuffle=True, random_state=data.seed).split(numbers, labels, own if grouped else None)
    result = list(splits)
    for fold, (_, chosen) in enumerate(folds):
        for index in numbers[chosen].tolist():
            result[index] = fold_name(fold)
    return result


def fold_name(fold: int) -> str:
    """Return how a fold is called among the splits."""
    return f"fold {fold}"


def sample(items: Sequence[Item], data: Data) -> list[Item]:
    """Keep at most `data.limit` images in the proportions of classes and given splits, at least enough of each to split.

    A limit below that minimum keeps the minimum; 0 keeps all.
    """
    if not data.limit:
        return list(items)
    members: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        members[item.label, item.split].append(index)
    rng = np.random.default_rng(data.seed)
    sizes = {key: len(members[key]) for key in sorted(members)}
    share = min(1.0, data.limit / len(items))
    least = max(len(SPLITS), data.folds + 1 if data.folds else 0)
    counts = {key: min(size, max(least, round(size * share))) for key, size in sizes.items()}
    while sum(counts.values()) > data.limit and max(counts.values()) > least:
        counts[max(counts, key=lambda key: counts[key])] -= 1
    kept = [index for key, count in counts.items() for index in rng.permutation(members[key])[:count].tolist()]
    return [items[index] for index in sorted(kept)]


def _plural(count: int, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"
