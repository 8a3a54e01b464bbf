"""Scores and intervals of labels and logits; nothing here reads or writes files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import (
    precision_recall_curve,
    precision_recall_fscore_support,
    roc_curve,
)

Labels = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]
Counts = NDArray[np.integer[Any]] | NDArray[np.floating[Any]]

MOST_IN_MATRIX = 1000
"""Most classes for which a confusion matrix is kept as a matrix.

For 10,000 classes it has 800 MB, nearly all of it zeros.
"""


def probabilities(logits: Floats) -> NDArray[np.float64]:
    """Return the softmax of logits, both of shape (images, classes), in double precision."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def cross_entropy(labels: Labels, logits: Floats) -> float:
    """Return the mean negative log-likelihood in nats.

    Args:
        labels: True classes, shape (images,).
        logits: Logits of shape (images, classes).
    """
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_likelihood = shifted[np.arange(len(labels)), labels] - np.log(np.exp(shifted).sum(axis=1))
    return float(-log_likelihood.mean())


def score(labels: Labels, logits: Floats) -> dict[str, float]:
    """Return accuracy, loss, f1_macro and balanced_accuracy, accuracies as fractions.

    Args:
        labels: True classes, shape (images,).
        logits: Logits of shape (images, classes).
    """
    classes = logits.shape[1]
    answers = logits.argmax(axis=1)
    # Images are counted per class: a matrix of all pairs of classes, after every epoch, would be
    # the largest thing in memory.
    right = np.bincount(labels[labels == answers], minlength=classes)
    true = np.bincount(labels, minlength=classes)
    predicted = np.bincount(answers, minlength=classes)
    return {
        "accuracy": float(right.sum() / len(labels)),
        "loss": cross_entropy(labels, logits),
        **class_means(right, true, predicted),
    }


def class_means(right: Counts, true: Counts, predicted: Counts) -> dict[str, float]:
    """Return f1_macro and balanced_accuracy, as fractions, from counts of shape (classes,).

    Args:
        right: Number of images of each class that were answered rightly.
        true: Number of images of each class.
        predicted: Number of images for which each class was answered.
    """
    return {
        # Twice the true positives over themselves and all errors; 0 for a class that neither occurs
        # nor is predicted.
        "f1_macro": float((2 * right / np.maximum(true + predicted, 1)).mean()),
        # The mean recall of the classes that occur.
        "balanced_accuracy": float((right[true > 0] / true[true > 0]).mean()),
    }


def majority_rate(train_labels: Labels, labels: Labels, num_classes: int) -> float:
    """Return the accuracy of always answering the class most frequent in training, as a fraction.

    Among equally frequent classes the one of the lowest number is answered.

    Args:
        train_labels: Classes of the training images, shape (training images,).
        labels: True classes of the images that are scored, shape (images,).
        num_classes: Number of classes of the data.
    """
    answer = np.bincount(train_labels, minlength=num_classes).argmax()
    return float((labels == answer).mean())


def count_confusions(labels: Labels, logits: Floats) -> NDArray[np.int64]:
    """Return counts of shape (classes, classes): rows are true classes, columns predicted ones.

    It is for at most `MOST_IN_MATRIX` classes.
    """
    classes = logits.shape[1]
    cells = labels * classes + logits.argmax(axis=1)
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def list_confusions(labels: Labels, logits: Floats) -> pd.DataFrame:
    """Return the counts of `count_confusions` that are not zero, the largest first.

    The columns are the numbers of the classes ``true`` and ``predicted``, and ``count``.
    """
    classes = logits.shape[1]
    cells, counts = np.unique(labels * classes + logits.argmax(axis=1), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return pd.DataFrame(
        {
            "true": cells[order] // classes,
            "predicted": cells[order] % classes,
            "count": counts[order],
        }
    )


def most_confused(cells: pd.DataFrame, most: int) -> Labels:
    """Return the numbers of the classes that are taken for one another most often.

    The two classes of a pair stand side by side.

    Args:
        cells: The result of `list_confusions`.
        most: Number of classes. If fewer are confused, those with the most images follow.
    """
    wrong = cells[cells["true"] != cells["predicted"]]
    unordered = np.sort(wrong[["true", "predicted"]].to_numpy(), axis=1)
    pairs, place = np.unique(unordered, axis=0, return_inverse=True)
    frequent = pairs[np.argsort(-np.bincount(place.ravel(), wrong["count"]), kind="stable")]
    classes = np.concatenate([frequent.ravel(), cells["true"].to_numpy()])
    return np.asarray(pd.unique(classes)[:most], dtype=np.int64)


def matrix_of(cells: pd.DataFrame, classes: Labels) -> NDArray[np.int64]:
    """Return the part of the confusion matrix that lies among some classes.

    Args:
        cells: The result of `list_confusions`.
        classes: Numbers of the classes, in the order of rows and columns.
    """
    place = pd.Series(np.arange(len(classes)), index=classes)
    among = cells[cells["true"].isin(classes) & cells["predicted"].isin(classes)]
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    counts[place[among["true"]], place[among["predicted"]]] = among["count"]
    return counts


def per_class(labels: Labels, logits: Floats, classes: Sequence[str]) -> pd.DataFrame:
    """Return one row per class: class, precision, recall, f1 (fractions) and images.

    The column ``images`` is the number of images whose true class it is.
    """
    values = precision_recall_fscore_support(
        labels, logits.argmax(axis=1), labels=np.arange(len(classes)), zero_division=0
    )
    return pd.DataFrame(
        {
            "class": list(classes),
            "precision": values[0],
            "recall": values[1],
            "f1": values[2],
            "images": values[3],
        }
    )


def roc_points(
    is_true: NDArray[np.bool_], probability: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the false and the true positive rates of an ROC curve, both of shape (points,).

    Args:
        is_true: Whether each image is of the class, shape (images,).
        probability: Probability of the class, shape (images,).
    """
    false_rates, true_rates, _ = roc_curve(is_true, probability)
    return false_rates, true_rates


def precision_recall_points(
    is_true: NDArray[np.bool_], probability: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the recalls and the precisions of a curve, both of shape (points,).

    The arguments are those of `roc_points`.
    """
    precisions, recalls, _ = precision_recall_curve(is_true, probability)
    return recalls, precisions
