"""Accuracy in parts of the test images."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pipeline.scores.intervals import wilson_interval
from pipeline.scores.slices import COLUMNS, slice_accuracy

RIGHT = np.array([True] * 6 + [False] * 2 + [True] * 2)


def test_each_value_is_a_slice_the_worst_first() -> None:
    scanner = pd.Series(["A"] * 5 + ["B"] * 4 + [""])
    table = slice_accuracy(RIGHT, {"scanner": scanner})
    assert list(table) == COLUMNS
    assert table[["value", "images", "accuracy"]].to_numpy().tolist() == [
        ["B", 4, 0.5],
        ["A", 5, 1.0],
    ]
    assert table.loc[0, ["accuracy_low", "accuracy_high"]].tolist() == list(wilson_interval(2, 4))
    # Of the six others all are right.
    assert table["behind_rest"].tolist() == pytest.approx([0.5, 0.6 - 1.0])


def test_many_numbers_are_cut_into_ranges() -> None:
    ages = pd.Series([str(20.5 + number) for number in range(9)] + [""])
    table = slice_accuracy(RIGHT, {"age": ages})
    assert table["images"].sum() == 9 and len(table) == 4
    assert table["accuracy"].is_monotonic_increasing
    assert " to " in table["value"][0]


def test_many_texts_are_no_slices_unless_they_are_groups() -> None:
    texts = pd.Series([f"patient {number // 2}" for number in range(10)])
    assert slice_accuracy(RIGHT, {"comment": texts}).empty
    groups = slice_accuracy(RIGHT, {"group": texts})
    assert len(groups) == 5 and groups["accuracy"].tolist() == [0.0, 1.0, 1.0, 1.0, 1.0]


def test_one_slice_of_all_images_is_behind_nothing() -> None:
    table = slice_accuracy(RIGHT, {"all": pd.Series(["x"] * 10)})
    assert table["accuracy"].tolist() == [0.8] and table["behind_rest"].isna().all()


def test_without_columns_the_table_is_empty() -> None:
    assert list(slice_accuracy(RIGHT, {})) == COLUMNS
    missing = pd.Series([None] * 10, dtype=object)
    assert slice_accuracy(RIGHT, {"nothing": missing}).empty


def test_ranges_of_near_numbers_have_names_of_their_own() -> None:
    taken = pd.Series(1717200000 + 60 * np.arange(400))
    found = slice_accuracy(np.arange(400) % 3 > 0, {"taken": taken})
    assert found["value"].nunique() == len(found) == 4
    assert found["images"].sum() == 400
    assert found["value"].str.contains("17172000").any()


def test_numbers_without_an_end_are_in_no_range() -> None:
    size = pd.Series([*map(float, range(397)), np.inf, -np.inf, np.nan])
    found = slice_accuracy(np.ones(400, bool), {"size": size})
    assert found["images"].sum() == 397


def test_the_interval_of_a_slice_counts_groups() -> None:
    correct = np.arange(400) % 5 > 0
    scanner = pd.Series(np.where(np.arange(400) < 200, "old", "new"))
    groups = np.where(np.arange(400) < 200, np.arange(400) // 4, 1000 + np.arange(400) // 40)
    found = slice_accuracy(correct, {"scanner": scanner}, groups).set_index("value")
    assert found.loc["old", "accuracy_low"] < 0.8 < found.loc["old", "accuracy_high"]
    # Five groups say too little.
    assert np.isnan(found.loc["new", "accuracy_low"])
