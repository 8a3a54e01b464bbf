"""What is said to be wrong with a configuration, and what is not."""

from __future__ import annotations

import math
from typing import Any

import pytest
from scipy import stats

from pipeline.scores.problems import Problem, describe_short, find_problems, gap_in_errors
from pipeline.training.diagnostics import Diagnostics


def names_of(*runs: dict[str, Any], target: float = 0.0) -> list[str]:
    """Return the names of the problems of a configuration's runs."""
    return [problem.name for problem in find_problems(runs, target)]


def on_test(accuracy: float | None, images: int | None = 350, **values: Any) -> dict[str, Any]:
    return {"test_accuracy": accuracy, "test_images": images, **values}


@pytest.mark.parametrize(
    ("flag", "name", "text"),
    [
        ("collapse", "collapsed", "in its last epoch it by so much"),
        ("baseline", "not above majority", "in its last epoch by so much"),
        ("overfit", "overfits", "in its last epoch by so much"),
        ("still_improving", "still improving", "by so much"),
        ("tie", "tie hides a worse loss", "by so much"),
        ("not_finite", "loss not finite", "by so much"),
    ],
)
def test_each_flag_of_a_training_is_a_problem(flag: str, name: str, text: str) -> None:
    assert f"``{flag}``" in str(Diagnostics.__doc__)
    assert find_problems([{"flags": {flag: "by so much"}}]) == [Problem(name, text, 1)]
    assert find_problems([{"flags": {}}]) == []


def test_a_flag_of_another_program_is_none() -> None:
    assert find_problems([{"flags": {"later": "of a later release"}}]) == []
    assert find_problems([{}]) == []


def test_a_problem_counts_the_runs_that_have_it_and_has_the_text_of_the_best_one() -> None:
    runs = [{}, {"flags": {"tie": "first"}}, {"flags": {"tie": "second"}}]
    assert find_problems(runs) == [Problem("tie hides a worse loss", "first", 2)]


def test_names_of_problems_tell_how_many_runs_have_them() -> None:
    problems = [Problem("overfits", "", 1), Problem("unstable", "", 3)]
    assert describe_short(problems, 3) == "overfits (1 of 3), unstable"
    assert describe_short(problems[:1], 1) == "overfits"
    assert describe_short([], 3) == ""


def test_a_gap_is_told_in_standard_errors() -> None:
    # 540 of 600 are right on validation, 320 of 400 on test: 860 of 1000.
    error = math.sqrt(0.86 * 0.14 * (1 / 600 + 1 / 400))
    assert gap_in_errors(0.9, 600, 0.8, 400) == pytest.approx(0.1 / error)
    # By hand: √(0.1204 · 0.0041667) = 0.022398.
    assert gap_in_errors(0.9, 600, 0.8, 400) == pytest.approx(4.4647, abs=1e-4)
    assert gap_in_errors(0.8, 400, 0.9, 600) == pytest.approx(-4.4647, abs=1e-4)


def test_a_gap_is_the_square_root_of_the_chi_squared_of_two_rates() -> None:
    table = [[540, 60], [320, 80]]
    found = stats.chi2_contingency(table, correction=False).statistic
    assert gap_in_errors(0.9, 600, 0.8, 400) ** 2 == pytest.approx(found)


@pytest.mark.parametrize("accuracy", [0.0, 1.0])
def test_equal_answers_to_all_images_are_no_gap(accuracy: float) -> None:
    assert gap_in_errors(accuracy, 10, accuracy, 10) == 0.0


def test_a_gap_of_more_than_three_standard_errors_is_a_problem() -> None:
    wide = {"val_accuracy": 0.9, "val_images": 600, **on_test(0.8, 400)}
    (found,) = find_problems([wide])
    assert found.name == "validation far above test"
    assert found.text.startswith("validation accuracy 90.0% is far above test accuracy 80.0%: ")
    for test, is_far in ((0.83, True), (0.84, False), (0.9, False), (1.0, False)):
        expected = ["validation far above test"] if is_far else []
        assert gap_in_errors(0.9, 600, test, 400) != 3
        assert (gap_in_errors(0.9, 600, test, 400) > 3) is is_far
        assert names_of({**wide, "test_accuracy": test}) == expected


