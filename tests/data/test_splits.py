"""Which image trains, validates or tests."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import Data
from pipeline.data.sources import SPLITS, Item
from pipeline.data.splits import assign_splits as splits_of
from pipeline.data.splits import sample_images as sample_of
from pipeline.errors import UserError

COUNTS = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(3, 60), min_size=2)
FRACTIONS = st.tuples(st.floats(0.01, 0.49), st.floats(0.01, 0.49))


def items_of(counts: dict[str, int], split: str = "") -> list[Item]:
    return [
        Item(f"{split}/{label}/{number:03d}.png", label, split)
        for label, count in counts.items()
        for number in range(count)
    ]


def assign_splits(items: list[Item], data: Data, groups: np.ndarray | None = None) -> list[Item]:
    items = sample_of(items, data)
    return [
        replace(item, split=split)
        for item, split in zip(items, splits_of(items, data, groups), strict=True)
    ]


def count(items: list[Item], label: str = "") -> tuple[int, int, int]:
    found = Counter(item.split for item in items if not label or item.label == label)
    return found["train"], found["val"], found["test"]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(COUNTS, FRACTIONS, st.integers(0, 1000))
def test_splits_are_disjoint_complete_and_stratified(
    counts: dict[str, int], fractions: tuple[float, float], seed: int
) -> None:
    items = items_of(counts)
    data = Data(val_fraction=fractions[0], test_fraction=fractions[1], seed=seed)
    assigned = assign_splits(items, data)
    assert [replace(item, split="") for item in assigned] == items
    assert {item.split for item in assigned} == set(SPLITS)
    for label, number in counts.items():
        train, val, test = count(assigned, label)
        assert min(train, val, test) >= 1
        assert train + val + test == number
        assert abs(val - number * fractions[0]) <= 1 and abs(test - number * fractions[1]) <= 1
    assert assign_splits(items, data) == assigned


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (100, (70, 15, 15)),
        (20, (14, 3, 3)),
        (3, (1, 1, 1)),
        (4, (2, 1, 1)),
        (1000, (700, 150, 150)),
    ],
)
def test_70_15_15_by_default(number: int, expected: tuple[int, int, int]) -> None:
    assigned = assign_splits(items_of({"cat": number, "dog": number}), Data())
    assert count(assigned, "cat") == count(assigned, "dog") == expected


def test_a_class_too_small_for_large_fractions_still_trains() -> None:
    assert count(
        assign_splits(items_of({"cat": 3, "dog": 3}), Data(val_fraction=0.49, test_fraction=0.5)),
        "cat",
    ) == (1, 1, 1)


def test_another_seed_is_another_split() -> None:
    items = items_of({"cat": 50, "dog": 50})
    assert (
        len(
            {
                tuple(item.split for item in assign_splits(items, Data(seed=seed)))
                for seed in range(5)
            }
        )
        == 5
    )


def test_the_split_of_a_class_is_not_in_the_order_of_its_files() -> None:
    splits = [
        item.split
        for item in assign_splits(items_of({"cat": 40, "dog": 40}), Data())
        if item.label == "cat"
    ]
    assert splits != sorted(splits) and splits != sorted(splits, reverse=True)


def test_given_splits_are_kept() -> None:
    items = [item for split in SPLITS for item in items_of({"cat": 2, "dog": 3}, split)]
    assert assign_splits(items, Data()) == items


@settings(max_examples=50, deadline=None, derandomize=True)
@given(COUNTS, st.integers(1, 9), st.integers(0, 100))
def test_missing_validation_images_come_from_training_never_from_test(
    train: dict[str, int], test: int, seed: int
) -> None:
    items = items_of(train, "train") + items_of(dict.fromkeys(train, test), "test")
    assigned = assign_splits(items, Data(seed=seed))
    assert [item for item in assigned if item.split == "test"] == [
        item for item in items if item.split == "test"
    ]
    validating = [item for item in assigned if item.split == "val"]
    assert {item.label for item in validating} == set(train)
    assert all(item.path.startswith("train/") for item in validating)
    assert Counter(item.label for item in validating) == {
        label: max(1, round(0.15 * number)) for label, number in train.items()
    }


def test_missing_test_images_come_from_training_never_from_validation() -> None:
    items = items_of({"cat": 20, "dog": 20}, "train") + items_of({"cat": 5, "dog": 5}, "val")
    assigned = assign_splits(items, Data())
    assert count(assigned) == (34, 10, 6)
    assert {item.path.partition("/")[0] for item in assigned if item.split == "test"} == {"train"}


def test_classes_too_small_to_split_are_all_listed() -> None:
    with pytest.raises(UserError) as caught:
        assign_splits(items_of({"cat": 10, "dog": 2, "owl": 1}), Data())
    assert caught.value.message == (
        "2 of 3 classes have too few images for the 3 splits (train, val, test); at least 3 "
        "are needed"
    )
    assert caught.value.findings == ["dog: 2 images", "owl: 1 image"]


def test_a_class_without_training_images_is_listed() -> None:
    items = (
        items_of({"cat": 5}, "train")
        + items_of({"cat": 1, "dog": 1}, "val")
        + items_of({"cat": 1}, "test")
    )
    with pytest.raises(UserError) as caught:
        assign_splits(items, Data())
    assert caught.value.findings == ["dog: 0 images"]


def test_one_image_to_train_is_enough_where_the_splits_are_given() -> None:
    items = [item for split in SPLITS for item in items_of({"cat": 1, "dog": 1}, split)]
    assert assign_splits(items, Data()) == items


@settings(max_examples=100, deadline=None, derandomize=True)
@given(COUNTS, st.integers(24, 200), st.integers(0, 100))
def test_limit_is_the_most_images_and_keeps_every_class(
    counts: dict[str, int], limit: int, seed: int
) -> None:
    items = items_of(counts)
    sample = assign_splits(items, Data(limit=limit, seed=seed))
    assert len(sample) <= limit
    assert {replace(item, split="") for item in sample} <= set(items)
    assert {item.label for item in sample} == set(counts)


def test_a_limited_sample_is_stratified_and_seeded() -> None:
    items = items_of({"cat": 300, "dog": 100})
    sample = assign_splits(items, Data(limit=100))
    assert Counter(item.label for item in sample) == {"cat": 75, "dog": 25}
    assert assign_splits(items, Data(limit=100)) == sample
    assert assign_splits(items, Data(limit=100, seed=1)) != sample


def test_a_limit_above_the_number_of_images_changes_nothing() -> None:
    items = items_of({"cat": 30, "dog": 10})
    assert assign_splits(items, Data(limit=1000)) == assign_splits(items, Data())


def test_a_limited_sample_keeps_given_splits() -> None:
    items = [item for split in SPLITS for item in items_of({"cat": 40, "dog": 40}, split)]
    sample = assign_splits(items, Data(limit=120))
    assert count(sample) == (40, 40, 40)
    assert set(sample) <= set(items)


GROUPED = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 12)), min_size=12, max_size=60
).filter(lambda groups: all(sum(label == name for label, _ in groups) >= 5 for name in "abc"))


def grouped_items(groups: list[tuple[str, int]]) -> tuple[list[Item], np.ndarray]:
    items, numbers = [], []
    for number, (label, size) in enumerate(groups):
        items += [Item(f"{number}/{index}", label) for index in range(size)]
        numbers += [number] * size
    return items, np.array(numbers)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, derandomize=True)
@given(GROUPED, st.sampled_from([0, 2, 4]), st.integers(0, 100))
def test_groups_are_never_divided(groups: list[tuple[str, int]], folds: int, seed: int) -> None:
    items, numbers = grouped_items(groups)
    data = Data(folds=folds, seed=seed)
    splits = np.array(splits_of(items, data, numbers))
    assert all(
        len(set(splits[numbers == number].tolist())) == 1 for number in set(numbers.tolist())
    )
    expected = {"test", *(f"fold {fold}" for fold in range(folds))} if folds else set(SPLITS)
    assert set(splits.tolist()) == expected
    assert splits.tolist() == splits_of(items, data, numbers)
    if not folds:
        for label in "abc":
            assert {
                split for split, item in zip(splits, items, strict=True) if item.label == label
            } == set(SPLITS)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.sampled_from("ab")), min_size=60, max_size=120),
    st.integers(0, 50),
)
def test_a_group_of_several_classes_is_not_divided_either(
    members: list[tuple[int, str]], seed: int
) -> None:
    items = [
        Item(str(number), label, group=str(group)) for number, (group, label) in enumerate(members)
    ]
    numbers = np.array([group for group, _ in members])
    try:
        splits = np.array(splits_of(items, Data(seed=seed), numbers))
    except UserError as error:
        assert "too few images" in error.message
        return
    assert all(
        len(set(splits[numbers == number].tolist())) == 1 for number in set(numbers.tolist())
    )


def test_groups_of_one_are_split_as_without_groups() -> None:
    items = items_of({"cat": 50, "dog": 70})
    assert splits_of(items, Data(), np.arange(120)) == splits_of(items, Data())


def test_a_large_group_trains_and_does_not_fill_a_small_split() -> None:
    items = items_of({"cat": 100, "dog": 100})
    groups = np.arange(200)
    groups[:15] = 0
    for seed in range(20):
        splits = splits_of(items, Data(seed=seed), groups)
        assert splits[:15] == ["train"] * 15
        assert Counter(splits[:100]) == {"train": 70, "val": 15, "test": 15}


def test_patients_of_many_images_each_are_divided_in_the_wanted_proportions() -> None:
    items, numbers = grouped_items([(label, 50) for label in "ab" for _ in range(20)])
    found = Counter(splits_of(items, Data(), numbers))
    assert found == {"train": 1400, "val": 300, "test": 300}


def test_too_few_groups_are_listed_with_their_images() -> None:
    items, numbers = grouped_items([("a", 10), ("a", 3), *[("b", 1)] * 9])
    with pytest.raises(UserError) as caught:
        splits_of(items, Data(), numbers)
    assert caught.value.findings == ["a: 13 images, in 2 groups"]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(COUNTS, st.integers(2, 5), st.integers(0, 100))
def test_folds_are_disjoint_complete_and_stratified(
    counts: dict[str, int], folds: int, seed: int
) -> None:
    counts = {label: number + 5 for label, number in counts.items()}
    items = items_of(counts)
    splits = splits_of(items, Data(folds=folds, seed=seed))
    for label, number in counts.items():
        found = Counter(
            split for split, item in zip(splits, items, strict=True) if item.label == label
        )
        assert found["test"] == max(1, round(0.15 * number))
        of_folds = [found[f"fold {fold}"] for fold in range(folds)]
        assert sum(of_folds) + found["test"] == number
        assert max(of_folds) - min(of_folds) <= 1


def test_the_test_split_is_the_same_with_folds_as_a_given_one() -> None:
    items = items_of({"cat": 20, "dog": 20}, "train") + items_of({"cat": 4, "dog": 4}, "test")
    splits = splits_of(items, Data(folds=4))
    assert splits[40:] == ["test"] * 8
    assert Counter(splits[:40]) == {f"fold {fold}": 10 for fold in range(4)}


def test_classes_too_small_for_the_folds_are_listed() -> None:
    with pytest.raises(UserError, match=r"too few images for data\.folds 5") as caught:
        splits_of(items_of({"cat": 20, "dog": 5}), Data(folds=5))
    assert caught.value.findings == ["dog: 4 images beside the test split"]


def test_patients_with_images_of_several_classes_are_divided_in_each_class() -> None:
    # Two eyes of each patient, one healthy and one not.
    items = [
        Item(f"{patient}/{label}", label, group=str(patient))
        for patient in range(100)
        for label in ("healthy", "ill")
    ]
    groups = np.repeat(np.arange(100), 2)
    splits = splits_of(items, Data(), groups)
    for label in ("healthy", "ill"):
        assert Counter(
            split for split, item in zip(splits, items, strict=True) if item.label == label
        ) == {
            "train": 70,
            "val": 15,
            "test": 15,
        }
    assert splits[::2] == splits[1::2]
    assert splits_of(items, Data(seed=1), groups) != splits
    folds = splits_of(items, Data(folds=5), groups)
    assert folds[::2] == folds[1::2] and set(folds) == {
        "test",
        *(f"fold {fold}" for fold in range(5)),
    }


def test_large_groups_are_shared_out_in_proportion() -> None:
    items, numbers = grouped_items(
        [group for label in "ab" for group in [(label, 1)] * 10 + [(label, 40)] * 5]
    )
    found = Counter(splits_of(items, Data(), numbers))
    assert found == {"train": 260, "val": 80, "test": 80}


def test_an_image_without_a_split_follows_its_group() -> None:
    items = [
        *items_of({"cat": 20, "dog": 20}),
        *(
            replace(item, split=split)
            for split in ("val", "test")
            for item in items_of({"cat": 5, "dog": 5}, split)
        ),
    ]
    groups = np.arange(60)
    groups[0], groups[1], groups[2] = groups[40], groups[50], groups[51]
    groups[41] = groups[50]
    splits = splits_of(items, Data(), groups)
    assert splits[:3] == ["val", "test", "test"]
    assert splits[3:40] == ["train"] * 37
    assert splits[40:] == [item.split for item in items[40:]]


def test_our_own_test_split_shares_nothing_with_a_given_validation_split() -> None:
    items = [*items_of({"cat": 30, "dog": 30}, "train"), *items_of({"cat": 20, "dog": 20}, "val")]
    groups = np.arange(100)
    groups[:20], groups[30:50] = groups[60:80], groups[80:]
    splits = np.array(splits_of(items, Data(), groups))
    assert Counter(splits.tolist()) == {"train": 52, "val": 40, "test": 8}
    assert not set(groups[splits == "test"]) & set(groups[splits != "test"])


@pytest.mark.parametrize("seed", range(5))
def test_folds_keep_groups_of_given_training_and_validation_images_together(seed: int) -> None:
    items = [*items_of({"cat": 30, "dog": 30}, "train"), *items_of({"cat": 20, "dog": 20}, "val")]
    groups = np.arange(100)
    groups[:20], groups[30:50] = groups[60:80], groups[80:]
    splits = np.array(splits_of(items, Data(folds=3, seed=seed), groups))
    assert all(len(set(splits[groups == group].tolist())) == 1 for group in set(groups.tolist()))


def test_more_folds_than_groups_are_refused() -> None:
    items, numbers = grouped_items([(label, 6) for label in "ab" for _ in range(3)])
    with pytest.raises(UserError) as caught:
        splits_of(items, Data(folds=5), numbers)
    assert (
        caught.value.message
        == "data.folds 5 needs as many groups of images; there are 4 beside the test split"
    )


def test_training_images_that_leak_into_given_splits_train() -> None:
    items = [item for split in SPLITS for item in items_of({"cat": 2, "dog": 2}, split)]
    assert splits_of(items, Data(), np.arange(12) % 4) == [item.split for item in items]


def test_a_limited_sample_prefers_images_of_different_groups() -> None:
    items = [
        Item(f"{group}/{number}", label, group=f"{label}{group}")
        for label in "ab"
        for group in range(4)
        for number in range(50)
    ]
    kept = sample_of(items, Data(limit=12))
    assert Counter(item.label for item in kept) == {"a": 6, "b": 6}
    assert len({item.group for item in kept}) == 8


def test_a_limited_sample_is_enough_for_folds_beside_a_large_test_split() -> None:
    items = items_of({"cat": 100, "dog": 100})
    data = Data(limit=10, folds=5, test_fraction=0.5)
    assert set(splits_of(sample_of(items, data), data)) == {
        "test",
        *(f"fold {fold}" for fold in range(5)),
    }
