"""Classes of unequal frequency: their weights in the loss, their images' chances to be drawn."""

from __future__ import annotations

from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Training


def class_weights(
    training: Training, labels: NDArray[np.int64], num_classes: int
) -> NDArray[np.float32] | None:
    """Return the weights in the loss that ``training.class_weights`` names, shape (num_classes,).

    None weighs all classes alike.
    """
    match training.class_weights:
        case "none":
            return None
        case "balanced":
            return balanced_class_weights(labels, num_classes)
        case _:
            assert_never(training.class_weights)


def sampling_probabilities(
    training: Training, labels: NDArray[np.int64]
) -> NDArray[np.float64] | None:
    """Return each image's chance to be drawn by the named ``training.sampler``, shape (images,).

    None shows each image once an epoch.
    """
    match training.sampler:
        case "shuffle":
            return None
        case "balanced":
            return balanced_probabilities(labels)
        case _:
            assert_never(training.sampler)


def balanced_class_weights(labels: NDArray[np.int64], num_classes: int) -> NDArray[np.float32]:
    """Return the weight N / (C n_c) of each class c.

    N is the number of images, n_c the number of images of the class, and C the number of classes
    that occur. A class without images gets 0. Over the images the weights have mean 1. The formula
    is that of scikit-learn's ``compute_class_weight("balanced")``, after King and Zeng (2001),
    "Logistic regression in rare events data", Political Analysis 9.

    Args:
        labels: Labels of the training images, shape (images,).
        num_classes: Length of the result.

    Returns:
        Weights of the classes, shape (num_classes,).
    """
    counts = np.bincount(labels, minlength=num_classes)
    occurs = counts > 0
    weights = np.zeros(num_classes, np.float32)
    weights[occurs] = len(labels) / (occurs.sum() * counts[occurs])
    return weights


def balanced_probabilities(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return each image's probability to be drawn, which is 1 / (C n_c).

    C is the number of classes that occur, and n_c the number of images of the image's class. So
    each class that occurs has the probability 1 / C.

    Args:
        labels: Labels of the training images, shape (images,).

    Returns:
        Probabilities of the images, shape (images,), with sum 1.
    """
    _, numbers, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return np.asarray(1 / (len(counts) * counts[numbers]))
