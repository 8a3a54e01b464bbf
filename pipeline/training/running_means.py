"""Loss and accuracy of an epoch while it goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class BatchSums(NamedTuple):
    """What a batch adds to an epoch's means.

    Attributes:
        loss: Mean loss of the batch, multiplied by its weight.
        weight: Sum of the weights of its images; the mean loss of a batch is weighed by them.
        correct: Number of images that are classified rightly.
        seen: Number of images.
    """

    loss: float
    weight: float
    correct: float
    seen: float

    @classmethod
    def of(
        cls, loss: float, logits: Tensor, labels: Tensor, class_weights: Tensor | None
    ) -> BatchSums:
        """Return the sums of one batch.

        Args:
            loss: Mean loss of the batch.
            logits: The network's answers, shape (images, classes).
            labels: Labels of the images, shape (images,).
            class_weights: Weights of the classes in the loss, shape (classes,); None weighs all
                classes alike.
        """
        weight = len(labels) if class_weights is None else float(class_weights[labels].sum())
        correct = int((logits.argmax(1) == labels).sum())
        return cls(loss * weight, weight, correct, len(labels))


NOTHING = BatchSums(0.0, 0.0, 0.0, 0.0)


@dataclass
class RunningMeans:
    """Sums over the batches so far, and their means.

    Attributes:
        steps: Number of batches so far.
        total_loss: Sum of the batches' mean losses, each multiplied by the weight of its batch.
        total_weight: Sum of the batches' weights.
        correct: Number of images that are classified rightly.
        seen: Number of images.
    """

    steps: int = 0
    total_loss: float = 0.0
    total_weight: float = 0.0
    correct: float = 0
    seen: float = 0

    def add(self, batch: BatchSums) -> None:
        """Add the sums of one batch."""
        self.steps += 1
        self.total_loss += batch.loss
        self.total_weight += batch.weight
        self.correct += batch.correct
        self.seen += batch.seen

    @property
    def loss(self) -> float:
        """Mean loss so far."""
        return self.total_loss / self.total_weight

    @property
    def accuracy(self) -> float:
        """Fraction of the images so far that are classified rightly."""
        return self.correct / self.seen
