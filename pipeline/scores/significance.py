"""Which differences in test accuracy are real: the leader of a comparison against the others.

Two sources of chance stand between a score and a configuration: which images the test split happens
to hold, and which seed the training happened to have. A configuration that was trained several
times tells the second one; the images, answered by both configurations, tell the first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pipeline.scores.intervals import LEAST_GROUPS, Interval, rate_interval, wilson_interval

Array = NDArray[np.floating[Any]]
Method = Literal["McNemar", "paired", "by group", "unpaired"]
Word = Literal["leader", "not told apart", "worse", "better on test"]

ALPHA = 0.05
POWER = 0.8
MOST_COMPARED = 199
"""Most configurations that are compared with the leader: those that follow it in the ranking.

Each further comparison makes it harder for all of them to be told apart.
"""
_DETECTABLE = float(stats.norm.ppf(1 - ALPHA / 2) + stats.norm.ppf(POWER))
"""Differences of so many standard errors are told apart with a probability of `POWER`."""


@dataclass(frozen=True)
class TestResults:
    """What the trainings of one configuration answered on the test split.

    Attributes:
        accuracies: Test accuracy of each training, as a fraction.
        num_images: Number of test images.
        correct: Whether each image was answered rightly, shape (trainings, images); None if that is
            not known.
        groups: Group of each image, such as the patient, shape (images,); None if there are none.
    """

    __test__ = False

    accuracies: Sequence[float]
    num_images: int
    correct: NDArray[np.bool_] | None = None
    groups: NDArray[np.int64] | None = None

    @property
    def accuracy(self) -> float:
        """Mean accuracy of the trainings."""
        return math.fsum(self.accuracies) / len(self.accuracies)


@dataclass(frozen=True)
class SeedVariance:
    """How much the accuracies of one configuration's trainings differ from seed to seed.

    Attributes:
        value: Variance of the accuracy, pooled over all configurations that have repeats.
        freedom: Degrees of freedom: trainings less configurations. With 0 nothing is known.
    """

    value: float
    freedom: int


@dataclass(frozen=True)
class Difference:
    """The leader's accuracy less that of another configuration.

    Attributes:
        value: The difference, as a fraction.
        low: Lower end of its 95% interval, for this pair alone.
        high: Upper end of it.
        p_value: Probability of a difference as large if there were none.
        method: ``McNemar`` or ``paired``, by the answers to each image; ``by group``, by their sums
            over each group; ``unpaired``, since only the accuracies are known.
        counts_seeds: Whether it counts that another seed would have given another score. If not, it
            is of these runs alone.
        images_needed: How many test images would tell the two apart with 80% power; None if no
            number of them would.
        seeds_needed: How many trainings of each would; None if no number of them would, or if
            nothing is known of seeds.
    """

    value: float
    low: float
    high: float
    p_value: float
    method: Method
    counts_seeds: bool
    images_needed: int | None
    seeds_needed: int | None


@dataclass(frozen=True)
class Verdict:
    """What is said of a configuration beside the leader.

    Attributes:
        word: The word, by the corrected p-value.
        difference: The comparison with the leader; None for the leader itself and for what is not
            compared.
        corrected_p: P-value after Holm's correction; None where there is no difference.
        interval: 95% interval of its own test accuracy; None if it is not evaluated, or if nothing
            tells how sure it is.
        has_few_groups: Whether it has no interval since the images come in too few groups.
    """

    word: Word | None
    difference: Difference | None
    corrected_p: float | None
    interval: Interval | None = None
    has_few_groups: bool = False


def pool_seed_variance(results: Sequence[TestResults]) -> SeedVariance:
    """Return the variance between the trainings of a configuration, pooled over configurations."""
    squares = 0.0
    freedom = 0
    for one in results:
        mean = one.accuracy
        squares += math.fsum((accuracy - mean) ** 2 for accuracy in one.accuracies)
        freedom += len(one.accuracies) - 1
    return SeedVariance(squares / freedom if freedom else 0.0, freedom)


def judge(results: Sequence[TestResults | None]) -> list[Verdict]:
    """Compare the first configuration with each of the others, on the same test images.

    The p-values are corrected for their number by Holm's method: Holm, S. (1979), "A simple
    sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6.

    Args:
        results: The configurations in the order of the ranking, which was made without a look at
            the test split. None: not evaluated.

    Returns:
        A verdict for each configuration.
    """
    if not results:
        return []
    leader = results[0]
    seeds = pool_seed_variance([one for one in results if one is not None])
    differences: list[Difference | None] = [None]
    for one in results[1:]:
        is_compared = leader is not None and one is not None and len(differences) <= MOST_COMPARED
        if is_compared and leader is not None and one is not None:
            differences.append(compare(leader, one, seeds))
        else:
            differences.append(None)
    corrected = iter(correct_p_values([one.p_value for one in differences if one is not None]))
    intervals: list[Interval | None] = []
    for one in results:
        intervals.append(None if one is None else accuracy_interval(one, seeds))
    are_few = leader is not None and _are_few(leader.groups)
    verdicts = [Verdict("leader", None, None, intervals[0], are_few)]
    for difference, interval in zip(differences[1:], intervals[1:], strict=True):
        if difference is None:
            verdicts.append(Verdict(None, None, None, interval))
        else:
            p_value = next(corrected)
            verdicts.append(Verdict(_word(difference, p_value), difference, p_value, interval))
    return verdicts


def _are_few(groups: NDArray[np.int64] | None) -> bool:
    return groups is not None and len(np.unique(groups)) < LEAST_GROUPS


def accuracy_interval(results: TestResults, seeds: SeedVariance) -> Interval | None:
    """Return the 95% interval of a configuration's test accuracy, the mean of its trainings.

    It is Wilson's interval of as many images as give a rate the variance that the mean has, by the
    images and by the seeds, with the quantile of Student's distribution that their degrees of
    freedom ask for (see `pipeline.scores.intervals.effective_number`).

    Args:
        results: The configuration.
        seeds: Variance between the trainings of a configuration. If nothing is known of it, the
            interval is of these trainings alone.

    Returns:
        The interval; None if the images come in too few groups.
    """
    groups = results.groups
    if _are_few(groups):
        return None
    accuracy = results.accuracy
    by_rate = accuracy * (1 - accuracy)
    number = results.num_images
    if len(results.accuracies) == 1 and seeds.freedom == 0:
        if results.correct is not None:
            return rate_interval(results.correct[0], groups)
        return wilson_interval(accuracy * number, number)
    images = _Part(by_rate / number, max(1, number - 1))
    if results.correct is not None:
        images = _Part(*variance_of_mean(results.correct.mean(axis=0), groups))
    of_seeds = _Part(seeds.value / len(results.accuracies), seeds.freedom)
    variance = images.variance + of_seeds.variance
    if by_rate == 0 or variance == 0 or math.isinf(variance):
        worth = float(number if groups is None else len(np.unique(groups)))
        return wilson_interval(accuracy * worth, worth)
    freedom = _degrees_of_freedom(images, of_seeds)
    quantile = float(stats.norm.ppf(1 - ALPHA / 2) / stats.t.ppf(1 - ALPHA / 2, freedom))
    worth = by_rate / variance * quantile**2
    return wilson_interval(accuracy * worth, worth)


def _word(difference: Difference, corrected_p: float) -> Word:
    if corrected_p >= ALPHA:
        return "not told apart"
    return "worse" if difference.value > 0 else "better on test"


def correct_p_values(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected by Holm's method, in the order given."""
    order = np.argsort(p_values, kind="stable")
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected


