"""What is called worse, and how often that is wrong."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from pipeline.scores import significance
from pipeline.scores.significance import (
    Difference,
    SeedVariance,
    TestResults,
    compare,
    correct_p_values,
    judge,
    pool_seed_variance,
)

Bools = NDArray[np.bool_]


def answers(*correct: Any, groups: Any = None) -> TestResults:
    """Return the results of trainings by what each answered rightly."""
    rows = np.array(correct, dtype=bool)
    return TestResults(
        accuracies=rows.mean(axis=1).tolist(),
        num_images=rows.shape[1],
        correct=rows,
        groups=None if groups is None else np.array(groups),
    )


def right_in(number: int, total: int = 350, first: int = 0) -> Bools:
    """Return answers of which `number` are right, from the image `first` on."""
    return np.isin((np.arange(total) - first) % total, np.arange(number))


NO_REPEATS = SeedVariance(0.0, 0)


def test_two_runs_are_compared_by_the_images_that_only_one_answers_rightly() -> None:
    # 10 images are right in the leader alone, 2 in the other alone.
    leader, other = right_in(60, 100), right_in(52, 100)
    other[[98, 99]] = True
    other[[0, 1]] = False
    found = compare(answers(leader), answers(other), NO_REPEATS)
    assert found.method == "McNemar" and not found.counts_seeds
    assert found.value == pytest.approx(0.08)
    # The share of 2 or less, or of 10 or more, of 12 fair coins.
    assert found.p_value == pytest.approx(2 * (1 + 12 + 66) / 2**12)
    assert found.low < 0.08 < found.high
    assert found.seeds_needed is None


def test_repeats_add_the_variance_of_the_seeds_to_that_of_the_images() -> None:
    rng = np.random.default_rng(0)
    leader = answers(*(rng.random((3, 200)) < 0.9))
    other = answers(*(rng.random((2, 200)) < 0.7))
    seeds = SeedVariance(0.02**2, 4)
    found = compare(leader, other, seeds)
    assert leader.correct is not None and other.correct is not None
    gaps = leader.correct.mean(axis=0) - other.correct.mean(axis=0)
    of_images = gaps.var(ddof=1) / 200
    of_seeds = 0.02**2 * (1 / 3 + 1 / 2)
    freedom = (of_images + of_seeds) ** 2 / (of_images**2 / 199 + of_seeds**2 / 4)
    error = math.sqrt(of_images + of_seeds)
    assert found.p_value == pytest.approx(2 * stats.t.sf(gaps.mean() / error, freedom))
    reach = stats.t.ppf(0.975, freedom) * error
    assert (found.low, found.high) == pytest.approx((gaps.mean() - reach, gaps.mean() + reach))
    assert found.method == "paired" and found.counts_seeds


def test_without_seeds_the_t_test_is_the_paired_one() -> None:
    rng = np.random.default_rng(1)
    leader, other = rng.random((1, 80)) < 0.8, rng.random((1, 80)) < 0.6
    groups = np.arange(80)
    found = compare(answers(*leader, groups=groups), answers(*other, groups=groups), NO_REPEATS)
    expected = stats.ttest_rel(leader[0].astype(float), other[0].astype(float))
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))


def test_images_of_a_group_count_as_one() -> None:
    groups = np.repeat(np.arange(30), 10)
    each = np.arange(30) < 24
    leader, other = np.repeat(each, 10), np.repeat(np.roll(each, 3), 10)
    leader[:30] = True
    alone = compare(answers(leader), answers(other), SeedVariance(0.0, 1))
    grouped = compare(
        answers(leader, groups=groups), answers(other, groups=groups), SeedVariance(0.0, 1)
    )
    assert grouped.value == alone.value
    # Ten images that are always answered alike are worth one: the interval is √10 times as wide.
    ratio = (grouped.high - grouped.low) / (alone.high - alone.low)
    assert ratio == pytest.approx(math.sqrt(10), rel=0.06)


def test_without_answers_the_variances_of_both_are_added() -> None:
    leader = TestResults([0.90, 0.92], 350)
    other = TestResults([0.86, 0.84], 350)
    seeds = pool_seed_variance([leader, other])
    assert (seeds.value, seeds.freedom) == (pytest.approx((0.0002 + 0.0002) / 2), 2)
    found = compare(leader, other, seeds)
    of_images = (0.91 * 0.09 + 0.85 * 0.15) / 350
    of_seeds = 0.0002
    freedom = (of_images + of_seeds) ** 2 / (of_images**2 / 698 + of_seeds**2 / 2)
    error = math.sqrt(of_images + of_seeds)
    assert found.method == "unpaired" and found.counts_seeds
    assert found.p_value == pytest.approx(2 * stats.t.sf(0.06 / error, freedom))


def test_one_configuration_without_answers_makes_the_pair_unpaired() -> None:
    found = compare(answers(right_in(300)), TestResults([0.8], 350), NO_REPEATS)
    assert found.method == "unpaired" and found.seeds_needed is None


@given(st.lists(st.floats(0, 1), max_size=30))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_correction_is_what_its_definition_says(p_values: list[float]) -> None:
    corrected = correct_p_values(p_values)
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    for place, index in enumerate(order):
        smaller = order[: place + 1]
        expected = max(
            min(1.0, (len(p_values) - rank) * p_values[one]) for rank, one in enumerate(smaller)
        )
        assert corrected[index] == expected


def test_the_word_follows_the_corrected_p_value() -> None:
    leader = answers(right_in(320))
    far, near, ahead = answers(right_in(250)), answers(right_in(318)), answers(right_in(349))
    verdicts = judge([leader, far, near, ahead])
    assert [one.word for one in verdicts] == [
        "leader",
        "worse",
        "not told apart",
        "better on test",
    ]
    assert verdicts[0].difference is None
    # One that would be told apart alone is not among many.
    alone = judge([leader, answers(right_in(313))])[1]
    among = judge([leader, *[answers(right_in(313)) for _ in range(10)]])[1]
    assert alone.word == "worse" and among.word == "not told apart"
    assert alone.difference == among.difference


def test_what_is_not_evaluated_gets_no_word() -> None:
    leader = answers(right_in(320))
    verdicts = judge([leader, None, answers(right_in(250))])
    assert [one.word for one in verdicts] == ["leader", None, "worse"]
    assert [one.word for one in judge([None, leader])] == ["leader", None]
    assert judge([]) == []


def test_beyond_two_hundred_the_first_after_the_leader_are_compared() -> None:
    verdicts = judge([TestResults([0.9], 350)] * 230)
    compared = [place for place, one in enumerate(verdicts) if one.difference is not None]
    assert compared == list(range(1, 200))


@pytest.mark.parametrize("repeats", [1, 2])
def test_the_images_that_are_needed_give_the_power_that_is_promised(repeats: int) -> None:
    rng = np.random.default_rng(2)
    shares = 0.90, 0.86
    small = [answers(*(rng.random((repeats, 1000)) < share)) for share in shares]
    needed = compare(small[0], small[1], SeedVariance(0.0, 0 if repeats == 1 else 2)).images_needed
    assert needed is not None
    found = []
    difference = small[0].accuracy - small[1].accuracy
    for _ in range(400):
        # The same difference on so many images.
        pair = [
            answers(*(rng.random((repeats, needed)) < share))
            for share in (small[1].accuracy + difference, small[1].accuracy)
        ]
        found.append(compare(pair[0], pair[1], SeedVariance(0.0, 0 if repeats == 1 else 2)))
    power = np.mean([one.p_value < significance.ALPHA for one in found])
    assert 0.7 < power < 0.9


def test_more_seeds_or_images_help_only_against_what_they_lessen() -> None:
    # Seeds differ by far more than the difference: no number of images tells the two apart.
    noisy = compare(
        answers(right_in(300), right_in(310)),
        answers(right_in(296), right_in(304)),
        SeedVariance(0.05**2, 8),
    )
    assert noisy.images_needed is None
    # Hardly a test image: no number of seeds does.
    few = compare(
        answers([1, 1, 0, 1, 1], [1, 1, 0, 1, 1]),
        answers([0, 1, 1, 1, 0], [1, 0, 1, 1, 0]),
        SeedVariance(0.01**2, 8),
    )
    assert few.seeds_needed is None and few.images_needed is not None


def test_a_difference_below_one_image_is_not_worth_any_number() -> None:
    leader = answers(right_in(300), right_in(300))
    other = answers(right_in(300), right_in(299, first=1))
    found = compare(leader, other, SeedVariance(1e-9, 3))
    assert 0 < abs(found.value) < 1 / 350
    assert found.images_needed is None and found.seeds_needed is None


@pytest.mark.parametrize("groups", [None, [0]])
def test_one_image_or_one_group_says_nothing(groups: list[int] | None) -> None:
    leader = answers([1], [1], groups=groups)
    found = compare(leader, answers([0], [0], groups=groups), SeedVariance(1e-4, 2))
    assert found == Difference(1.0, -1.0, 1.0, 1.0, "paired", True, None, None)


def test_trainings_that_all_answer_alike_are_not_told_apart() -> None:
    same = answers(right_in(10, 10), right_in(10, 10))
    found = compare(same, same, SeedVariance(0.0, 2))
    assert (found.value, found.p_value, found.low, found.high) == (0.0, 1.0, 0.0, 0.0)
