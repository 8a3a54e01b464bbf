"""Loss and accuracy of an epoch as it goes on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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
    correct: int = 0
    seen: int = 0

    def add(self, loss: float, logits: Tensor, labels: Tensor, class_weights: Tensor | None) -> None:
        """Take in one batch."""
        # The loss of a batch is a mean by weight; the sum of its weights is its part of the epoch's.
        weight = len(labels) if class_weights is None else float(class_weights[labels].sum())
        self.steps += 1
        self.total_loss += loss * weight
        self.total_weight += weight
        self.correct += int((logits.argmax(1) == labels).sum())
        self.seen += len(labels)

    @property
    def loss(self) -> float:
        """Mean so far."""
        return self.total_loss / self.total_weight

    @property
    def accuracy(self) -> float:
        """So far."""
        return self.correct / self.seen
