"""What a training needs beside its configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.data.loader import Loader
from pipeline.data.transforms import Preprocessing
from pipeline.models import Network
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.distributed import SINGLE_PROCESS, Group
from pipeline.training.precision import PLAIN, Numerics


@dataclass(frozen=True)
class TrainingContext:
    """All that a training needs beside its configuration.

    Attributes:
        network: The network that is trained.
        preprocessing: The way from stored images to its input.
        train: Batches of the training images.
        val: Batches of the validation images.
        device: The device that trains.
        checkpoint: File of the best weights.
        numerics: Number format and memory format.
        resume: The resume checkpoints; None writes none.
        part: Name of the submodule that batches of features go through; empty: batches hold images,
            and go through all of the network.
        guard: Called before a checkpoint is written; it raises what ends the training if another
            process has it.
        group: Processes that train together. Each has a loader of its share of every batch, and a
            share of the validation images.
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
    guard: Callable[[], None] = lambda: None
    group: Group = SINGLE_PROCESS

    @property
    def trained_part(self) -> nn.Module:
        """The module that batches go through."""
        return self.network.module.get_submodule(self.part)

    def close(self) -> None:
        """End the processes that load images."""
        self.train.close()
        self.val.close()

    def inputs(self, batch: Tensor) -> Tensor:
        """Return a batch on the device, as the network's input."""
        batch = batch.to(self.device, non_blocking=True)
        return batch if self.part else self.preprocessing.normalise(batch)
