"""(labels, logits) to numbers and intervals. No files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import precision_recall_fscore_support

Labels = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]

CALIBRATION_BINS = 15


def probabilities(logits: Floats) -> NDArray[np.float64]:
    """Return the softmax of logits, both of shape (images, classes), in double precision."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def cross_entropy(labels: Labels, logits: Floats) -> float:
    """Return the mean negative log-likelihood in nats; labels (images,), logits (images, classes)."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_likelihood = shifted[np.arange(len(labels)), labels] - np.log(np.exp(shifted).sum(axis=1))
    return float(-log_likelihood.mean())


def score(labels: Labels, logits: Floats) -> dict[str, float]:
    """Return accuracy, loss, f1_macro and balanced_accuracy, accuracies as fractions.

    Args:
        labels: True classes, shape (images,).
        logits: Shape (images, classes).
    """
    counts = confusion(labels, logits)
    right, true, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    return {
        "accuracy": float(right.sum() / len(labels)),
        "loss": cross_entropy(labels, logits),
        # Twice the true positives over themselves and all errors; 0 for a class that neither occurs nor is predicted.
        "f1_macro": float((2 * right / np.maximum(true + predicted, 1)).mean()),
        # The mean recall of the classes that occur.
        "balanced_accuracy": float((right[true > 0] / true[true > 0]).mean()),
    }


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Return the 95% Wilson score interval of `correct` out of `total`, as fractions.

    Wilson, E. B. (1927), "Probable inference, the law of succession, and statistical inference",
    Journal of the American Statistical Association 22, without continuity correction.
    """
    interval = binomtest(correct, total).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def calibration_error(labels: Labels, logits: Floats) -> float:
    """Return the expected calibration error: mean gap between confidence and accuracy over 15 equal bins.

    Guo et al. (2017), "On calibration of modern neural networks", https://arxiv.org/abs/1706.04599.
    """
    predicted = probabilities(logits)
    confidence = predicted.max(axis=1)
    correct = predicted.argmax(axis=1) == labels
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = [abs(correct[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    return float(np.sum(gaps))


def majority_rate(train_labels: Labels, labels: Labels, num_classes: int) -> float:
    """Return the accuracy of always answering the class most frequent in training, as a fraction.

    Args:
        train_labels: From which the class is chosen, the lower number among equally frequent ones; shape (training images,).
        labels: True classes of the images that are scored, shape (images,).
        num_classes: Of the data.
    """
    answer = np.bincount(train_labels, minlength=num_classes).argmax()
    return float((labels == answer).mean())


def confusion(labels: Labels, logits: Floats) -> NDArray[np.int64]:
    """Return counts of shape (classes, classes): rows are true classes, columns predicted ones."""
    # Not scikit-learn's: called after every epoch, it takes longer than all else that is logged of one.
    classes = logits.shape[1]
    return np.bincount(labels * classes + logits.argmax(axis=1), minlength=classes**2).reshape(classes, classes)


def per_class(labels: Labels, logits: Floats, classes: Sequence[str]) -> pd.DataFrame:
    """Return one row per class: class, precision, recall, f1 (fractions) and images (true count)."""
    values = precision_recall_fscore_support(labels, logits.argmax(axis=1), labels=np.arange(len(classes)), zero_division=0)
    return pd.DataFrame({"class": list(classes), "precision": values[0], "recall": values[1], "f1": values[2], "images": values[3]})
