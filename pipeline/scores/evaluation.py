"""All scores of one pass over a split, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline import metrics
from pipeline.metrics import Floats, Labels, probabilities
from pipeline.scores import intervals

Copies = NDArray[np.int64]

TOP = 5
MOST_SORTED = 300_000
"""Most images times classes of which the area under the curve gets an interval.

Each resample goes through all probabilities; with so many that takes a quarter of a minute.
"""


@dataclass(frozen=True)
class _SortedClass:
    """The images in the order of the probability of one class, lowest first.

    Attributes:
        order: Numbers of the images, shape (images,).
        is_true: Whether each of them is of the class.
        starts: Place at which the images of the same probability start.
        ends: Place behind the last of them.
    """

    order: NDArray[np.int64]
    is_true: NDArray[np.bool_]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, probability: Floats, is_true: NDArray[np.bool_]) -> _SortedClass:
        """Sort images by their probability of a class, both of shape (images,)."""
        order = np.argsort(probability, kind="stable")
        ordered = probability[order]
        starts = np.searchsorted(ordered, ordered, side="left")
        ends = np.searchsorted(ordered, ordered, side="right")
        return cls(order, is_true[order], starts, ends)

    def area(self, copies: Copies) -> NDArray[np.float64]:
        """Return the area under the ROC curve; NaN if all images are of the class, or none is.

        It is the share of pairs, one image of the class and one of the others, of which that of the
        class has the higher probability; equal ones count half. It follows from the ranks of the
        images of the class: Mann, H. B. and Whitney, D. R. (1947), "On a test of whether one of two
        random variables is stochastically larger than the other", Annals of Mathematical
        Statistics 18.

        Args:
            copies: Number of copies of each image, shape (images, resamples).

        Returns:
            Shape (resamples,).
        """
        below = np.zeros((len(copies) + 1, copies.shape[1]), dtype=np.int64)
        np.cumsum(copies[self.order], axis=0, out=below[1:])
        positives = copies[self.order[self.is_true]]
        number = positives.sum(axis=0)
        pairs = number * (below[-1] - number)
        ranks = below[self.starts[self.is_true]] + below[self.ends[self.is_true]]
        # Of two images of the class, one stands above the other: half of these pairs.
        won = ((positives * ranks).sum(axis=0) - number**2) / 2
        return np.where(pairs > 0, won / np.maximum(pairs, 1), math.nan)


class Evaluation:
    """Answers to the images of a split, and their scores.

    Attributes:
        labels: True classes, shape (images,).
        logits: Logits, shape (images, classes).
        groups: Group of each image, shape (images,); None if images stand for themselves.
        correct: Whether each answer is right, shape (images,).
        probabilities: Softmax of the logits, shape (images, classes).
    """

    def __init__(
        self,
        labels: Labels,
        logits: Floats,
        groups: NDArray[np.int64] | None = None,
        grades: NDArray[np.int64] | None = None,
    ) -> None:
        """Note the answers.

        Args:
            labels: True classes, shape (images,).
            logits: Logits, shape (images, classes).
            groups: Group of each image, shape (images,); None if images stand for themselves.
            grades: Place of each class in the order of the classes, shape (classes,), if they have
                one: taking a class for the next is then a smaller error than taking it for the
                last. None: they have none.
        """
        self.labels = labels
        self.logits = logits
        self.groups = groups
        self._grades = grades
        self.probabilities = probabilities(logits)
        self._answers = logits.argmax(axis=1)
        self.correct = self._answers == labels
        of_label = logits[np.arange(len(labels)), labels]
        # Of equal ones the first counts as the higher, as it does for the answer.
        is_before = np.arange(logits.shape[1]) < labels[:, None]
        is_above = (logits > of_label[:, None]) | ((logits == of_label[:, None]) & is_before)
        self._in_top = is_above.sum(axis=1) < TOP
        self._num_occurring = len(np.unique(labels))
        self._keeps = logits.size <= MOST_SORTED
        self._kept: list[_SortedClass] = []
        self._areas: list[float] = []

    @property
    def num_classes(self) -> int:
        """Number of classes of the data."""
        return int(self.logits.shape[1])

    def scores(self, copies: Copies | None = None) -> dict[str, float]:
        """Return the scores that any number of copies of each image have.

        They are f1_macro, balanced_accuracy, kappa, and with more than five classes top5_accuracy,
        as fractions; kappa is from -1 to 1.

        Args:
            copies: Number of copies of each image, shape (images,); None: each counts once.
        """
        if copies is None:
            copies = np.ones(len(self.labels), dtype=np.int64)
        right = self._count(self.labels, np.where(self.correct, copies, 0))
        true = self._count(self.labels, copies)
        predicted = self._count(self._answers, copies)
        means = metrics.class_means(right, true, predicted)
        # A class that no copy is of says nothing; that it is missing is chance alone.
        means["f1_macro"] *= self._num_occurring / max(1, int((true > 0).sum()))
        found = {
            **means,
            "kappa": self._kappa(copies, true, predicted),
        }
        if self.num_classes > TOP:
            found["top5_accuracy"] = float(copies[self._in_top].sum() / copies.sum())
        return found

    def roc_auc(self) -> float:
        """Return the area under the ROC curve of each class against the others, their mean.

        Classes that do not occur are left out; it is NaN if there is only one.
        """
        known = [area for area in self.class_areas() if not math.isnan(area)]
        return math.fsum(known) / len(known) if known else math.nan

    def class_areas(self) -> list[float]:
        """Return the area under the ROC curve of each class; NaN if the class does not occur."""
        if not self._areas:
            once = np.ones((len(self.labels), 1), dtype=np.int64)
            self._areas = [float(one.area(once)[0]) for one in self._sorted_classes()]
        return self._areas

    def _sorted_classes(self) -> Iterator[_SortedClass]:
        """Yield the images in the order of each class; if there are few, they stay sorted."""
        yield from self._kept
        for number in range(len(self._kept), self.num_classes):
            is_true = self.labels == number
            found = _SortedClass.of(self.probabilities[:, number], is_true)
            if self._keeps:
                self._kept.append(found)
            yield found

    def intervals(self) -> dict[str, intervals.Interval]:
        """Return 95% intervals of the scores, of accuracy too.

        That of accuracy, and without groups that of top5_accuracy, is Wilson's; the others' are
        found by resampling images, or groups. With fewer than `intervals.LEAST_GROUPS` groups
        there are none; there is none of the area under the curve where resampling it would take
        minutes.
        """
        rates = {"accuracy": self.correct}
        if self.num_classes > TOP and self.groups is None:
            rates["top5_accuracy"] = self._in_top
        found = {}
        for name, right in rates.items():
            interval = intervals.rate_interval(right, self.groups)
            if interval is not None:
                found[name] = interval
        resampled = intervals.resampled_intervals(
            self.resampled_scores, len(self.labels), self.groups
        )
        return {**resampled, **found}

    def resampled_scores(self, copies: Copies) -> dict[str, NDArray[np.float64]]:
        """Return each score of each resample, shape (resamples,).

        Args:
            copies: Number of copies of each image, shape (resamples, images).
        """
        scores = pd.DataFrame([self.scores(each) for each in copies])
        found = {str(name): values.to_numpy(dtype=np.float64) for name, values in scores.items()}
        if self._keeps:
            by_image = np.ascontiguousarray(copies.T)
            areas = np.array([one.area(by_image) for one in self._sorted_classes()])
            is_known = ~np.isnan(areas)
            sums = np.where(is_known, areas, 0).sum(axis=0)
            count = is_known.sum(axis=0)
            found["roc_auc"] = np.where(count > 0, sums / np.maximum(count, 1), math.nan)
        return found

    def _count(self, classes: Labels, copies: Copies) -> NDArray[np.float64]:
        return np.asarray(np.bincount(classes, copies, self.num_classes), dtype=np.float64)

    def _kappa(
        self, copies: Copies, true: NDArray[np.float64], predicted: NDArray[np.float64]
    ) -> float:
        """Return Cohen's kappa: the agreement with the labels beyond what chance would give.

        Cohen, J. (1960), "A coefficient of agreement for nominal scales", Educational and
        Psychological Measurement 20. For ordered classes errors count by their squared distance:
        Cohen, J. (1968), "Weighted kappa", Psychological Bulletin 70. It is NaN if chance alone
        would give full agreement.

        Args:
            copies: Number of copies of each image, shape (images,).
            true: Number of images of each true class, shape (classes,).
            predicted: Number of images of each predicted class, shape (classes,).
        """
        number = copies.sum()
        grades = self._grades
        if grades is not None:
            distances = (grades[self.labels] - grades[self._answers]) ** 2
            seen = float((copies * distances).sum() / number)
            means = (grades * true).sum() / number, (grades * predicted).sum() / number
            squares = (grades**2 * (true + predicted)).sum() / number
            by_chance = float(squares - 2 * means[0] * means[1])
        else:
            seen = float(copies[~self.correct].sum() / number)
            by_chance = float(1 - (true * predicted).sum() / number**2)
        return 1 - seen / by_chance if by_chance > 0 else math.nan
