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
"""Part of the training's time that looking at it may take; beyond it samples are left out."""
_MOST_EPOCHS = 30
_MOST_LRS = 1000
_NORMS_PER_EPOCH = 3
_NORMS_AT_LEAST = 30


@dataclass
class History:
    """How the weights of one layer group were spread, epoch by epoch.

    Attributes:
        epochs: Those that were looked at, ascending; 0 is before the first step.
        edges: One array (bins + 1,) per epoch, ascending.
        counts: One array (bins,) per epoch.
    """

    epochs: list[int] = field(default_factory=list)
    edges: list[NDArray[np.float32]] = field(default_factory=list)
    counts: list[NDArray[np.float32]] = field(default_factory=list)


class Watch(Callback):
    """Writes what a training looks like inside, and takes about 1% of its time for it.

    In TensorBoard ``lr`` and ``gradient_norm`` stand over steps, all else over epochs: ``weights/GROUP`` and ``gradients/GROUP``
    (histograms of the kernels; of weights after the epoch, of gradients at its last step) and the epoch's metrics under their
    own names, those without a slash below ``speed/``.

    The learning rate and metrics are always written. Gradient norms are taken at three steps an epoch, more where epochs are few;
    histograms of at most about 30 epochs. Both are left out while watching has taken more than `BUDGET` of the training's time,
    except in the first and the last epoch. Nothing is changed and no random number is drawn: the training is bit by bit the same.

    Args:
        module: The network that is trained.
        folder: Of the event files; a training that goes on drops from them what it will do again, and adds one.

    Attributes:
        histories: Of the weights, by layer group.
        seconds: What watching has taken.
    """

    def __init__(self, module: nn.Module, folder: Path) -> None:
        self.histories: dict[str, History] = {}
        self.seconds = 0.0
        self._module, self._folder = module, folder
        self._writer: SummaryWriter | None = None
        self._step = 0

    def on_start(self, epochs: int, steps_per_epoch: int) -> None:
        self._epochs, self._steps = epochs, steps_per_epoch
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
        # Here and not above: other commands need not wait for it.
        from torch.utils.tensorboard import SummaryWriter

        # Beyond what the training goes on from, it will all be written once more.
        drop_events(self._folder, partial(self._is_done, steps, len(history)))
        # A queue that is full would make the training wait for the disk.
        self._writer = SummaryWriter(str(self._folder), max_queue=1000, flush_secs=10)
        if not self.histories:
            with self._counted():
                self._weigh(len(history))

    def on_backward(self, epoch: int, step: int) -> None:
        self._step = step
        place = (step - 1) % self._steps + 1
        if place not in self._norm_places:
            return
        is_last = place == self._steps
        with self._counted():
            if self._is_affordable() or (is_last and epoch in (1, self._epochs)):
                gradients = [
                    parameter.grad for parameter in self._parameters if parameter.grad is not None
                ]
                self._events.add_scalar(
                    "gradient_norm", float(torch.nn.utils.get_total_norm(gradients)), step
                )
            if is_last and self._is_due(epoch):
                for name, parameters in self._kernels.items():
                    gradients = [
                        parameter.grad for parameter in parameters if parameter.grad is not None
                    ]
                    if gradients:
                        self._add_histogram(f"gradients/{name}", gradients, epoch)

    def on_step(self, epoch: int, loss: float, accuracy: float, lr: float) -> None:
        every = math.ceil(self._epochs * self._steps / _MOST_LRS)
        if self._step % every == 0 or self._step == 1:
            with self._counted():
                self._events.add_scalar("lr", lr, self._step)

    def on_epoch(self, epoch: int, values: dict[str, float], is_best: bool) -> None:
        with self._counted():
            for name, value in values.items():
                if name != "lr":
                    # TensorBoard opens the first groups of the alphabet, which should not be how long an epoch took.
                    self._events.add_scalar(name if "/" in name else f"speed/{name}", value, epoch)
            if self._is_due(epoch):
                self._weigh(epoch)

    def flush(self) -> None:
        """Write what is still in the queue, so that the event files can be copied."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Write what is still in the queue and close the event file; safe to call twice, and before the training has begun."""
        if self._writer is not None:
            self._writer.close()

    def state(self) -> dict[str, Any]:
        """Return the histories as lists and tensors, for a checkpoint: by group, ``epochs``, ``edges`` and ``counts``.

        What goes on from it finds in the event files all that was before.
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
        """Whether an event is of before the point where the training begins or goes on.

        Args:
            steps: Number of steps before that point.
            epochs: Number of epochs before that point.
            tag: Name of what was written.
            step: Its step, or its epoch, from 1.
        """
        if not steps:
            return False
        if tag in ("gradient_norm", "lr"):
            return step <= steps
        if tag.startswith("gradients/"):
            # Taken at the last step of an epoch, before its validation.
            return step * self._steps <= steps
        return step <= epochs

    @property
    def _events(self) -> SummaryWriter:
        assert self._writer is not None
        return self._writer

    @contextmanager
    def _counted(self) -> Iterator[None]:
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

    def _weigh(self, epoch: int) -> None:
        for name, parameters in self._kernels.items():
            made = self._add_histogram(f"weights/{name}", parameters, epoch)
            if made is not None:
                history = self.histories.setdefault(name, History())
                history.epochs.append(epoch)
                history.edges.append(made[0])
                history.counts.append(made[1])

    def _add_histogram(
        self, tag: str, tensors: Sequence[Tensor], epoch: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        values = subsample(tensors)
        values = values[np.isfinite(values)]
        if not len(values):
            return None
        edges, counts = histogram(values)
        low, high, total, squares = (
            float(one) for one in (values.min(), values.max(), values.sum(), values.dot(values))
        )
        self._events.add_histogram_raw(
            tag, low, high, len(values), total, squares, edges[1:].tolist(), counts.tolist(), epoch
        )
        return edges, counts