@pytest.mark.parametrize("name", ["val_accuracy", "test_accuracy", "val_images", "test_images"])
def test_a_gap_needs_both_accuracies_and_both_numbers_of_images(name: str) -> None:
    wide = {"val_accuracy": 0.9, "val_images": 600, **on_test(0.8, 400)}
    assert names_of({**wide, name: None}) == []
    assert names_of({key: value for key, value in wide.items() if key != name}) == []
    if name.endswith("images"):
        assert names_of({**wide, name: 0}) == []


def test_a_test_accuracy_of_zero_is_not_a_missing_one() -> None:
    assert names_of({"val_accuracy": 0.9, "val_images": 600, **on_test(0.0, 400)}) == [
        "validation far above test"
    ]


@pytest.mark.parametrize(
    ("error", "by_chance", "is_problem"),
    [
        (0.051, 0.02, True),
        (0.05, 0.02, False),
        (0.081, 0.08, True),
        (0.08, 0.08, False),
        (0.06, 0.08, False),
        (None, 0.02, False),
        (0.2, None, False),
    ],
)
def test_a_calibration_error_is_a_problem_if_it_is_large_and_not_by_chance(
    error: float | None, by_chance: float | None, is_problem: bool
) -> None:
    expected = ["badly calibrated"] if is_problem else []
    assert names_of({"ece": error, "ece_by_chance": by_chance}) == expected


def test_the_numbers_of_a_calibration_error() -> None:
    (found,) = find_problems([{"ece": 0.1234, "ece_by_chance": 0.021}])
    assert found.text == (
        "its confidence is off by 12.3 points on average before it is corrected "
        "(calibration error on test; chance alone: up to 2.1)"
    )


def test_repeats_that_differ_by_more_than_chance_are_unstable() -> None:
    # Two runs of the published study.
    (found,) = find_problems([on_test(0.84571), on_test(0.90857)])
    assert found == Problem(
        "unstable",
        "its 2 runs differ by 6.3 points on test (84.6% to 90.9%), more than chance in the images "
        "explains",
        2,
    )
    # Of two runs chi-squared is the square of their difference over its standard error.
    mean = (0.84571 + 0.90857) / 2
    errors = (0.90857 - 0.84571) / math.sqrt(2 * mean * (1 - mean) / 350)
    assert 2 * stats.norm.sf(errors) == pytest.approx(0.0113, abs=1e-4)


def test_repeats_that_differ_by_chance_are_not_unstable() -> None:
    assert names_of(on_test(0.86571), on_test(0.90)) == []
    assert names_of(on_test(0.9), on_test(0.9)) == []
    # As far apart as the unstable pair, but of fewer images.
    assert names_of(on_test(0.84571, 100), on_test(0.90857, 100)) == []


def test_whether_repeats_are_unstable_turns_at_one_in_twenty() -> None:
    # With a mean of one half and 1000 images the variance by chance is 1 / 4000.
    edge = 0.5 * math.sqrt(2 * float(stats.chi2.isf(0.05, 1)) / 4000)
    for factor, expected in ((0.999, []), (1.001, ["unstable"])):
        reach = factor * edge
        assert names_of(on_test(0.5 - reach, 1000), on_test(0.5 + reach, 1000)) == expected