def compare(leader: TestResults, other: TestResults, seeds: SeedVariance) -> Difference:
    """Compare two configurations that were tested on the same images.

    Without repeats it is McNemar's exact test, or with groups a t-test on sums over groups: both
    are of these two runs alone. With repeats the variance of the difference is that of its mean
    over the images, plus that of the seeds, with Satterthwaite's degrees of freedom.

    McNemar, Q. (1947), "Note on the sampling error of the difference between correlated proportions
    or percentages", Psychometrika 12. Satterthwaite, F. E. (1946), "An approximate distribution of
    estimates of variance components", Biometrics Bulletin 2.

    Args:
        leader: One configuration.
        other: The other one.
        seeds: Variance between the trainings of a configuration.
    """
    if leader.correct is None or other.correct is None:
        return _compare_unpaired(leader, other, seeds)
    gaps = leader.correct.mean(axis=0) - other.correct.mean(axis=0)
    if seeds.freedom == 0 and leader.groups is None:
        return _compare_two_runs(gaps)
    return _by_t_test(
        float(gaps.mean()),
        _paired_part(gaps, leader.groups),
        _seed_part(leader, other, seeds),
        len(gaps),
        "paired" if leader.groups is None else "by group",
        seeds,
    )


@dataclass(frozen=True)
class _Part:
    """A part of the variance of a difference, and its degrees of freedom."""

    variance: float
    freedom: float


def _paired_part(gaps: Array, groups: NDArray[np.int64] | None) -> _Part:
    """Return the variance of the mean of differences between two configurations, image by image.

    Two images are added, one for each side, so that a few images which agree are not taken for
    certainty: Agresti, A. and Min, Y. (2005), "Simple improved confidence intervals for comparing
    matched proportions", Statistics in Medicine 24. Groups of images do not say more than as many
    images without groups.
    """
    number = len(gaps) + 2
    squares = float((gaps**2).sum()) + 1
    alone = (squares / number - (float(gaps.sum()) / number) ** 2) / number
    variance, freedom = variance_of_mean(gaps, groups)
    return _Part(max(alone, variance), freedom)


