"""Which image trains, validates or tests: stratified by class, groups on one side, seeded, disjoint and complete."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Data
from pipeline.data.sources.source import SPLITS, Item
from pipeline.errors import UserError

Classes = Mapping[str, int]
"""How many images of each class."""


def assign_splits(
    items: Sequence[Item], data: Data, groups: NDArray[np.int64] | None = None
) -> list[str]:
    """Return a split for every image, keeping those a source has given.

    Parts that the source lacks are taken from its training images, in each class the rounded fraction, at least one image,
    at least one left to train. Groups are taken whole, and an image without a split follows the others of its
    group. With ``data.folds`` what is not test is divided into ``fold 0``, ``fold 1``, … of about equal size instead.

    Args:
        items: Images.
        data: Fractions, seed and folds.
        groups: A number per image; images of equal number are not separated. None: each on its own.

    Raises:
        UserError: Classes too small to split, or without a training image; all are listed.
    """
    groups = np.arange(len(items)) if groups is None else groups
    # Folds take the place of a given validation split.
    splits = ["" if data.folds and item.split == "val" else item.split for item in items]
    given = {item.split for item in items if item.split}
    wanted = (
        (("test", data.test_fraction),)
        if data.folds
        else (("val", data.val_fraction), ("test", data.test_fraction))
    )
    fractions = {split: fraction for split, fraction in wanted if split not in given}
    units = _units(items, splits, groups)
    _check_sizes(items, splits, units, ["train", *fractions])
    one = {item.label: Counter({item.label: 1}) for item in items}
    classes = [
        one[items[unit[0]].label]
        if len(unit) == 1
        else Counter(items[index].label for index in unit)
        for unit in units
    ]
    available = Counter(
        item.label for item, split in zip(items, splits, strict=True) if split in ("", "train")
    )
    for unit, split in zip(units, _divided(classes, available, fractions, data.seed), strict=True):
        for index in unit:
            splits[index] = split
    splits = [split or "train" for split in splits]
    return _into_folds(items, splits, groups, data) if data.folds else splits


def _units(items: Sequence[Item], splits: list[str], groups: NDArray[np.int64]) -> list[list[int]]:
    """Return the sets of training images that may be moved, each together.

    An image without a split whose group validates or tests already is given that one in `splits`. A set one of whose group validates or
    tests already stays where it is: moved, it would be a second leak.
    """
    free: defaultdict[int, list[int]] = defaultdict(list)
    bound: dict[int, str] = {}
    for index, group in enumerate(groups.tolist()):
        if splits[index] in ("", "train"):
            free[group].append(index)
        elif bound.get(group) != "test":
            bound[group] = splits[index]
    for group in bound.keys() & free.keys():
        for index in free.pop(group):
            splits[index] = splits[index] or bound[group]
    return list(free.values())


def _check_sizes(
    items: Sequence[Item], splits: Sequence[str], units: list[list[int]], parts: list[str]
) -> None:
    movable = {index for unit in units for index in unit}
    of_class = Counter(label for unit in units for label in {items[index].label for index in unit})
    # What trains and may not be moved needs no unit for the training split.
    of_class.update(
        {
            items[index].label
            for index, split in enumerate(splits)
            if split == "train" and index not in movable
        }
    )
    labels = sorted({item.label for item in items})
    short = []
    for label in labels:
        if of_class[label] < len(parts):
            images = sum(item.label == label for item in items if item.split in ("", "train"))
            short.append(_images_in_groups(label, images, of_class[label]))
    if not short:
        return
    classes = f"{len(short)} of {len(labels)} classes {'has' if len(short) == 1 else 'have'}"
    if len(parts) == 1:
        raise UserError(f"{classes} no training images", short)
    raise UserError(
        f"{classes} too few images for the {len(parts)} splits ({', '.join(parts)}); at least {len(parts)} are needed",
        short,
    )


def _divided(
    units: Sequence[Classes], available: Classes, fractions: Mapping[str, float], seed: int
) -> list[str]:
    """Return a split for each unit: groups first, then as many single images of each class as are still wanted."""
    result = ["train"] * len(units)
    if not fractions:
        return result
    singles: defaultdict[str, list[int]] = defaultdict(list)
    grouped = [number for number, unit in enumerate(units) if sum(unit.values()) > 1]
    for number, unit in enumerate(units):
        for label in unit:
            singles[label] += [number] if sum(unit.values()) == 1 else []
    have = _place_groups(units, grouped, available, fractions, seed, result)
    rng = np.random.default_rng(seed)
    for label in sorted(available):
        order = [singles[label][number] for number in rng.permutation(len(singles[label]))]
        for split, count in _counts(available[label], fractions).items():
            missing = max(0, count - have[split][label])
            for number in order[:missing]:
                result[number] = split
            order = order[missing:]
    _fill_empty(units, available, result, ["train", *fractions])
    return result


def _place_groups(
    units: Sequence[Classes],
    grouped: list[int],
    available: Classes,
    fractions: Mapping[str, float],
    seed: int,
    result: list[str],
) -> dict[str, Counter[str]]:
    """Put each group into the split whose classes it fits best; return how many images of each class each split has then.

    Greedy, large groups first, by the growth of the sum over classes and splits of (part - fraction)² / fraction, where part is how much of
    the class the split has: Pearson's chi-squared, so that a small split does not take a group that fills it.
    """
    wanted = {"train": 1 - sum(fractions.values()), **fractions}
    have: dict[str, Counter[str]] = {split: Counter() for split in wanted}
    have["train"].update(available)
    for unit in units:
        have["train"].subtract(unit)

    def growth(unit: Classes, split: str) -> float:
        total = 0.0
        for label, count in unit.items():
            part, added = have[split][label] / available[label], count / available[label]
            total += added * (2 * (part - wanted[split]) + added) / wanted[split]
        return total

    order = [grouped[number] for number in np.random.default_rng(seed).permutation(len(grouped))]
    # By size to a factor of two only, or another seed would be the same split.
    for number in sorted(order, key=lambda number: -int(math.log2(sum(units[number].values())))):
        result[number] = min(wanted, key=lambda split: growth(units[number], split))
        have[result[number]].update(units[number])
    return have


def _fill_empty(
    units: Sequence[Classes], available: Classes, result: list[str], splits: list[str]
) -> None:
    """Move a unit into each split that lacks a class, the smallest that takes no class from where it was."""
    of_class = {
        split: Counter(
            label for unit, own in zip(units, result, strict=True) if own == split for label in unit
        )
        for split in splits
    }
    for label in sorted(available):
        for split in splits:
            if of_class[split][label]:
                continue
            movable = [
                number
                for number, unit in enumerate(units)
                if label in unit and all(of_class[result[number]][own] > 1 for own in unit)
            ]
            if movable:
                chosen = min(movable, key=lambda number: sum(units[number].values()))
                of_class[result[chosen]].subtract(dict.fromkeys(units[chosen], 1))
                of_class[split].update(dict.fromkeys(units[chosen], 1))
                result[chosen] = split


def _counts(available: int, fractions: Mapping[str, float]) -> dict[str, int]:
    counts = {split: max(1, round(available * fraction)) for split, fraction in fractions.items()}
    while sum(counts.values()) >= available and max(counts.values()) > 0:
        largest = max(counts, key=lambda split: counts[split])
        counts[largest] -= 1
    return counts


def _into_folds(
    items: Sequence[Item], splits: list[str], groups: NDArray[np.int64], data: Data
) -> list[str]:
    """Divide what is not test into folds, stratified and with groups whole."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    numbers = np.array([index for index, split in enumerate(splits) if split != "test"])
    labels = np.array([items[index].label for index in numbers])
    own = np.unique(groups[numbers], return_inverse=True)[1]
    of_class = {
        label: (int((labels == label).sum()), len(set(own[labels == label].tolist())))
        for label in sorted(set(labels.tolist()))
    }
    # Of two groups one trains always. A class of fewer groups than folds is missing from some, of which a warning tells.
    short = {
        label: (images, parts)
        for label, (images, parts) in of_class.items()
        if images < data.folds or parts < 2
    }
    if short:
        raise UserError(
            f"{len(short)} of {len(of_class)} classes {'has' if len(short) == 1 else 'have'} too few images for data.folds {data.folds}; "
            "a class needs one image for each fold, in two groups at least",
            [
                f"{_images_in_groups(label, images, parts)} beside the test split"
                for label, (images, parts) in short.items()
            ],
        )
    if (groups_left := len(set(own.tolist()))) < data.folds:
        raise UserError(
            f"data.folds {data.folds} needs as many groups of images; there are {groups_left} beside the test split"
        )
    grouped = len(set(own.tolist())) < len(own)
    # Where every image is its own group, the plain form gives the more even folds, and takes seconds less.
    kind = StratifiedGroupKFold if grouped else StratifiedKFold
    folds = kind(data.folds, shuffle=True, random_state=data.seed).split(
        numbers, labels, own if grouped else None
    )
    result = list(splits)
    for fold, (_, chosen) in enumerate(folds):
        for index in numbers[chosen].tolist():
            result[index] = fold_name(fold)
    return result