def test_of_three_repeats_all_deviations_count() -> None:
    # The variance 0.0016 is 6.4 times 1 / 4000; chi-squared with two degrees of freedom is 12.8.
    assert stats.chi2.sf(12.8, 2) < 0.002
    assert names_of(*(on_test(accuracy, 1000) for accuracy in (0.46, 0.5, 0.54))) == ["unstable"]
    # As far apart, but for a third in between: chi-squared is 5.9.
    pair = on_test(0.4728, 1000), on_test(0.5272, 1000)
    assert names_of(*pair) == ["unstable"]
    assert stats.chi2.sf(2 * 0.0272**2 * 4000, 2) > 0.05
    assert names_of(pair[0], on_test(0.5, 1000), pair[1]) == []


def test_a_difference_that_nobody_need_care_about_is_not_unstable() -> None:
    # 2.9 points of a million images are no chance; neither are 3.1.
    assert names_of(on_test(0.9, 10**6), on_test(0.929, 10**6)) == []
    assert names_of(on_test(0.9, 10**6), on_test(0.931, 10**6)) == ["unstable"]


@pytest.mark.parametrize(
    "runs",
    [
        [on_test(0.5)],
        [on_test(0.5), on_test(None)],
        [on_test(0.5, None), on_test(0.9, None)],
        [on_test(0.5, 0), on_test(0.9, 0)],
        [on_test(1.0), on_test(1.0)],
        [on_test(0.0), on_test(0.0)],
        [{}, {}],
    ],
)
def test_one_repeat_or_no_images_say_nothing_of_stability(runs: list[dict[str, Any]]) -> None:
    assert names_of(*runs) == []


def test_of_repeats_those_that_are_evaluated_tell_stability() -> None:
    assert names_of(on_test(0.84571), on_test(None), on_test(0.90857)) == ["unstable"]


def test_a_target_is_missed_by_the_mean_of_the_repeats() -> None:
    runs = [{"value": 0.90}, {"value": 0.80}]
    (found,) = find_problems(runs, target=0.86)
    assert found == Problem(
        "target missed", "validation accuracy 85.00% does not reach the target 0.86", 2
    )
    assert names_of(*runs, target=0.85) == []
    assert names_of(*runs) == []
    assert names_of({"value": None}, {}, target=0.85) == []
    assert names_of({"value": None}, {"value": 0.8}, target=0.85) == ["target missed"]


def test_a_target_of_a_loss_is_missed_from_above() -> None:
    run = {"value": 0.25, "metric": "val/loss"}
    (found,) = find_problems([run], target=0.2)
    assert found.text == "validation loss 0.2500 does not reach the target 0.2"
    assert names_of(run, target=0.25) == [] and names_of(run, target=0.3) == []


@pytest.mark.parametrize(
    "runs",
    [
        [{"val_accuracy": 0.9, "val_images": 600, **on_test(math.nan, 400)}],
        [{"val_accuracy": math.nan, "val_images": 600, **on_test(0.9, 400)}],
        [{"ece": math.nan, "ece_by_chance": 0.02}],
        [{"ece": 0.2, "ece_by_chance": math.nan}],
        [{"value": math.nan}],
        [on_test(0.86571), on_test(math.nan), on_test(0.90)],
        # What MLflow makes of an infinite metric.
        [on_test(0.86571), on_test(1.797e308), on_test(0.90)],
    ],
)
def test_a_value_that_is_no_number_is_a_missing_one(runs: list[dict[str, Any]]) -> None:
    assert names_of(*runs, target=0.85) == []


def test_problems_come_in_the_order_in_which_they_are_found() -> None:
    run = {
        "flags": {"overfit": "much"}, "val_accuracy": 0.97, "val_images": 350, "value": 0.97,
        "ece": 0.2, "ece_by_chance": 0.02,
    }  # fmt: skip
    found = find_problems([{**run, **on_test(0.80)}, {**run, **on_test(0.90)}], target=0.99)
    assert [(problem.name, problem.num_runs) for problem in found] == [
        ("overfits", 2),
        ("validation far above test", 2),
        ("badly calibrated", 2),
        ("unstable", 2),
        ("target missed", 2),
    ]
