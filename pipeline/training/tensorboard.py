"""Learning rate, gradients and weights while a network trains, as TensorBoard event files."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.training.callback import Callback
from pipeline.training.layer_groups import histogram, kernels, layer_groups, subsample
from pipeline.training.tensorboard_files import drop_events

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

BUDGET = 0.01
"""Fraction of the training's time that watching it may take; beyond it samples are left out."""
_MOST_EPOCHS = 30
_MOST_LRS = 1000
_NORMS_PER_EPOCH = 3
_NORMS_AT_LEAST = 30


@dataclass
class History:
    """The spread of one layer group's weights, epoch by epoch.

    Attributes:
        epochs: Epochs whose weights were looked at, ascending; 0 is before the first step.
        edges: One array (bins + 1,) per epoch, ascending.
        counts: One array (bins,) per epoch.
    """

    epochs: list[int] = field(default_factory=list)
    edges: list[NDArray[np.float32]] = field(default_factory=list)
    counts: list[NDArray[np.float32]] = field(default_factory=list)


class Watch(Callback):
    """Writes what a training looks like inside, which takes about 1% of its time.

    TensorBoard shows ``lr`` and ``gradient_norm`` over steps, and all else over epochs:

    - ``weights/GROUP`` and ``gradients/GROUP``, histograms of the kernels: of weights after the
      epoch, of gradients at its last step
    - the epoch's metrics under their own names, and those without a slash below ``speed/``

    The learning rate and metrics are always written. Gradient norms are taken at three steps an
    epoch, or more if there are few epochs; histograms of at most about 30 epochs. Both are left out
    while watching has taken more than `BUDGET` of the training's time, except in the first and the
    last epoch. Nothing is changed and no random number is drawn: the training is bit by bit the
    same.

    Args:
        module: The network that is trained.
        folder: Folder of the event files. A training that goes on drops from them what it will do
            again, and adds one file.

    Attributes:
        histories: Histories of the weights, by layer group.
        seconds: Seconds that watching has taken.
    """

    def __init__(self, module: nn.Module, folder: Path) -> None:
        self.histories: dict[str, History] = {}
        self.seconds = 0.0
        self._module = module
        self._folder = folder
        self._writer: SummaryWriter | None = None
        self._step = 0

    def on_start(self, epochs: int, steps_per_epoch: int) -> None:
        self._epochs = epochs
        self._steps = steps_per_epoch
        self._parameters = [
            parameter for parameter in self._module.parameters() if parameter.requires_grad
        ]
        self._kernels = {name: kernels(group) for name, group in layer_groups(self._module).items()}
        norms = min(max(_NORMS_PER_EPOCH, math.ceil(_NORMS_AT_LEAST / epochs)), steps_per_epoch)
        self._norm_places = {
            math.ceil(number * steps_per_epoch / norms) for number in range(1, norms + 1)
        }
        self._started = time.perf_counter()

    def on_resume(self, steps: int, history: Sequence[dict[str, float]]) -> None:
        # Imported here: other commands need not wait for this module.
        from torch.utils.tensorboard import SummaryWriter

        # All events after the point where the training goes on will be written once more.
        drop_events(self._folder, partial(self._is_done, steps, len(history)))
        # If the queue were full, the training would wait for the disk.
        self._writer = SummaryWriter(str(self._folder), max_queue=1000, flush_secs=10)
        if not self.histories:
            with self._measure_time():
                self._write_weights(len(history))

    def on_backward(self, epoch: int, step: int) -> None:
        self._step = step
        place = (step - 1) % self._steps + 1
        if place not in self._norm_places:
            return
        is_last = place == self._steps
        with self._measure_time():
            if self._is_affordable() or (is_last and epoch in (1, self._epochs)):
                norm = torch.nn.utils.get_total_norm(_gradients(self._parameters))
                self._events.add_scalar("gradient_norm", float(norm), step)
            if is_last and self._is_due(epoch):
                for name, parameters in self._kernels.items():
                    gradients = _gradients(parameters)
                    if gradients:
                        self._add_histogram(f"gradients/{name}", gradients, epoch)

    def on_step(self, epoch: int, loss: float, accuracy: float, lr: float) -> None:
        every = math.ceil(self._epochs * self._steps / _MOST_LRS)
        if self._step % every == 0 or self._step == 1:
            with self._measure_time():
                self._events.add_scalar("lr", lr, self._step)

    def on_epoch(self, epoch: int, values: dict[str, float], is_best: bool) -> None:
        with self._measure_time():
            for name, value in values.items():
                if name != "lr":
                    # TensorBoard opens the groups that are first in the alphabet; the time of an
                    # epoch should not be among them.
                    tag = name if "/" in name else f"speed/{name}"
                    self._events.add_scalar(tag, value, epoch)
            if self._is_due(epoch):
                self._write_weights(epoch)

    def flush(self) -> None:
        """Write what is still in the queue, so that the event files can be copied."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Write what is still in the queue, and close the event file.

        It may be called twice, and before the training has begun.
        """
        if self._writer is not None:
            self._writer.close()

    def state(self) -> dict[str, Any]:
        """Return the histories for a checkpoint.

        They are lists and tensors: ``epochs``, ``edges`` and ``counts`` by group. The event files
        are written first: a training that goes on from the checkpoint finds in them all that was
        before.
        """
        self.flush()
        return {
            name: {
                "epochs": list(history.epochs),
                "edges": torch.from_numpy(np.stack(history.edges)),
                "counts": torch.from_numpy(np.stack(history.counts)),
            }
            for name, history in self.histories.items()
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on with the histories of `state`."""
        self.histories = {
            name: History(
                list(saved["epochs"]), list(saved["edges"].numpy()), list(saved["counts"].numpy())
            )
            for name, saved in state.items()
        }

    def _is_done(self, steps: int, epochs: int, tag: str, step: int) -> bool:
        """Whether an event was written before the point where the training begins or goes on.

        Args:
            steps: Number of steps before that point.
            epochs: Number of epochs before that point.
            tag: Name of what was written.
            step: Step of the event, or its epoch, from 1.
        """
        if not steps:
            return False
        if tag in ("gradient_norm", "lr"):
            return step <= steps
        if tag.startswith("gradients/"):
            # They are taken at the last step of an epoch, before its validation.
            return step * self._steps <= steps
        return step <= epochs

    @property
    def _events(self) -> SummaryWriter:
        assert self._writer is not None
        return self._writer

    @contextmanager
    def _measure_time(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started

    def _is_affordable(self) -> bool:
        return self.seconds <= BUDGET * (time.perf_counter() - self._started)

    def _is_due(self, epoch: int) -> bool:
        if epoch in (1, self._epochs):
            return True
        latest = max((history.epochs[-1] for history in self.histories.values()), default=0)
        return epoch - latest >= math.ceil(self._epochs / _MOST_EPOCHS) and self._is_affordable()

    def _write_weights(self, epoch: int) -> None:
        for name, parameters in self._kernels.items():
            written = self._add_histogram(f"weights/{name}", parameters, epoch)
            if written is not None:
                edges, counts = written
                history = self.histories.setdefault(name, History())
                history.epochs.append(epoch)
                history.edges.append(edges)
                history.counts.append(counts)

    def _add_histogram(
        self, tag: str, tensors: Sequence[Tensor], epoch: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Write a histogram of tensors; return its edges and counts, None if no value is finite."""
        values = subsample(tensors)
        values = values[np.isfinite(values)]
        if not len(values):
            return None
        edges, counts = histogram(values)
        low = float(values.min())
        high = float(values.max())
        total = float(values.sum())
        squares = float(values.dot(values))
        self._events.add_histogram_raw(
            tag, low, high, len(values), total, squares, edges[1:].tolist(), counts.tolist(), epoch
        )
        return edges, counts


def _gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
