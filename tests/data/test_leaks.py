"""Leaks between splits and the quality gate, by themselves.

They are compared with what their definitions say, for any sets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import Data
from pipeline.data.examine import Examined
from pipeline.data.leaks import MOST_GROUPS, find_leaks, warn_of_divided_groups
from pipeline.data.quality_gate import Inspection, inspect
from pipeline.data.sources import Item

ORDER = ["train", "val", "test"]
# Pictures by number; those of one tens digit are nearly equal.
PICTURES = st.lists(st.sampled_from([0, 1, 10, 11, 20, 30]), min_size=1, max_size=12)


def items_of(pictures: Sequence[int], splits: Sequence[str], groups: Sequence[str]) -> list[Item]:
    return [
        Item(f"{number:02d}.png", "cat", split, group)
        for number, (_, split, group) in enumerate(zip(pictures, splits, groups, strict=True))
    ]


def inspection_of(pictures: Sequence[int], items: list[Item]) -> Inspection:
    """Return what the gate finds in pictures of which those of one tens digit are alike."""
    sets: dict[int, list[int]] = {}
    for number, picture in enumerate(pictures):
        sets.setdefault(picture // 10, []).append(number)
    return Inspection(
        items,
        list(range(len(items))),
        {},
        [members for members in sets.values() if len(members) > 1],
        np.array(pictures),
        np.arange(len(items)),
    )


@st.composite
def split_pictures(draw: st.DrawFn) -> tuple[list[int], list[str]]:
    pictures = draw(PICTURES)
    length = len(pictures)
    splits = draw(st.lists(st.sampled_from([*ORDER, ""]), min_size=length, max_size=length))
    return pictures, splits


@given(split_pictures())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_an_image_leaks_if_and_only_if_a_later_split_has_one_like_it(
    given_pictures: tuple[list[int], list[str]],
) -> None:
    pictures, splits = given_pictures
    items = items_of(pictures, splits, [""] * len(pictures))
    found = find_leaks(inspection_of(pictures, items), lambda number: splits[number], ORDER)
    by_first = {leak["first"]: leak for leak in found}
    assert len(by_first) == len(found)
    for number, item in enumerate(items):
        later = []
        for other, split in enumerate(splits):
            is_alike = pictures[other] // 10 == pictures[number] // 10
            is_assigned = split and splits[number]
            if is_alike and is_assigned and ORDER.index(split) > ORDER.index(splits[number]):
                later.append(other)
        assert (item.path in by_first) == bool(later)
        if not later:
            continue
        leak = by_first[item.path]
        equal = [other for other in later if pictures[other] == pictures[number]]
        # An equal one if there is any, in the latest split that has one.
        last = max(ORDER.index(splits[other]) for other in equal or later)
        assert leak["kind"] == ("equal" if equal else "near")
        assert leak["second_split"] == ORDER[last]
        assert int(leak["second"][:2]) in (equal or later)
        assert leak["first_split"] == splits[number]


def test_what_drop_has_left_out_is_a_leak_that_is_removed() -> None:
    items = items_of([0, 0], ["train", "test"], ["", ""])
    inspection = inspection_of([0, 0], items)
    inspection.quarantined[0] = "copy of 01.png"
    (leak,) = find_leaks(inspection, lambda number: items[number].split, ORDER)
    assert leak["removed"] and leak["first"] == "00.png"


def test_groups_in_several_splits_are_named_up_to_a_number() -> None:
    count = MOST_GROUPS + 3
    groups = [f"patient {number:02d}" for number in range(count)] * 2
    splits = ["train"] * count + ["test"] * count
    items = items_of([0] * len(groups), splits, groups)
    warnings = warn_of_divided_groups(
        inspection_of(list(range(0, 10 * len(items), 10)), items), lambda number: splits[number]
    )
    assert warnings[0] == "group 'patient 00' stands in test and train"
    assert len(warnings) == MOST_GROUPS + 1
    assert warnings[-1] == "and 3 more groups in several splits"


def test_a_group_in_one_split_or_in_none_is_not_divided() -> None:
    items = items_of([0, 10, 20], ["train", "train", ""], ["a", "a", "a"])
    inspection = inspection_of([0, 10, 20], items)
    assert warn_of_divided_groups(inspection, lambda number: items[number].split) == []


def examined_of(pictures: Sequence[int], unreadable: Sequence[int]) -> Examined:
    """Return what examining pictures of far apart hashes finds; equal numbers are equal pixels."""
    examined = Examined.empty(len(pictures))
    for number, picture in enumerate(pictures):
        examined.pixels[number] = np.frombuffer(picture.to_bytes(16, "big"), np.uint8)
    for number in unreadable:
        examined.unreadable[number] = "truncated"
    return examined


@st.composite
def gate_inputs(draw: st.DrawFn) -> tuple[list[int], list[str], list[str], list[int]]:
    pictures = draw(PICTURES)
    length = len(pictures)
    splits = draw(st.lists(st.sampled_from([*ORDER, ""]), min_size=length, max_size=length))
    groups = draw(st.lists(st.sampled_from(["", "a", "b"]), min_size=length, max_size=length))
    unreadable = draw(st.lists(st.integers(0, length - 1), unique=True, max_size=3))
    return pictures, splits, groups, unreadable


@given(gate_inputs(), st.sampled_from(["warn", "group", "drop", "ignore"]))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_the_gate_keeps_each_picture_as_its_policy_says(
    inputs: tuple[list[int], list[str], list[str], list[int]], policy: str
) -> None:
    pictures, splits, groups, unreadable = inputs
    items = items_of(pictures, splits, groups)
    data = Data.model_validate({"duplicates": policy, "near_distance": -1})
    found = inspect(items, examined_of(pictures, unreadable), data)
    assert sorted([*found.kept, *found.quarantined]) == list(range(len(items)))
    assert set(unreadable) <= set(found.quarantined)
    readable = set(range(len(items))) - set(unreadable)
    if policy == "drop":
        for picture in {pictures[number] for number in readable}:
            kept = [number for number in found.kept if pictures[number] == picture]
            in_test = [number for number in readable if pictures[number] == picture]
            in_test = [number for number in in_test if splits[number] == "test"]
            # Test images are never left out for one another.
            assert len(kept) == max(1, len(in_test))
            assert set(in_test) <= set(kept)
    else:
        assert set(found.kept) == readable
    for first in readable:
        for second in readable:
            is_same_group = groups[first] and groups[first] == groups[second]
            is_copy = policy == "group" and pictures[first] == pictures[second]
            if is_same_group or is_copy:
                assert found.groups[first] == found.groups[second]
    if policy == "ignore":
        assert found.duplicates == []
