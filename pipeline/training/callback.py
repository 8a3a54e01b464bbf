"""What a training tells the code around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Callback:
    """Base class of callbacks: override what is needed. An exception ends the training."""

    def on_start(self, epochs: int, steps_per_epoch: int) -> None:
        """Called before the first step."""

    def on_resume(self, steps: int, history: Sequence[dict[str, float]]) -> None:
        """Called after `on_start` with what an earlier life has done: nothing in the first one.

        Args:
            steps: Number of optimizer steps.
            history: Metrics of each epoch.
        """

    def on_backward(self, epoch: int, step: int) -> None:
        """Called when the gradients are there, before the weights change.

        Steps are counted from 1 over the whole training.
        """

    def on_step(self, epoch: int, loss: float, accuracy: float, lr: float) -> None:
        """Called after each optimizer step with the epoch's running means and the learning rate."""

    def on_validation(
        self, epoch: int, labels: NDArray[np.int64], logits: NDArray[np.float32]
    ) -> None:
        """Called after each validation, before `on_epoch`.

        It gets labels (images,) and logits (images, classes).
        """

    def on_epoch(self, epoch: int, values: dict[str, float], is_best: bool) -> None:
        """Called after each validation with that epoch's metrics, epochs counted from 1."""

    def state(self) -> dict[str, Any]:
        """Return what this callback needs when the training is resumed.

        It consists of tensors, numbers, texts, lists and dicts. A checkpoint keeps it under the
        name of the class.
        """
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to `state`, or to the beginning if it is empty.

        Called before `on_start` if a training is resumed.
        """
