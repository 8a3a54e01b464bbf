"""Flags for what is wrong with a training, raised while it runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline import ranking

TIE = 1.25
"""Ratio of validation losses from which a tie in the score is said to hide the worse one."""
GAP = 0.1
"""Training minus validation accuracy above which a network is said to overfit.

These are ten points; the study in which overfitting was not noticed had thirteen (SYSTEMS.md). It
is a cautious measure: training accuracy is the mean over an epoch, on augmented images and with
dropout, and so lower than that of the finished epoch. With 30 validation images ten points are
three images: take a larger gap there.
"""


class Flag(NamedTuple):
    """Something that a person should know about a training.

    Attributes:
        name: ``collapse``, ``baseline``, ``overfit``, ``not_finite``, ``still_improving`` or
            ``tie``.
        text: One line with the numbers.
    """

    name: str
    text: str


class Diagnostics:
    """Judges a training after each epoch by that epoch alone.

    So a flag whose cause is gone is withdrawn.

    - ``collapse``: the network answers the validation images with at most a quarter of the classes,
      rounded down, but at least with one class. A class counts if it is answered once, so rare
      classes raise no alarm. Few images raise none either: if there are fewer images than classes,
      the quarter is that of the number of images.
    - ``baseline``: the network is no more accurate than always answering the largest class.
    - ``overfit``: training accuracy is more than `gap` above validation accuracy, and there is no
      collapse.
    - ``not_finite``: a loss is NaN or infinite.
    - ``still_improving``: the last planned epoch is better than all before. An equal score, which
      also makes the last epoch the best, is no improvement.
    - ``tie``: the epoch that is kept has the score of an earlier one, and a far worse validation
      loss (see `TIE`).

    All but ``not_finite`` are raised from the second epoch on; collapse and overfit also in a
    training's only epoch. In the first epoch the running statistics of BatchNorm lag behind, and a
    sound network may answer with few classes and far worse than in training.

    Args:
        num_classes: Number of classes that the network tells apart.
        majority_rate: Validation accuracy of always answering the largest class, a fraction.
        gap: Difference of the accuracies above which a network overfits (see `GAP`).
        best_metric: Name of the metric by which epochs are compared.
    """

    def __init__(
        self,
        num_classes: int,
        majority_rate: float,
        gap: float = GAP,
        best_metric: str = ranking.DEFAULT,
    ) -> None:
        self._num_classes = num_classes
        self._majority_rate = majority_rate
        self._gap = gap
        self._best_metric = best_metric
        self._best = -math.inf
        self._tied: list[tuple[int, float]] = []
        self._flags: list[Flag] = []

    def resume(self, history: Iterable[Mapping[str, float]]) -> None:
        """Go on with a training that has the metrics of these epochs."""
        self._best = -math.inf
        for epoch, values in enumerate(history, start=1):
            self._note(epoch, values)

    def after_epoch(
        self,
        epoch: int,
        epochs: int,
        values: Mapping[str, float],
        predicted_classes: NDArray[np.int64],
    ) -> list[Flag]:
        """Return all flags that hold after an epoch.

        An earlier flag that is not among them is withdrawn.

        Args:
            epoch: Number of the epoch, from 1.
            epochs: Number of epochs that are planned.
            values: The epoch's metrics by name.
            predicted_classes: The network's answers to the validation images, shape (images,).
        """
        best_before = self._best
        score = self._score(values)
        self._note(epoch, values)
        found = [flag_not_finite(values)]
        if epoch > 1 or epochs == 1:
            collapsed = find_collapse(predicted_classes, self._num_classes)
            found.append(collapsed or find_overfitting(values, self._gap))
        if epoch > 1:
            found.append(compare_with_majority(values, self._majority_rate))
        if epoch > 1 and epoch == epochs and score > best_before:
            reached = ranking.text(values[self._best_metric], self._best_metric)
            text = (
                f"the last epoch, {epoch}, is the best "
                f"({ranking.title(self._best_metric)} {reached}); more epochs may help"
            )
            found.append(Flag("still_improving", text))
        found.append(self._find_tie())
        self._flags = [flag for flag in found if flag is not None]
        return list(self._flags)

    def after_failure(self, reason: str) -> list[Flag]:
        """Return the flags of a training that a loss which is not finite has ended.

        These are ``not_finite`` and the flags of the last epoch.
        """
        others = [flag for flag in self._flags if flag.name != "not_finite"]
        return [Flag("not_finite", reason), *others]

    def _note(self, epoch: int, values: Mapping[str, float]) -> None:
        """Note an epoch that is the best so far, or as good as that."""
        score = self._score(values)
        if not math.isfinite(score) or score < self._best:
            return
        if score > self._best:
            self._tied = []
        self._best = score
        self._tied.append((epoch, values["val/loss"]))

    def _find_tie(self) -> Flag | None:
        """Return the flag of a kept epoch whose loss is far worse than that of an equal one."""
        if len(self._tied) < 2:
            return None
        kept, loss = self._tied[-1]
        other, lowest = min(self._tied, key=itemgetter(1))
        if not loss > TIE * lowest > 0:
            return None
        return Flag(
            "tie",
            f"epoch {kept} is kept, as good as epoch {other} by "
            f"{ranking.title(self._best_metric)}, but its validation loss {loss:.4f} is "
            f"{loss / lowest:.1f} times that of epoch {other}, {lowest:.4f}",
        )

    def _score(self, values: Mapping[str, float]) -> float:
        return ranking.score(values[self._best_metric], self._best_metric)


def find_collapse(predicted_classes: NDArray[np.int64], num_classes: int) -> Flag | None:
    """Return the flag of a network that answers with few of its classes, if it does.

    Args:
        predicted_classes: The network's answers to the validation images, shape (images,).
        num_classes: Number of classes that the network tells apart.
    """
    answered = len(np.unique(predicted_classes))
    if answered > max(1, min(num_classes, len(predicted_classes)) // 4):
        return None
    return Flag("collapse", f"predicts {answered} of {num_classes} classes")


def compare_with_majority(values: Mapping[str, float], majority_rate: float) -> Flag | None:
    """Return the flag of a network that is no better than always answering the largest class."""
    accuracy = values["val/accuracy"]
    # Both are a count divided by the number of images, but may be rounded differently.
    if accuracy > majority_rate + 1e-9:
        return None
    return Flag(
        "baseline",
        f"validation accuracy {accuracy:.1%} is not above that of always answering the largest "
        f"class, {majority_rate:.1%}",
    )


def find_overfitting(values: Mapping[str, float], gap: float) -> Flag | None:
    """Return the flag of a network whose training accuracy is too far above validation accuracy.

    Args:
        values: The epoch's metrics by name.
        gap: Difference of the accuracies above which a network overfits.
    """
    train = values["train/accuracy"]
    val = values["val/accuracy"]
    if train - val <= gap:
        return None
    return Flag(
        "overfit",
        f"training accuracy {train:.1%} is {100 * (train - val):.1f} points above "
        f"validation's {val:.1%}",
    )


def flag_not_finite(values: Mapping[str, float]) -> Flag | None:
    """Return the flag of an epoch with a loss that is NaN or infinite."""
    wrong = [
        f"{name} is {values[name]}"
        for name in ("train/loss", "val/loss")
        if not math.isfinite(values[name])
    ]
    if not wrong:
        return None
    return Flag("not_finite", " and ".join(wrong))
