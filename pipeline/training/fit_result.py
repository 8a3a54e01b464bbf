"""What a training has come to, at its end or where it ended early."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_RESULT = "fit_result"


@dataclass
class FitResult:
    """What a training has come to.

    Attributes:
        history: Metrics of each epoch by name (``val/accuracy``); index 0 is epoch 1.
        lrs: Learning rate of every step.
        best_epoch: Number of the best epoch, from 1; 0 before the first validation.
        labels: Labels of the validation images, shape (images,).
        logits: Logits of the best epoch, shape (images, classes).
        seconds: Wall-clock time of training and validation, with that before an interruption.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    lrs: list[float] = field(default_factory=list)
    best_epoch: int = 0
    labels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    logits: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    seconds: float = 0.0

    @property
    def best(self) -> dict[str, float]:
        """Metrics of the best epoch."""
        return self.history[self.best_epoch - 1]


def attach_result(error: Exception, result: FitResult) -> None:
    """Have an error that ends a training early carry what the training has come to.

    An error that wraps it would do as well, but for whoever raises the wrapped one again: the two
    would lead to one another without end.
    """
    vars(error)[_RESULT] = result


def result_of(error: Exception) -> FitResult | None:
    """Return what a training had come to when an error ended it; None of any other error."""
    result: FitResult | None = vars(error).get(_RESULT)
    return result
