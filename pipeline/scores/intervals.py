"""95% intervals of scores on a test split, also of images that come in groups.

The images of a group, such as those of one patient, are answered more alike than others. So a
thousand images of twenty patients say less than a thousand images of a thousand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.floating[Any]]
Interval = tuple[float, float]

LEVEL = 0.95
LEAST_GROUPS = 20
"""Fewest groups of which an interval is given: of fewer nobody knows how much groups differ."""
DRAWS = 1000
_MOST_AT_ONCE = 500_000
"""Images of the resamples that are scored at once, all together: more do not fit in the caches."""
_TAIL = (1 + LEVEL) / 2


def number_groups(names: Sequence[str]) -> NDArray[np.int64] | None:
    """Return a number for the group of each image, shape (images,); None if none has a group.

    Args:
        names: Name of each image's group; an image whose name is empty is a group of its own.
    """
    named = np.array(names, dtype=str)
    alone = named == ""
    if alone.all():
        return None
    numbers = np.asarray(np.unique(named, return_inverse=True)[1], dtype=np.int64)
    numbers[alone] = len(named) + np.arange(int(alone.sum()))
    return numbers


def wilson_interval(correct: float, total: float) -> Interval:
    """Return the 95% Wilson score interval of `correct` out of `total`, as fractions.

    Wilson, E. B. (1927), "Probable inference, the law of succession, and statistical inference",
    Journal of the American Statistical Association 22, without continuity correction.

    Args:
        correct: Number of successes; need not be whole.
        total: Number of trials, above 0; need not be whole.
    """
    z = float(stats.norm.ppf(_TAIL))
    share = correct / total
    spread = z**2 / total
    centre = (share + spread / 2) / (1 + spread)
    reach = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    low = 0.0 if correct == 0 else centre - reach
    high = 1.0 if correct == total else centre + reach
    return max(0.0, low), min(1.0, high)


def rate_interval(correct: NDArray[np.bool_], groups: NDArray[np.int64] | None) -> Interval | None:
    """Return the 95% interval of the share of images that are answered rightly.

    With groups it is Wilson's interval of as many images as the groups are worth, see
    `effective_number`.

    Args:
        correct: Whether each image is answered rightly, shape (images,).
        groups: Group of each image, from 0; None if images stand for themselves.

    Returns:
        The interval; None if there are fewer than `LEAST_GROUPS` groups.
    """
    number: float = len(correct)
    if groups is not None:
        if len(np.unique(groups)) < LEAST_GROUPS:
            return None
        number = effective_number(correct, groups)
    return wilson_interval(float(correct.mean()) * number, number)


def effective_number(correct: NDArray[np.bool_], groups: NDArray[np.int64]) -> float:
    """Return how many independent images the images of groups are worth.

    It is their number over the design effect: the variance of the share between groups, over what
    it would be without them. Few groups tell that variance badly, which their quantile of Student's
    distribution makes up for: Korn, E. L. and Graubard, B. I. (1998), "Confidence intervals for
    proportions with small expected number of positive counts estimated from survey data", Survey
    Methodology 24.

    Args:
        correct: Whether each image is answered rightly, shape (images,).
        groups: Group of each image, shape (images,); at least two.
    """
    share = float(correct.mean())
    _, group = np.unique(groups, return_inverse=True)
    sums = np.bincount(group, correct - share)
    number = len(sums)
    if share in (0.0, 1.0):
        # Nothing tells how much groups differ; as much as can be.
        worth: float = number
    else:
        variance = number / (number - 1) * float((sums**2).sum()) / len(correct) ** 2
        design_effect = max(1.0, variance / (share * (1 - share) / len(correct)))
        worth = len(correct) / design_effect
    quantiles = stats.t.ppf(_TAIL, len(correct) - 1) / stats.t.ppf(_TAIL, number - 1)
    return worth * float(quantiles) ** 2


def resampled_intervals(
    scores: Callable[[NDArray[np.int64]], dict[str, NDArray[np.float64]]],
    num_images: int,
    groups: NDArray[np.int64] | None,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return 95% intervals of scores, by resampling images, or whole groups of them.

    Efron, B. (1979), "Bootstrap methods: another look at the jackknife", Annals of Statistics 7:
    the percentiles of the scores of `DRAWS` resamples.

    Args:
        scores: Function that returns scores of so many copies of each image: from the shape
            (resamples, images), each score has the shape (resamples,).
        num_images: Number of images.
        groups: Group of each image; None if images stand for themselves.
        seed: Seed of the resamples.

    Returns:
        An interval for each score that is a number in any resample; none if there are fewer than
        `LEAST_GROUPS` groups.
    """
    group = np.arange(num_images)
    if groups is not None:
        _, group = np.unique(groups, return_inverse=True)
    number = int(group.max(initial=-1)) + 1
    if number < (1 if groups is None else LEAST_GROUPS):
        return {}
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[NDArray[np.float64]]] = {}
    at_once = min(DRAWS, max(1, _MOST_AT_ONCE // num_images))
    for start in range(0, DRAWS, at_once):
        copies = []
        for _ in range(start, min(start + at_once, DRAWS)):
            times = np.bincount(rng.integers(0, number, number), minlength=number)
            copies.append(times[group])
        for name, values in scores(np.array(copies)).items():
            drawn.setdefault(name, []).append(values)
    tails = ((1 - LEVEL) / 2, _TAIL)
    intervals = {}
    for name, parts in drawn.items():
        found = np.concatenate(parts)
        known = found[~np.isnan(found)]
        if len(known):
            low, high = np.quantile(known, tails)
            intervals[name] = float(low), float(high)
    return intervals
