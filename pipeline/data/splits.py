"""Decide which image trains, validates or tests.

The splits are stratified by class, follow from the seed, have no image in common, and together hold
all images. The images of a group stay in one split.
"""

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
"""Number of images of each class."""


def assign_splits(
    items: Sequence[Item], data: Data, groups: NDArray[np.int64] | None = None
) -> list[str]:
    """Return a split for every image; a split that the source has given stays.

    Splits that the source lacks are taken from its training images: of each class the rounded
    fraction, but at least one image, and at least one is left to train. Groups are taken whole, and
    an image without a split follows the others of its group. With ``data.folds`` all images but the
    test split's are divided into ``fold 0``, ``fold 1``, … of about equal size instead.

    Args:
        items: The images.
        data: Fractions, seed and folds.
        groups: A number per image; images of equal number are not separated. None: each image is a
            group of its own.

    Raises:
        UserError: Classes are too small to split, or have no training image; all are listed.
    """
    if groups is None:
        groups = np.arange(len(items))
    splits = [item.split for item in items]
    wanted = {"val": data.val_fraction, "test": data.test_fraction}
    if data.folds:
        # Folds take the place of a given validation split.
        del wanted["val"]
        for index, split in enumerate(splits):
            if split == "val":
                splits[index] = ""
    given = {item.split for item in items}
    fractions = {split: fraction for split, fraction in wanted.items() if split not in given}
    units = _find_units(splits, groups)
    _check_sizes(items, splits, units, ["train", *fractions])
    classes = _count_classes(items, units)
    available = Counter(
        item.label for item, split in zip(items, splits, strict=True) if split in ("", "train")
    )
    divided = _divide(classes, available, fractions, data.seed)
    for unit, split in zip(units, divided, strict=True):
        for index in unit:
            splits[index] = split
    splits = [split or "train" for split in splits]
    return _divide_into_folds(items, splits, groups, data) if data.folds else splits