def _seed_part(leader: TestResults, other: TestResults, seeds: SeedVariance) -> _Part:
    shares = 1 / len(leader.accuracies) + 1 / len(other.accuracies)
    return _Part(seeds.value * shares, seeds.freedom)


def variance_of_mean(values: Array, groups: NDArray[np.int64] | None = None) -> tuple[float, int]:
    """Return the variance of the mean of values, and its degrees of freedom.

    Args:
        values: One value per image, shape (images,).
        groups: Group of each image; images of a group are alike, so that groups are what is
            independent. None: the images are.
    """
    deviations = values - values.mean()
    if groups is not None:
        _, group = np.unique(groups, return_inverse=True)
        deviations = np.bincount(group, deviations)
    number = len(deviations)
    if number < 2:
        return math.inf, 1
    squares = float((deviations**2).sum())
    return number / (number - 1) * squares / len(values) ** 2, number - 1


def _compare_two_runs(gaps: Array) -> Difference:
    """Compare two runs by the images that only one of them answered rightly.

    The interval is the adjusted one of Bonett, D. G. and Price, R. M. (2012), "Adjusted Wald
    confidence interval for a difference of binomial proportions based on paired data", Journal of
    Educational and Behavioral Statistics 37.
    """
    number = len(gaps)
    only_leader = int((gaps > 0).sum())
    only_other = int((gaps < 0).sum())
    disagreed = only_leader + only_other
    p_value = 1.0
    if disagreed:
        p_value = float(stats.binomtest(only_leader, disagreed).pvalue)
    shares = (only_leader + 1) / (number + 2), (only_other + 1) / (number + 2)
    centre = shares[0] - shares[1]
    error = math.sqrt((shares[0] + shares[1] - centre**2) / (number + 2))
    reach = float(stats.norm.ppf(1 - ALPHA / 2)) * error
    value = float(gaps.mean())
    variance, _ = variance_of_mean(gaps)
    return Difference(
        value,
        max(-1.0, centre - reach),
        min(1.0, centre + reach),
        p_value,
        "McNemar",
        False,
        _images_needed(value, variance, 0.0, number),
        None,
    )


def _compare_unpaired(leader: TestResults, other: TestResults, seeds: SeedVariance) -> Difference:
    """Compare two configurations of which only the accuracies are known.

    Whether both err on the same images is not known either, so that their variances are added. To
    each, one right and one wrong image are added: Agresti, A. and Caffo, B. (2000), "Simple and
    effective confidence intervals for proportions and differences of proportions result from adding
    two successes and two failures", The American Statistician 54.
    """
    variance = 0.0
    for one in (leader, other):
        number = one.num_images + 2
        rate = (one.accuracy * one.num_images + 1) / number
        variance += rate * (1 - rate) / number
    return _by_t_test(
        leader.accuracy - other.accuracy,
        _Part(variance, max(1, leader.num_images + other.num_images - 2)),
        _seed_part(leader, other, seeds),
        leader.num_images,
        "unpaired",
        seeds,
    )


def _by_t_test(
    value: float,
    images: _Part,
    of_seeds: _Part,
    num_images: int,
    method: Method,
    seeds: SeedVariance,
) -> Difference:
    counts_seeds = seeds.freedom > 0
    variance = images.variance + of_seeds.variance
    if math.isinf(variance):
        # One image, or one group of them, says nothing.
        return Difference(value, -1.0, 1.0, 1.0, method, counts_seeds, None, None)
    freedom = _degrees_of_freedom(images, of_seeds)
    error = math.sqrt(variance)
    p_value = float(2 * stats.t.sf(abs(value) / error, freedom))
    reach = float(stats.t.ppf(1 - ALPHA / 2, freedom)) * error
    return Difference(
        value,
        max(-1.0, value - reach),
        min(1.0, value + reach),
        p_value,
        method,
        counts_seeds,
        _images_needed(value, images.variance, of_seeds.variance, num_images),
        _seeds_needed(value, images.variance, seeds, num_images),
    )


def _degrees_of_freedom(*parts: _Part) -> float:
    """Return Satterthwaite's degrees of freedom of a sum of variances."""
    total = sum(part.variance for part in parts)
    weights = sum(part.variance**2 / part.freedom for part in parts if part.variance > 0)
    return total**2 / weights


def _images_needed(value: float, of_images: float, of_seeds: float, num_images: int) -> int | None:
    wanted = (value / _DETECTABLE) ** 2
    if abs(value) < 1 / num_images or wanted <= of_seeds:
        return None
    return math.ceil(of_images * num_images / (wanted - of_seeds))


def _seeds_needed(
    value: float, of_images: float, seeds: SeedVariance, num_images: int
) -> int | None:
    wanted = (value / _DETECTABLE) ** 2
    if seeds.freedom == 0 or abs(value) < 1 / num_images or wanted <= of_images:
        return None
    return max(2, math.ceil(2 * seeds.value / (wanted - of_images)))
