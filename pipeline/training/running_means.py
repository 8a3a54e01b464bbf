"""Loss and accuracy of an epoch as it goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class BatchSums(NamedTuple):
    """What a batch adds to an epoch's means.

    Attributes:
        loss: Its mean loss by its weight.
        weight: Of its images; the loss of a batch is a mean by it.
        correct: Images classified rightly.
        seen: Images.
    """

    loss: float
    weight: float
    correct: float
    seen: float

    @classmethod
    def of(
        cls, loss: float, logits: Tensor, labels: Tensor, class_weights: Tensor | None
    ) -> BatchSums:
        """Return those of a batch with a mean loss."""
        weight = len(labels) if class_weights is None else float(class_weights[labels].sum())
        return cls(loss * weight, weight, int((logits.argmax(1) == labels).sum()), len(labels))


NOTHING = BatchSums(0.0, 0.0, 0.0, 0.0)


@dataclass
class RunningMeans:
    """Sums over the batches so far, and their means.

    Attributes:
        steps: Batches so far.
        total_loss: Each batch's loss by its weight.
        total_weight: Of the batches.
        correct: Images classified rightly.
        seen: Images.
    """

    steps: int = 0
    total_loss: float = 0.0
    total_weight: float = 0.0
    correct: float = 0
    seen: float = 0

    def add(self, batch: BatchSums) -> None:
        """Take in one batch."""
        self.steps += 1
        self.total_loss += batch.loss
        self.total_weight += batch.weight
        self.correct += batch.correct
        self.seen += batch.seen

    @property
    def loss(self) -> float:
        """Mean so far."""
        return self.total_loss / self.total_weight

    @property
    def accuracy(self) -> float:
        """So far."""
        return self.correct / self.seen
