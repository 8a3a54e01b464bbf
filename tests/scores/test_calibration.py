"""Calibration errors say how far confidence is from accuracy, and a temperature mends it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import log_loss

from pipeline.metrics import Floats, Labels, probabilities
from pipeline.scores import calibration
from pipeline.scores.calibration import Reliability, reliability


def drawn(
    images: int, classes: int = 10, temperature: float = 1.0, seed: int = 0
) -> tuple[Labels, Floats]:
    """Return labels that are drawn from logits divided by a temperature, and the logits."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=(images, classes))
    shares = probabilities(logits / temperature).cumsum(axis=1)
    labels = (rng.random((images, 1)) > shares).sum(axis=1)
    return np.minimum(labels, classes - 1), logits


def test_calibration_error_worked_out_by_hand() -> None:
    # Four images at 80% confidence of which two are right, one right one at 60%:
    # 4/5 * 0.3 + 1/5 * 0.4.
    logits = np.log(np.array([[0.8, 0.2]] * 4 + [[0.6, 0.4]]))
    found = reliability(np.array([0, 0, 1, 1, 0]), logits)
    assert found.error() == pytest.approx(0.32)
    assert found.counts.tolist() == [1, 4]
    assert found.confidences == pytest.approx(np.array([0.6, 0.8]))
    assert found.accuracies.tolist() == [1.0, 0.5]


@pytest.mark.parametrize(("labels", "error"), [([0, 1], 0.0), ([1, 0], 1.0)])
def test_a_sure_network_is_as_wrong_as_its_answers(labels: list[int], error: float) -> None:
    found = reliability(np.array(labels), np.array([[99.0, 0.0], [0.0, 99.0]]))
    assert found.error() == pytest.approx(error)
    assert found.debiased_error() == pytest.approx(error)


def resampled_error(found: Reliability, draws: int = 20_000) -> float:
    """Return the debiased error as its authors compute it, by drawing."""
    rng = np.random.default_rng(0)
    deviations = np.sqrt(found.accuracies * (1 - found.accuracies) / found.counts)
    accuracies = rng.normal(found.accuracies, deviations, (draws, len(found.counts)))
    errors = (np.abs(accuracies - found.confidences) * found.shares).sum(axis=1)
    return float(2 * found.error() - errors.mean())


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_debiased_error_is_that_of_drawn_accuracies(temperature: float) -> None:
    found = reliability(*drawn(400, temperature=temperature))
    assert found.debiased_error() == pytest.approx(max(0.0, resampled_error(found)), abs=5e-4)


def test_the_debiased_error_is_nearer_to_the_truth_and_never_negative() -> None:
    plain, debiased = [], []
    for seed in range(60):
        found = reliability(*drawn(300, seed=seed))
        plain.append(found.error())
        debiased.append(found.debiased_error())
    # The network's confidence is right: the true error is 0.
    assert min(debiased) >= 0
    assert np.mean(debiased) < 0.6 * np.mean(plain)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_labels_were_drawn_with_is_found(temperature: float) -> None:
    labels, logits = drawn(20_000, temperature=temperature)
    assert calibration.fit_temperature(labels, logits) == pytest.approx(temperature, rel=0.05)


def test_no_temperature_makes_the_labels_likelier() -> None:
    labels, logits = drawn(200, temperature=2)
    found = calibration.fit_temperature(labels, logits)
    least = log_loss(labels, probabilities(logits / found), labels=range(10))
    for other in np.geomspace(0.25, 10, 100):
        assert least <= log_loss(labels, probabilities(logits / other), labels=range(10)) + 1e-9


def test_where_all_are_right_nothing_tells_the_temperature() -> None:
    logits = np.eye(5) * 3
    assert calibration.fit_temperature(np.arange(5), logits) == 1.0


@pytest.mark.parametrize(("labels", "end"), [([1, 0, 0], 10.0), ([0, 0, 1], 0.25)])
def test_the_temperature_stays_in_its_range(labels: list[int], end: float) -> None:
    # Sure and wrong; and, of the second, hardly sure of two that are right and one that is wrong.
    logits = np.array([[9.0, 0], [9.0, 0], [0, 9.0]])
    if end < 1:
        logits = np.array([[0.01, 0], [0.01, 0], [0.0001, 0]])
    assert calibration.fit_temperature(np.array(labels), logits) == pytest.approx(end, rel=1e-3)


def shares_above(limit: float, confidence: NDArray[np.float64]) -> float:
    rng = np.random.default_rng(7)
    errors = [
        Reliability(confidence, rng.random(len(confidence)) < confidence).error()
        for _ in range(1000)
    ]
    return float(np.mean(np.array(errors) > limit))


def test_a_calibrated_network_is_beyond_chance_in_one_of_twenty() -> None:
    _, logits = drawn(350)
    confidence = probabilities(logits).max(axis=1)
    limit = calibration.error_by_chance(confidence)
    assert shares_above(limit, confidence) == pytest.approx(0.05, abs=0.025)
