"""The order in which people look for names."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.natural_order import natural_key, natural_order


@pytest.mark.parametrize(
    "ordered",
    [
        [str(number) for number in range(1, 13)],
        ["class 2", "class 10", "class 10b", "Class 11"],
        ["01", "1", "1.5", "1.10", "2"],
        ["apple", "Banana", "cherry"],
        ["9", "1" * 5000, "2" * 5000],
        ["", "0", "a", "é"],
        ["a1", "a1b2", "a1b10", "ab"],
    ],
)
def test_numbers_in_names_count_as_numbers(ordered: list[str]) -> None:
    assert sorted(random.Random(0).sample(ordered, len(ordered)), key=natural_key) == ordered
    assert natural_order(ordered[::-1]) == list(range(len(ordered)))[::-1]


@given(st.lists(st.text(), max_size=20))
def test_any_names_have_one_order(names: list[str]) -> None:
    turned = names[::-1]
    assert sorted(names, key=natural_key) == sorted(turned, key=natural_key)
    assert sorted(natural_order(names)) == list(range(len(names)))
