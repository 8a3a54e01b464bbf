"""Pictures of an evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.metrics import precision_recall_points, probabilities, roc_points
from pipeline.report.evaluation_figures import draw_reliability, draw_roc_and_precision
from pipeline.scores.calibration import reliability
from pipeline.scores.evaluation import Evaluation


def answers(classes: int, images: int = 200, seed: int = 0) -> Evaluation:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    logits = rng.normal(0, 1, (images, classes)).astype(np.float32)
    logits[np.arange(images), labels] += 1.5
    return Evaluation(labels, logits)


def size_of(file: Path) -> tuple[int, int]:
    with Image.open(file) as picture:
        return picture.size


def test_the_points_of_the_curves() -> None:
    is_true = np.array([True, False, True, False])
    probability = np.array([0.9, 0.6, 0.5, 0.1])
    false_rates, true_rates = roc_points(is_true, probability)
    assert np.trapezoid(true_rates, false_rates) == pytest.approx(0.75)
    recalls, precisions = precision_recall_points(is_true, probability)
    assert dict(zip(recalls, precisions, strict=True))[1.0] in (0.5, pytest.approx(2 / 3))


@pytest.mark.parametrize("classes", [1, 2, 3, 40])
def test_curves_are_drawn_for_any_number_of_classes(tmp_path: Path, classes: int) -> None:
    found = answers(classes)
    file = tmp_path / "roc.png"
    names = [f"class {number}" for number in range(classes)]
    areas = found.class_areas()
    draw_roc_and_precision(file, found.labels, found.probabilities, names, areas)
    assert size_of(file)[0] > 1000


@pytest.mark.parametrize("images", [1, 5, 500])
def test_confidence_is_drawn_for_any_number_of_images(tmp_path: Path, images: int) -> None:
    found = answers(3, images)
    before = reliability(found.labels, found.logits)
    after = reliability(found.labels, found.logits, 2.0)
    draw_reliability(tmp_path / "reliability.png", before, after, 2.0)
    assert size_of(tmp_path / "reliability.png")[1] > 500


def test_the_mean_of_the_areas_of_classes_is_the_area() -> None:
    found = answers(4)
    assert found.roc_auc() == pytest.approx(np.mean(found.class_areas()))
    assert found.probabilities == pytest.approx(probabilities(found.logits))