def fold_name(fold: int) -> str:
    """Return how a fold is called among the splits."""
    return f"fold {fold}"


def sample_images(items: Sequence[Item], data: Data) -> list[Item]:
    """Keep at most `data.limit` images in the proportions of classes and given splits, at least enough of each to split.

    A limit below that minimum keeps the minimum; 0 keeps all. Images of different groups are preferred, since groups are split.
    """
    if not data.limit:
        return list(items)
    members: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        members[item.label, item.split].append(index)
    rng = np.random.default_rng(data.seed)
    sizes = {key: len(members[key]) for key in sorted(members)}
    share = min(1.0, data.limit / len(items))
    least = max(
        len(SPLITS), math.ceil((data.folds + 1) / (1 - data.test_fraction)) if data.folds else 0
    )
    counts = {key: min(size, max(least, round(size * share))) for key, size in sizes.items()}
    while sum(counts.values()) > data.limit and max(counts.values()) > least:
        counts[max(counts, key=lambda key: counts[key])] -= 1
    kept = []
    for key, count in counts.items():
        order = rng.permutation(members[key]).tolist()
        seen: Counter[str] = Counter()
        repeated = {}
        for index in order:
            repeated[index] = seen[items[index].group] if items[index].group else 0
            seen[items[index].group] += 1
        kept += sorted(order, key=repeated.__getitem__)[:count]
    return [items[index] for index in sorted(kept)]


def _images_in_groups(label: str, images: int, groups: int) -> str:
    return f"{label}: {_counted(images, 'image')}{'' if images == groups else ', in ' + _counted(groups, 'group')}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
