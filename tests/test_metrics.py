"""Scores, intervals and the ranking."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from pipeline import metrics

MLFLOWS_INFINITY = 1.797e308


def random_case(
    seed: int, images: int = 200, classes: int = 5
) -> tuple[metrics.Labels, metrics.Floats]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    logits = rng.normal(0, 2, (images, classes)) + 2 * np.eye(classes)[labels]
    return labels, logits.astype(np.float32)


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_scikit_learns(seed: int) -> None:
    labels, logits = random_case(seed)
    predicted = logits.argmax(axis=1)
    assert metrics.score(labels, logits) == pytest.approx(
        {
            "accuracy": sklearn_metrics.accuracy_score(labels, predicted),
            "loss": sklearn_metrics.log_loss(labels, metrics.probabilities(logits)),
            "f1_macro": sklearn_metrics.f1_score(labels, predicted, average="macro"),
            "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(labels, predicted),
        }
    )


def test_scores_worked_out_by_hand() -> None:
    labels = np.array([0, 0, 0, 1])
    logits = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    right, wrong = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))
    assert metrics.score(labels, logits) == pytest.approx(
        {
            "accuracy": 3 / 4,
            "loss": (3 * right + wrong) / 4,
            "f1_macro": (2 * 2 / (2 + 3) + 2 * 1 / (2 + 1)) / 2,
            "balanced_accuracy": (2 / 3 + 1) / 2,
        }
    )


def test_a_network_that_predicts_one_class_has_a_low_balanced_accuracy() -> None:
    labels = np.array([0] * 9 + [1])
    scores = metrics.score(labels, np.tile([1.0, 0.0], (10, 1)))
    assert (scores["accuracy"], scores["balanced_accuracy"]) == (0.9, 0.5)


@pytest.mark.filterwarnings("error")
def test_a_class_without_images_raises_no_warning() -> None:
    scores = metrics.score(np.array([0, 0, 1]), np.array([[1.0, 0, 0], [0, 0, 1.0], [0, 1.0, 0]]))
    assert scores["balanced_accuracy"] == pytest.approx((0.5 + 1) / 2)


def test_large_logits_stay_finite() -> None:
    logits = np.array([[1e4, -1e4], [-1e4, 1e4]], dtype=np.float32)
    assert metrics.probabilities(logits).tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert metrics.cross_entropy(np.array([0, 0]), logits) == pytest.approx(1e4)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(2, 12))
def test_probabilities_sum_to_one(seed: int, classes: int) -> None:
    _, logits = random_case(seed, images=7, classes=classes)
    assert metrics.probabilities(logits).sum(axis=1) == pytest.approx(np.ones(7))


@pytest.mark.parametrize(
    ("train_labels", "labels", "rate"),
    [
        ([0, 1, 1, 1, 2], [1, 1, 0, 2], 0.5),
        ([0, 0, 1], [1, 1], 0.0),
        ([2, 2, 2], [2, 2], 1.0),
        ([2, 1, 2, 1], [1, 2, 2], 1 / 3),
    ],
    ids=["most", "another class", "one class", "the lower of two"],
)
def test_the_majority_rate_is_that_of_the_class_most_frequent_in_training(
    train_labels: list[int], labels: list[int], rate: float
) -> None:
    assert metrics.majority_rate(np.array(train_labels), np.array(labels), 3) == pytest.approx(rate)


@pytest.mark.parametrize("seed", range(3))
def test_the_majority_rate_is_the_accuracy_of_that_answer(seed: int) -> None:
    train_labels, _ = random_case(seed)
    labels, _ = random_case(seed + 10)
    answer = np.eye(5)[np.full(len(labels), np.bincount(train_labels).argmax())]
    assert metrics.majority_rate(train_labels, labels, 5) == pytest.approx(
        metrics.score(labels, answer)["accuracy"]
    )


def test_confusion_has_true_rows_and_predicted_columns() -> None:
    logits = np.eye(3)[[0, 2, 2, 2]]
    assert metrics.count_confusions(np.array([0, 0, 2, 2]), logits).tolist() == [
        [1, 0, 1],
        [0, 0, 0],
        [0, 0, 2],
    ]


@pytest.mark.parametrize("classes", [2, 10, 40, 100])
def test_confusion_counts_each_image_once(classes: int) -> None:
    labels, logits = random_case(0, images=300, classes=classes)
    counts = metrics.count_confusions(labels, logits)
    assert counts.shape == (classes, classes)
    assert counts.sum(axis=1).tolist() == np.bincount(labels, minlength=classes).tolist()
    assert counts.trace() / 300 == pytest.approx(metrics.score(labels, logits)["accuracy"])


@pytest.mark.parametrize("classes", [2, 10, 137, 1000])
def test_scores_are_those_of_the_matrix_to_the_last_bit(classes: int) -> None:
    labels, logits = random_case(classes, images=1500, classes=classes)
    counts = metrics.count_confusions(labels, logits)
    right, true, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    scores = metrics.score(labels, logits)
    assert scores["accuracy"] == float(right.sum() / len(labels))
    assert scores["f1_macro"] == float((2 * right / np.maximum(true + predicted, 1)).mean())
    assert scores["balanced_accuracy"] == float((right[true > 0] / true[true > 0]).mean())


@pytest.mark.slow
def test_scores_of_many_classes_take_no_matrix() -> None:
    labels, logits = random_case(0, images=20, classes=10_000)
    tracemalloc.start()
    try:
        metrics.score(labels, logits)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The matrix alone would have 800 MB.
    assert peak < 20e6


@pytest.mark.parametrize("classes", [2, 10, 300])
def test_confused_is_the_matrix_without_its_zeros(classes: int) -> None:
    labels, logits = random_case(1, images=900, classes=classes)
    cells = metrics.list_confusions(labels, logits)
    assert cells["count"].is_monotonic_decreasing and cells["count"].min() > 0
    assert (
        metrics.matrix_of(cells, np.arange(classes)) == metrics.count_confusions(labels, logits)
    ).all()


def test_a_part_of_the_matrix_has_the_order_that_is_asked_for() -> None:
    cells = pd.DataFrame({"true": [3, 3, 1, 0], "predicted": [3, 1, 3, 0], "count": [7, 4, 2, 1]})
    assert metrics.matrix_of(cells, np.array([3, 1])).tolist() == [[7, 4], [2, 0]]


def test_the_most_confused_are_those_of_the_largest_pairs_side_by_side() -> None:
    cells = pd.DataFrame(
        [(5, 5, 90), (0, 0, 80), (2, 7, 6), (4, 1, 4), (1, 4, 3), (9, 2, 1)],
        columns=["true", "predicted", "count"],
    )
    # 1 and 4: 4 + 3 images, more than the 6 of 2 and 7.
    assert metrics.most_confused(cells, 4).tolist() == [1, 4, 2, 7]
    assert metrics.most_confused(cells, 7).tolist() == [1, 4, 2, 7, 9, 5, 0]


def test_without_a_confusion_the_largest_classes_stand_for_the_others() -> None:
    cells = pd.DataFrame(
        [(5, 5, 90), (0, 0, 80), (2, 2, 1)], columns=["true", "predicted", "count"]
    )
    assert metrics.most_confused(cells, 2).tolist() == [5, 0]


def test_scores_per_class_worked_out_by_hand() -> None:
    table = metrics.per_class(
        np.array([0, 0, 0, 1]), np.eye(3)[[0, 0, 1, 1]], ["cat", "dog", "owl"]
    )
    assert list(table.columns) == ["class", "precision", "recall", "f1", "images"]
    assert table["class"].tolist() == ["cat", "dog", "owl"]
    assert table["precision"].tolist() == [1.0, 0.5, 0.0]
    assert table["recall"].tolist() == pytest.approx([2 / 3, 1.0, 0.0])
    assert table["f1"].tolist() == pytest.approx([0.8, 2 / 3, 0.0])
    assert table["images"].tolist() == [3, 1, 0]
