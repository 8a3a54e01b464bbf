"""How far a network's confidence can be believed, and the temperature that mends it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from pipeline.metrics import Floats, Labels, cross_entropy, probabilities
from pipeline.scores.temperature import HIGHEST, LOWEST

BINS = 15


class Reliability:
    """Images in equal bins of their confidence: how many, how confident, how often right.

    Attributes:
        counts: Number of images of each bin that has any, shape (bins,).
        confidences: Their mean confidence, shape (bins,).
        accuracies: Share of them that was answered rightly, shape (bins,).
    """

    counts: NDArray[np.int64]
    confidences: NDArray[np.float64]
    accuracies: NDArray[np.float64]

    def __init__(self, confidence: Floats, correct: NDArray[np.bool_]) -> None:
        """Sort images into bins.

        Args:
            confidence: Probability of the answer, shape (images,).
            correct: Whether it is right, shape (images,).
        """
        places = np.minimum((confidence * BINS).astype(int), BINS - 1)
        counts = np.bincount(places, minlength=BINS)
        filled = counts > 0
        self.counts = counts[filled]
        self.confidences = np.bincount(places, confidence, BINS)[filled] / self.counts
        self.accuracies = np.bincount(places, correct, BINS)[filled] / self.counts

    @property
    def shares(self) -> NDArray[np.float64]:
        """Share of all images that lies in each bin, shape (bins,)."""
        return np.asarray(self.counts / self.counts.sum())

    def error(self) -> float:
        """Return the expected calibration error: the mean gap of confidence and accuracy.

        Guo et al. (2017), "On calibration of modern neural networks",
        https://arxiv.org/abs/1706.04599.
        """
        return float((self.shares * np.abs(self.accuracies - self.confidences)).sum())

    def debiased_error(self) -> float:
        """Return the expected calibration error less what chance adds to it, at least 0.

        With few images, each bin's accuracy lies beside its expectation, so that even a network
        whose confidence is right has an error above 0. What is taken off is the error that the
        accuracies have on average, if they are drawn around those seen, less the error seen: Kumar
        et al. (2019), "Verified uncertainty calibration", https://arxiv.org/abs/1909.10155, for
        gaps that are not squared. The mean of the absolute value of a normal variable is known, so
        that nothing is drawn.
        """
        gaps = self.accuracies - self.confidences
        deviations = np.sqrt(self.accuracies * (1 - self.accuracies) / self.counts)
        drawn = float((self.shares * _mean_absolute(gaps, deviations)).sum())
        return max(0.0, 2 * self.error() - drawn)


def _mean_absolute(
    means: NDArray[np.float64], deviations: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the means of the absolute values of normal variables, shape (variables,)."""
    found = np.abs(means)
    spread = deviations > 0
    mean, deviation = means[spread], deviations[spread]
    standard = mean / deviation
    found[spread] = 2 * deviation * stats.norm.pdf(standard)
    found[spread] += mean * (1 - 2 * stats.norm.cdf(-standard))
    return found


def reliability(labels: Labels, logits: Floats, temperature: float = 1.0) -> Reliability:
    """Return how often the answers of each confidence are right.

    Args:
        labels: True classes, shape (images,).
        logits: Logits of shape (images, classes).
        temperature: What the logits are divided by.
    """
    predicted = probabilities(logits / temperature)
    return Reliability(predicted.max(axis=1), predicted.argmax(axis=1) == labels)


def fit_temperature(labels: Labels, logits: Floats) -> float:
    """Return the temperature that makes the labels most likely, from 0.25 to 10.

    Logits are divided by it: above 1 it lessens the confidence. It changes no answer. Where all
    answers are right, nothing tells how confident they should be, and it is 1.

    Guo et al. (2017), as above.

    Args:
        labels: True classes of the validation images, shape (images,).
        logits: Logits of shape (images, classes).
    """
    if (logits.argmax(axis=1) == labels).all() or not np.isfinite(logits).all():
        return 1.0
    found = optimize.minimize_scalar(
        lambda exponent: cross_entropy(labels, logits / np.exp(exponent)),
        bounds=(np.log(LOWEST), np.log(HIGHEST)),
        method="bounded",
    )
    return float(np.clip(np.exp(found.x), LOWEST, HIGHEST))


def error_by_chance(confidence: Floats, draws: int = 1000, seed: int = 0) -> float:
    """Return the calibration error that 95% of networks stay below whose confidence is right.

    The labels are drawn from the network's own confidence: an answer of confidence 0.8 is right in
    80% of the draws.

    Args:
        confidence: Probability of the answer, shape (images,).
        draws: Number of draws.
        seed: Seed of the draws.
    """
    rng = np.random.default_rng(seed)
    errors: list[Any] = []
    for _ in range(draws):
        correct = rng.random(len(confidence)) < confidence
        errors.append(Reliability(confidence, correct).error())
    return float(np.quantile(errors, 0.95))
