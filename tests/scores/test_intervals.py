"""Intervals hold the truth as often as they promise, also where images come in groups."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from pipeline.scores import intervals


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [(322, 350, 88.7, 94.4), (0, 10, 0.0, 27.8), (10, 10, 72.2, 100.0), (1, 2, 9.5, 90.5)],
)
def test_wilson_interval_in_percent(correct: int, total: int, low: float, high: float) -> None:
    found = intervals.wilson_interval(correct, total)
    assert [round(100 * end, 1) for end in found] == [low, high]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 2000), st.data())
def test_the_interval_of_whole_numbers_is_scipys(total: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, total))
    peer = stats.binomtest(correct, total).proportion_ci(0.95, method="wilson")
    low, high = intervals.wilson_interval(correct, total)
    assert (low, high) == pytest.approx((peer.low, peer.high), abs=1e-12)
    assert 0 <= low <= correct / total <= high <= 1
    assert low < high


def grouped(
    rng: np.random.Generator, num_groups: int, each: int, share: float, correlation: float
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return answers whose correlation within a group is given, and the groups."""
    scale = 1 / correlation - 1
    shares = rng.beta(share * scale, (1 - share) * scale, num_groups)
    return rng.random(num_groups * each) < np.repeat(shares, each), np.repeat(
        np.arange(num_groups), each
    )


def coverage(num_groups: int, uses_groups: bool, rounds: int = 400) -> float:
    rng = np.random.default_rng(num_groups)
    hits = 0
    for _ in range(rounds):
        correct, groups = grouped(rng, num_groups, 8, 0.85, 0.3)
        found = intervals.rate_interval(correct, groups if uses_groups else None)
        assert found is not None
        hits += found[0] <= 0.85 <= found[1]
    return hits / rounds


@pytest.mark.parametrize("num_groups", [20, 60, 200])
def test_of_grouped_images_the_interval_holds_the_truth(num_groups: int) -> None:
    assert coverage(num_groups, uses_groups=True) > 0.9
    # As if they were independent it would not.
    assert coverage(num_groups, uses_groups=False) < 0.85


def test_groups_of_one_image_are_no_groups() -> None:
    correct = np.random.default_rng(0).random(200) < 0.8
    alone = intervals.rate_interval(correct, None)
    assert intervals.rate_interval(correct, np.arange(200)) == pytest.approx(alone, rel=0.01)


def test_groups_whose_images_are_answered_alike_count_once_each() -> None:
    each = np.arange(100) < 80
    correct, groups = np.repeat(each, 10), np.repeat(np.arange(100), 10)
    assert intervals.effective_number(correct, groups) == pytest.approx(100, rel=0.05)
    assert intervals.effective_number(np.ones(1000, dtype=bool), groups) < 100


@pytest.mark.parametrize(("num_groups", "are_enough"), [(19, False), (20, True)])
def test_of_few_groups_there_is_no_interval(num_groups: int, are_enough: bool) -> None:
    groups = np.arange(200) % num_groups
    correct = np.arange(200) < 150

    def scores(copies: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        return {"accuracy": (copies * correct).sum(axis=1) / copies.sum(axis=1)}

    assert (intervals.rate_interval(correct, groups) is not None) == are_enough
    assert bool(intervals.resampled_intervals(scores, 200, groups)) == are_enough


@pytest.mark.parametrize("each", [1, 5])
def test_resampling_gives_the_interval_that_theory_gives(each: int) -> None:
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=400 // each), each)
    groups = np.repeat(np.arange(400 // each), each)

    def scores(copies: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        return {"mean": (copies * values).sum(axis=1) / copies.sum(axis=1)}

    found = intervals.resampled_intervals(scores, 400, groups)["mean"]
    reach = 1.96 * values.std() / math.sqrt(400 // each)
    assert found == pytest.approx((values.mean() - reach, values.mean() + reach), abs=0.15 * reach)
    again = intervals.resampled_intervals(scores, 400, groups)["mean"]
    assert again == found


def test_a_score_that_is_missing_in_all_resamples_has_no_interval() -> None:
    def scores(copies: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        ones = np.ones(len(copies))
        return {"nothing": math.nan * ones, "one": ones}

    assert intervals.resampled_intervals(scores, 10, None) == {"one": (1.0, 1.0)}
