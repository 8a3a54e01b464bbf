"""What a training needs, and what it comes to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.data.loader import Loader
from pipeline.data.transforms import Preprocessing
from pipeline.models import Network
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.distributed import SINGLE_PROCESS, Group
from pipeline.training.precision import PLAIN, Numerics


@dataclass
class FitResult:
    """What a training has come to; filled as it goes on, so that a pruned one has it too.

    Attributes:
        history: Metrics of each epoch by name (``val/accuracy``); index 0 is epoch 1.
        lrs: Learning rate of every step.
        best_epoch: Counted from 1; 0 before the first validation.
        labels: Of the validation images, shape (images,).
        logits: Of the best epoch, shape (images, classes).
        seconds: Wall-clock time of training and validation, that before an interruption included.
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


@dataclass(frozen=True)
class TrainingContext:
    """All that a training needs beside its configuration.

    Attributes:
        network: To be trained.
        preprocessing: From stored images to its input.
        train: Batches of the training images.
        val: Batches of the validation images.
        device: Where it trains.
        checkpoint: File of the best weights.
        numerics: Number and memory format.
        resume: Where resume checkpoints are; None writes none.
        part: Name of the submodule that batches go through, where they hold features; empty: all of the network.
        group: Processes that train together, each with a loader of its share of every batch and a share of the validation images.
    """

    network: Network
    preprocessing: Preprocessing
    train: Loader
    val: Loader
    device: torch.device
    checkpoint: Path
    numerics: Numerics = PLAIN
    resume: Checkpoints | None = None
    part: str = ""
    group: Group = SINGLE_PROCESS

    @property
    def called(self) -> nn.Module:
        """What batches go through."""
        return self.network.module.get_submodule(self.part)

    def close(self) -> None:
        """End the processes that load images."""
        self.train.close()
        self.val.close()

    def inputs(self, batch: Tensor) -> Tensor:
        """Return a batch on the device, as the network's input."""
        batch = batch.to(self.device, non_blocking=True)
        return batch if self.part else self.preprocessing.normalise(batch)
