"""What is wrong with the trainings of a configuration, in words that a table has room for."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from scipy import stats

from pipeline import ranking

Run = Mapping[str, Any]

GAP_ERRORS = 3.0
"""Standard errors by which validation must be above test before it is said to be far above.

Validation accuracy is that of the best of many epochs, and so somewhat above test by itself.
"""
LEAST_ECE = 0.05
"""Calibration error up to which nobody need care."""
LEAST_SPREAD = 0.03
"""Difference between the test accuracies of repeats below which nobody need care."""
_UNSTABLE = 0.05
_HUGE = 1e300
_OF_FLAGS = {
    "collapse": "collapsed",
    "baseline": "not above majority",
    "overfit": "overfits",
    "still_improving": "still improving",
    "tie": "tie hides a worse loss",
    "not_finite": "loss not finite",
}
"""What the flags of trainings are called, see `pipeline.training.diagnostics`."""
_IN_LAST_EPOCH = {
    "collapse": "in its last epoch it ",
    "baseline": "in its last epoch ",
    "overfit": "in its last epoch ",
}
"""How the text of a flag begins that judges the last epoch, which need not be the one kept."""


class Problem(NamedTuple):
    """Something that a person should know of a configuration before taking it.

    Attributes:
        name: A few words, such as ``overfits``.
        text: A sentence with the numbers.
        num_runs: Number of its runs that have it.
    """

    name: str
    text: str
    num_runs: int = 1


def find_problems(runs: Sequence[Run], target: float = 0.0) -> list[Problem]:
    """Return what is wrong with a configuration.

    Args:
        runs: Its trainings, as rows of the comparison, the best first.
        target: The score that the study is to reach; 0: none.
    """
    found: dict[str, list[str]] = {}
    for run in runs:
        for name, text in run.get("flags", {}).items():
            if name in _OF_FLAGS:
                when = _IN_LAST_EPOCH.get(name, "")
                found.setdefault(_OF_FLAGS[name], []).append(when + text)
        judges: Sequence[tuple[str, Callable[[Run], str]]] = (
            ("validation far above test", _describe_gap),
            ("badly calibrated", _describe_calibration),
        )
        for name, describe in judges:
            text = describe(run)
            if text:
                found.setdefault(name, []).append(text)
    problems = [Problem(name, texts[0], len(texts)) for name, texts in found.items()]
    for name, text in (
        ("unstable", _describe_spread(runs)),
        ("target missed", _describe_target(runs, target)),
    ):
        if text:
            problems.append(Problem(name, text, len(runs)))
    return problems


def describe_short(problems: Sequence[Problem], num_runs: int) -> str:
    """Return the names of problems, with the number of runs where not all have it."""
    texts = []
    for problem in problems:
        share = "" if problem.num_runs >= num_runs else f" ({problem.num_runs} of {num_runs})"
        texts.append(problem.name + share)
    return ", ".join(texts)


def gap_in_errors(val_accuracy: float, num_val: int, test_accuracy: float, num_test: int) -> float:
    """Return by how many standard errors validation accuracy is above test accuracy.

    The standard error is that of two equal rates, so that the rate is that of all images together.
    """
    right = val_accuracy * num_val + test_accuracy * num_test
    rate = right / (num_val + num_test)
    error = math.sqrt(rate * (1 - rate) * (1 / num_val + 1 / num_test))
    gap = val_accuracy - test_accuracy
    if error == 0:
        return 0.0
    return gap / error


def _number(value: Any) -> float | None:
    """Return a value as a number, None if it is none; MLflow stores infinity as 1.8e308."""
    if value is None or not math.isfinite(value) or abs(value) > _HUGE:
        return None
    return float(value)


def _describe_gap(run: Run) -> str:
    val, test = _number(run.get("val_accuracy")), _number(run.get("test_accuracy"))
    num_val, num_test = run.get("val_images"), run.get("test_images")
    if val is None or test is None or not num_val or not num_test:
        return ""
    if not (0 <= val <= 1 and 0 <= test <= 1):
        # It counts in percents, or otherwise.
        return ""
    if gap_in_errors(val, num_val, test, num_test) <= GAP_ERRORS:
        return ""
    return (
        f"validation accuracy {val:.1%} is far above test accuracy {test:.1%}: look for "
        "near-duplicates in training and validation, or for test images from elsewhere"
    )


def _describe_calibration(run: Run) -> str:
    error, by_chance = _number(run.get("ece")), _number(run.get("ece_by_chance"))
    if error is None or by_chance is None or error <= max(LEAST_ECE, by_chance):
        return ""
    return (
        f"its confidence is off by {100 * error:.1f} points on average before it is corrected "
        f"(calibration error on test; chance alone: up to {100 * by_chance:.1f})"
    )


def _describe_spread(runs: Sequence[Run]) -> str:
    """Say that repeats differ more than the test images alone can explain.

    It is a chi-squared test of their variance. That they were tested on the same images makes it
    the more cautious.
    """
    found = [_number(run.get("test_accuracy")) for run in runs]
    accuracies = [accuracy for accuracy in found if accuracy is not None]
    num_images = runs[0].get("test_images")
    if len(accuracies) < 2 or not num_images:
        return ""
    low, high = min(accuracies), max(accuracies)
    mean = statistics.fmean(accuracies)
    by_chance = mean * (1 - mean) / num_images
    freedom = len(accuracies) - 1
    if high - low < LEAST_SPREAD or by_chance == 0:
        return ""
    ratio = statistics.variance(accuracies) * freedom / by_chance
    if float(stats.chi2.sf(ratio, freedom)) > _UNSTABLE:
        return ""
    return (
        f"its {len(accuracies)} runs differ by {100 * (high - low):.1f} points on test "
        f"({low:.1%} to {high:.1%}), more than chance in the images explains"
    )


def _describe_target(runs: Sequence[Run], target: float) -> str:
    metric = runs[0].get("metric", ranking.DEFAULT)
    found = [_number(run.get("value")) for run in runs]
    values = [value for value in found if value is not None]
    if not target or not values:
        return ""
    mean = statistics.fmean(values)
    if ranking.score(mean, metric) >= ranking.score(target, metric):
        return ""
    reached = ranking.text(mean, metric)
    return f"{ranking.title(metric)} {reached} does not reach the target {target:g}"
