"""Which labels are probably wrong, by the answers of networks that were not trained on the images.

Images are ranked by the confidence in their label, the lowest first. Those that confident learning
counts as errors are marked: Northcutt, C. G., Jiang, L. and Chuang, I. L. (2021), "Confident
learning: estimating uncertainty in dataset labels", Journal of Artificial Intelligence Research 70,
https://arxiv.org/abs/1911.00068. `tests/benchmarks/labels.py` measures how many changed labels are
found, and compares the orders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Answers:
    """What one run answered for images that it was not trained on.

    Attributes:
        paths: Path of each image, none of them twice.
        labels: Class that each image is labelled with, shape (images,).
        probabilities: Probability of each class, shape (images, classes). An image with a
            probability that is not finite counts as one that the run has not scored.
    """

    paths: list[str]
    labels: Labels
    probabilities: NDArray[np.float32]


@dataclass(frozen=True)
class Suspect:
    """An image, and what speaks for and against its label.

    Attributes:
        path: Path of the image.
        given: Class that it is labelled with.
        suggested: The most probable of the other classes.
        given_confidence: Probability of the given class, the mean over the runs that scored it.
        suggested_confidence: Probability of the suggested class, the same mean.
        num_runs: Number of runs that scored it.
        num_agreeing: Number of these that answer the suggested class.
        is_suspected: Whether confident learning counts its label as an error.
    """

    path: str
    given: int
    suggested: int
    given_confidence: float
    suggested_confidence: float
    num_runs: int
    num_agreeing: int
    is_suspected: bool


@dataclass(frozen=True)
class _Images:
    """All images that a run scored, in the order of their paths.

    Attributes:
        paths: Their paths.
        labels: Class that each is labelled with, shape (images,).
        probabilities: Mean probabilities over the runs that scored it, shape (images, classes).
        num_runs: Number of these runs, shape (images,).
        rows: For each run, the places of its images among all of them.
    """

    paths: list[str]
    labels: Labels
    probabilities: NDArray[np.float64]
    num_runs: NDArray[np.int64]
    rows: list[NDArray[np.int64]]


def rank_labels(runs: Sequence[Answers]) -> list[Suspect]:
    """Return all images that a run scored, those whose label is most probably wrong first.

    They are in the order of the confidence in the given label, the mean over the runs that scored
    the image; equal ones in the order of their paths. The order of the runs changes nothing.

    Args:
        runs: The runs. An image may be scored by some of them only, as in cross-validation. All
            must number the classes alike and have the same labels; this is not checked.

    Returns:
        The images; none if there are fewer than two classes, since nothing could be suggested.
    """
    scored = [_leave_out_unscored(run) for run in runs]
    scored = [run for run in scored if run.paths and run.probabilities.shape[1] > 1]
    if not scored:
        return []
    # Sums of floating-point numbers depend on their order in the last digits, and so would ties.
    scored.sort(key=_fingerprint)
    images = _average(scored)
    rows = np.arange(len(images.paths))
    given = images.probabilities[rows, images.labels]
    others = images.probabilities.copy()
    others[rows, images.labels] = -1
    suggested = others.argmax(axis=1)
    agreeing = np.zeros(len(rows), dtype=np.int64)
    for run, own in zip(scored, images.rows, strict=True):
        agreeing[own] += run.probabilities.argmax(axis=1) == suggested[own]
    errors = find_label_errors(images.labels, images.probabilities)
    suspects = []
    # It is a stable order of images that are sorted by path.
    for row in np.argsort(given, kind="stable").tolist():
        suspect = Suspect(
            path=images.paths[row],
            given=int(images.labels[row]),
            suggested=int(suggested[row]),
            given_confidence=float(given[row]),
            suggested_confidence=float(others[row, suggested[row]]),
            num_runs=int(images.num_runs[row]),
            num_agreeing=int(agreeing[row]),
            is_suspected=bool(errors[row]),
        )
        suspects.append(suspect)
    return suspects


def find_label_errors(
    labels: Labels, probabilities: NDArray[np.floating[Any]]
) -> NDArray[np.bool_]:
    """Return which labels confident learning counts as errors, shape (images,).

    The threshold of a class is the mean confidence in it of the images that are labelled with it.
    An image probably belongs to the most probable of the classes whose thresholds it reaches. If
    this is not the class that it is labelled with, it stands off the diagonal of the confident
    joint: its label is counted as an error. An image that reaches no threshold is not counted.

    Args:
        labels: Class that each image is labelled with, shape (images,).
        probabilities: Probabilities of shape (images, classes).
    """
    num_classes = probabilities.shape[1]
    given = probabilities[np.arange(len(labels)), labels]
    counts = np.bincount(labels, minlength=num_classes)
    sums = np.bincount(labels, given, num_classes)
    # No image can be said to belong to a class that no image is labelled with.
    thresholds = np.full(num_classes, np.inf)
    np.divide(sums, counts, out=thresholds, where=counts > 0)
    reached = np.where(probabilities >= thresholds, probabilities, -1.0)
    return np.asarray((reached.max(axis=1) >= 0) & (reached.argmax(axis=1) != labels))


def _leave_out_unscored(run: Answers) -> Answers:
    """Return the answers without the images whose probabilities are not finite."""
    is_scored = np.isfinite(run.probabilities).all(axis=1)
    if is_scored.all():
        return run
    places = np.flatnonzero(is_scored)
    paths = [run.paths[place] for place in places]
    return Answers(paths, run.labels[places], run.probabilities[places])


def _fingerprint(run: Answers) -> tuple[bytes, list[str]]:
    """Return a key that two runs share only if they answered the same for the same images."""
    content = np.ascontiguousarray(run.probabilities, dtype=np.float32)
    return blake2b(content.data).digest(), run.paths


def _average(runs: Sequence[Answers]) -> _Images:
    paths = sorted(set().union(*(run.paths for run in runs)))
    row_of = {path: row for row, path in enumerate(paths)}
    labels = np.zeros(len(paths), dtype=np.int64)
    totals = np.zeros((len(paths), runs[0].probabilities.shape[1]))
    num_runs = np.zeros(len(paths), dtype=np.int64)
    rows_of_runs = []
    for run in runs:
        rows = np.array([row_of[path] for path in run.paths], dtype=np.int64)
        labels[rows] = run.labels
        totals[rows] += run.probabilities
        num_runs[rows] += 1
        rows_of_runs.append(rows)
    return _Images(paths, labels, totals / num_runs[:, None], num_runs, rows_of_runs)