def _find_units(splits: list[str], groups: NDArray[np.int64]) -> list[list[int]]:
    """Return the sets of training images that may be moved; each set is moved whole.

    If the group of an image without a split validates or tests already, the image is given the
    same split in `splits`. If a part of a training image's group validates or tests already, the
    image stays where it is: moved, it would be a second leak.
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
    movable: set[int] = set()
    num_units: Counter[str] = Counter()
    for unit in units:
        movable.update(unit)
        num_units.update({items[index].label for index in unit})
    # A class with an image that trains and may not be moved needs no unit for the training split.
    num_units.update(
        {
            items[index].label
            for index, split in enumerate(splits)
            if split == "train" and index not in movable
        }
    )
    labels = sorted({item.label for item in items})
    short = []
    for label in labels:
        if num_units[label] < len(parts):
            images = sum(item.label == label for item in items if item.split in ("", "train"))
            short.append(_images_in_groups(label, images, num_units[label]))
    if not short:
        return
    classes = _classes_have(len(short), len(labels))
    if len(parts) == 1:
        raise UserError(f"{classes} no training images", short)
    raise UserError(
        f"{classes} too few images for the {len(parts)} splits ({', '.join(parts)}); "
        f"at least {len(parts)} are needed",
        short,
    )


def _count_classes(items: Sequence[Item], units: list[list[int]]) -> list[Classes]:
    # All units of one image of a class share a counter: there may be millions of them.
    one = {item.label: Counter({item.label: 1}) for item in items}
    classes: list[Classes] = []
    for unit in units:
        if len(unit) == 1:
            classes.append(one[items[unit[0]].label])
        else:
            classes.append(Counter(items[index].label for index in unit))
    return classes


def _divide(
    units: Sequence[Classes], available: Classes, fractions: Mapping[str, float], seed: int
) -> list[str]:
    """Return a split for each unit.

    Groups are placed first, then as many single images of each class as are still wanted.
    """
    result = ["train"] * len(units)
    if not fractions:
        return result
    grouped = []
    singles: defaultdict[str, list[int]] = defaultdict(list)
    for number, unit in enumerate(units):
        if sum(unit.values()) > 1:
            grouped.append(number)
        else:
            singles[next(iter(unit))].append(number)
    have = _place_groups(units, grouped, available, fractions, seed, result)
    rng = np.random.default_rng(seed)
    for label in sorted(available):
        own = singles[label]
        order = [own[place] for place in rng.permutation(len(own))]
        for split, count in _wanted_counts(available[label], fractions).items():
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
    """Put each group into the split that it fits best, and return each split's images by class.

    The choice is greedy, large groups first. A group goes where the sum over classes and splits of
    (part - fraction)² / fraction grows least; part is how much of the class the split has. This is
    Pearson's chi-squared, so that a small split does not take a group that fills it.

    Args:
        units: Number of images by class, for each unit.
        grouped: Numbers of the units that are groups.
        available: Number of images by class, in all units and in images that may not be moved.
        fractions: Fraction of the images by split; the rest trains.
        seed: Seed of the order among groups of about equal size.
        result: Split of each unit; those of groups are set here.
    """
    wanted = {"train": 1 - sum(fractions.values()), **fractions}
    have: dict[str, Counter[str]] = {split: Counter() for split in wanted}
    have["train"].update(available)
    for unit in units:
        have["train"].subtract(unit)

    def growth(unit: Classes, split: str) -> float:
        total = 0.0
        for label, count in unit.items():
            part = have[split][label] / available[label]
            added = count / available[label]
            total += added * (2 * (part - wanted[split]) + added) / wanted[split]
        return total

    rng = np.random.default_rng(seed)
    order = [grouped[place] for place in rng.permutation(len(grouped))]
    # Sizes are compared to a factor of two only, or another seed would give the same split.
    for number in sorted(order, key=lambda number: -int(math.log2(sum(units[number].values())))):
        result[number] = min(wanted, key=lambda split: growth(units[number], split))
        have[result[number]].update(units[number])
    return have


def _fill_empty(
    units: Sequence[Classes], available: Classes, result: list[str], splits: list[str]
) -> None:
    """Move a unit into each split that lacks a class.

    It is the smallest unit with an image of the class whose split does not lose a class by it.
    """
    num_units: dict[str, Counter[str]] = {split: Counter() for split in splits}
    for unit, split in zip(units, result, strict=True):
        num_units[split].update(unit.keys())
    for label in sorted(available):
        for split in splits:
            if num_units[split][label]:
                continue
            movable = [
                number
                for number, unit in enumerate(units)
                if label in unit and _can_spare(num_units[result[number]], unit)
            ]
            if movable:
                chosen = min(movable, key=lambda number: sum(units[number].values()))
                num_units[result[chosen]].subtract(units[chosen].keys())
                num_units[split].update(units[chosen].keys())
                result[chosen] = split


def _can_spare(num_units: Counter[str], unit: Classes) -> bool:
    """Whether a split that has so many units of each class has another one for each in `unit`."""
    return all(num_units[label] > 1 for label in unit)


def _wanted_counts(available: int, fractions: Mapping[str, float]) -> dict[str, int]:
    counts = {split: max(1, round(available * fraction)) for split, fraction in fractions.items()}
    while sum(counts.values()) >= available and max(counts.values()) > 0:
        largest = max(counts, key=lambda split: counts[split])
        counts[largest] -= 1
    return counts


def _divide_into_folds(
    items: Sequence[Item], splits: list[str], groups: NDArray[np.int64], data: Data
) -> list[str]:
    """Divide all images but the test split's into folds, stratified and with groups whole."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    numbers = np.array([index for index, split in enumerate(splits) if split != "test"])
    labels = np.array([items[index].label for index in numbers])
    own = np.unique(groups[numbers], return_inverse=True)[1]
    _check_fold_sizes(labels, own, data.folds)
    if len(np.unique(own)) < len(own):
        kind = StratifiedGroupKFold(data.folds, shuffle=True, random_state=data.seed)
        folds = kind.split(numbers, labels, own)
    else:
        # If every image is its own group, the plain form gives more even folds, and takes seconds
        # less.
        kind = StratifiedKFold(data.folds, shuffle=True, random_state=data.seed)
        folds = kind.split(numbers, labels)
    result = list(splits)
    for fold, (_, chosen) in enumerate(folds):
        for index in numbers[chosen].tolist():
            result[index] = fold_name(fold)
    return result


