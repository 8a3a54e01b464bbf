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
from pipeline.scores.intervals import LEAST_GROUPS, rate_interval, wilson_interval
from pipeline.scores.significance import (
    Difference,
    SeedVariance,
    TestResults,
    accuracy_interval,
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
    # With one image more for either side.
    more = np.concatenate([gaps, [math.sqrt(0.5), -math.sqrt(0.5)]])
    of_images = more.var() / 202
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
    # With one right and one wrong image more for each.
    rates = (0.91 * 350 + 1) / 352, (0.85 * 350 + 1) / 352
    of_images = sum(rate * (1 - rate) for rate in rates) / 352
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
    method = "paired" if groups is None else "by group"
    assert found == Difference(1.0, -1.0, 1.0, 1.0, method, True, None, None)


def test_trainings_that_all_answer_alike_are_not_told_apart() -> None:
    same = answers(right_in(10, 10), right_in(10, 10))
    found = compare(same, same, SeedVariance(0.0, 2))
    assert (found.value, found.p_value) == (0.0, 1.0)
    assert found.low == -found.high < 0


def test_a_few_images_are_no_certainty() -> None:
    right, wrong = answers(*[np.ones(5, bool)] * 2), answers(*[np.zeros(5, bool)] * 2)
    found = compare(right, wrong, SeedVariance(0.0, 2))
    assert found.p_value > 0.01 and found.low < 1
    alone = compare(TestResults([1.0, 1.0], 5), TestResults([0.0, 0.0], 5), SeedVariance(0.0, 2))
    assert 0.0001 < alone.p_value < 0.05
    # Two groups of images that agree do not tell more than ten images.
    groups = np.repeat([0, 1], 5)
    leader = answers(np.array([True, True, True, False, False] * 2), groups=groups)
    other = answers(np.array([False, False, True, False, False] * 2), groups=groups)
    assert compare(leader, other, NO_REPEATS).p_value > 0.2
    one = answers(np.ones(1, bool))
    assert compare(one, answers(np.zeros(1, bool)), SeedVariance(0.0, 2)).p_value == 1.0


@pytest.mark.parametrize("right", [0, 1, 175, 320, 350])
def test_the_interval_of_a_single_run_is_wilsons(right: int) -> None:
    expected = wilson_interval(right, 350)
    assert accuracy_interval(answers(right_in(right)), NO_REPEATS) == expected
    assert accuracy_interval(TestResults([right / 350], 350), NO_REPEATS) == pytest.approx(expected)


def test_the_interval_of_a_single_run_of_groups_is_that_of_evaluation() -> None:
    groups = np.arange(350) // 7
    correct = right_in(300)
    found = accuracy_interval(answers(correct, groups=groups), NO_REPEATS)
    assert found is not None and found == rate_interval(correct, groups)
    low, high = wilson_interval(300, 350)
    assert found[0] < low and found[1] > high


def test_of_fewer_than_twenty_groups_there_is_no_interval() -> None:
    for number in (1, LEAST_GROUPS - 1, LEAST_GROUPS):
        groups = np.arange(350) % number
        for rows in ([right_in(300)], [right_in(300), right_in(310)]):
            for seeds in (NO_REPEATS, SeedVariance(0.01**2, 3)):
                found = accuracy_interval(answers(*rows, groups=groups), seeds)
                assert (found is None) == (number < LEAST_GROUPS)


def test_the_interval_of_repeats_is_wilsons_of_what_their_variance_is_worth() -> None:
    one = answers(right_in(300), right_in(310))
    assert one.correct is not None
    share = 305 / 350
    of_images = one.correct.mean(axis=0).var(ddof=1) / 350
    of_seeds = 0.02**2 / 2
    freedom = (of_images + of_seeds) ** 2 / (of_images**2 / 349 + of_seeds**2 / 4)
    quantiles = stats.norm.ppf(0.975) / stats.t.ppf(0.975, freedom)
    worth = share * (1 - share) / (of_images + of_seeds) * quantiles**2
    found = accuracy_interval(one, SeedVariance(0.02**2, 4))
    assert found == pytest.approx(wilson_interval(share * worth, worth))
    assert worth < 210


@pytest.mark.parametrize("is_answered", [True, False])
def test_seeds_that_differ_more_make_the_interval_wider(is_answered: bool) -> None:
    rows = [right_in(300), right_in(310)]
    one = answers(*rows) if is_answered else TestResults([300 / 350, 310 / 350], 350)
    widths = []
    for deviation in (0.0, 0.005, 0.01, 0.02, 0.05):
        found = accuracy_interval(one, SeedVariance(deviation**2, 2))
        assert found is not None and 0 <= found[0] < 305 / 350 < found[1] <= 1
        widths.append(found[1] - found[0])
    assert widths == sorted(widths) and len(set(widths)) == len(widths)


def test_repeats_of_others_make_the_interval_of_a_single_run_wider() -> None:
    single = answers(right_in(320))
    repeated = answers(right_in(300), right_in(320))
    alone, among = judge([single])[0].interval, judge([single, repeated])[0].interval
    assert alone == wilson_interval(320, 350)
    assert among is not None and among[0] < alone[0] and among[1] > alone[1]


@pytest.mark.parametrize("right", [0, 350])
def test_answers_that_are_all_alike_still_have_an_interval(right: int) -> None:
    one = answers(right_in(right), right_in(right))
    assert accuracy_interval(one, SeedVariance(0.0, 1)) == wilson_interval(right, 350)
    groups = np.arange(350) // 7
    grouped = answers(right_in(right), right_in(right), groups=groups)
    assert accuracy_interval(grouped, SeedVariance(0.0, 1)) == wilson_interval(right / 7, 50)


@pytest.mark.parametrize(
    ("repeats", "deviation", "num_others", "num_groups"),
    [(2, 0.01, 0, None), (3, 0.02, 0, None), (3, 0.02, 3, None), (2, 0.03, 3, None),
     (3, 0.02, 0, 40)],
)  # fmt: skip
def test_the_interval_of_repeats_holds_the_accuracy_of_all_images_and_seeds(
    repeats: int, deviation: float, num_others: int, num_groups: int | None
) -> None:
    rng = np.random.default_rng(0)
    groups = None if num_groups is None else np.arange(350) % num_groups

    def train(ease: NDArray[np.float64], accuracy: float) -> TestResults:
        """Return what trainings answer that differ by seed, on images that differ in ease."""
        abilities = rng.normal(accuracy, deviation, (repeats, 1))
        return answers(*(rng.random((repeats, 350)) < ease + abilities), groups=groups)

    covered = 0
    for _ in range(1000):
        # Shares stay well below 1, so that 0.75 is the mean over all images and seeds.
        ease = rng.uniform(-0.15, 0.15, num_groups or 350)
        ease = ease if groups is None else ease[groups]
        results = [train(ease, 0.75), *(train(ease, 0.7) for _ in range(num_others))]
        found = accuracy_interval(results[0], pool_seed_variance(results))
        assert found is not None
        covered += found[0] <= 0.75 <= found[1]
    assert covered >= 900