def _check_fold_sizes(labels: NDArray[np.str_], groups: NDArray[np.int64], num_folds: int) -> None:
    """Check that there are enough images and groups for so many folds.

    A class needs two groups, so that one of them always trains. A class that has fewer groups than
    there are folds is missing from some folds; a warning says so.
    """
    classes = sorted(set(labels.tolist()))
    short = []
    for label in classes:
        own = groups[labels == label]
        num_groups = len(np.unique(own))
        if len(own) < num_folds or num_groups < 2:
            short.append(f"{_images_in_groups(label, len(own), num_groups)} beside the test split")
    if short:
        raise UserError(
            f"{_classes_have(len(short), len(classes))} too few images for data.folds {num_folds}; "
            "a class needs one image for each fold, in two groups at least",
            short,
        )
    num_groups = len(np.unique(groups))
    if num_groups < num_folds:
        raise UserError(
            f"data.folds {num_folds} needs as many groups of images; "
            f"there are {num_groups} beside the test split"
        )


def fold_name(fold: int) -> str:
    """Return the name of a fold among the splits."""
    return f"fold {fold}"


def sample_images(items: Sequence[Item], data: Data) -> list[Item]:
    """Keep at most `data.limit` images, in the proportions of classes and given splits.

    At least as many images of each class and given split are kept as are needed to split them; a
    limit below that minimum keeps the minimum. A limit of 0 keeps all images. Images of different
    groups are preferred, since groups are split.
    """
    if not data.limit:
        return list(items)
    members: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        members[item.label, item.split].append(index)
    least = len(SPLITS)
    if data.folds:
        least = max(least, math.ceil((data.folds + 1) / (1 - data.test_fraction)))
    counts = _limit_counts({key: len(members[key]) for key in sorted(members)}, data.limit, least)
    rng = np.random.default_rng(data.seed)
    kept = []
    for key, count in counts.items():
        order = rng.permutation(members[key]).tolist()
        kept += _take_from_groups(items, order, count)
    return [items[index] for index in sorted(kept)]


def _limit_counts(
    sizes: Mapping[tuple[str, str], int], limit: int, least: int
) -> dict[tuple[str, str], int]:
    """Return how many images of each kind are kept.

    They are `limit` in all, but at least `least` of each kind, or all of a smaller kind.
    """
    share = min(1.0, limit / sum(sizes.values()))
    counts = {key: min(size, max(least, round(size * share))) for key, size in sizes.items()}
    while sum(counts.values()) > limit and max(counts.values()) > least:
        largest = max(counts, key=lambda key: counts[key])
        counts[largest] -= 1
    return counts


def _take_from_groups(items: Sequence[Item], order: list[int], count: int) -> list[int]:
    """Return so many images, the first of each group before the second ones."""
    seen: Counter[str] = Counter()
    repeated = {}
    for index in order:
        group = items[index].group
        repeated[index] = seen[group] if group else 0
        seen[group] += 1
    return sorted(order, key=repeated.__getitem__)[:count]


def _images_in_groups(label: str, images: int, groups: int) -> str:
    text = f"{label}: {_counted(images, 'image')}"
    if images != groups:
        text += f", in {_counted(groups, 'group')}"
    return text


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _classes_have(count: int, total: int) -> str:
    verb = "has" if count == 1 else "have"
    return f"{count} of {total} classes {verb}"
