"""Learning rate as a function of the step."""

from __future__ import annotations

import math
from typing import assert_never

from pipeline.config import Schedule


def lr_at(
    step: int, schedule: Schedule, lr: float, steps_per_epoch: int, total_steps: int
) -> float:
    """Return the learning rate of one optimizer step.

    It rises linearly to `lr` in the warm-up. Then it decays, counted from the end of the warm-up:
    exponential multiplies it by gamma each epoch, step by gamma every `step_epochs`, and cosine
    lets it fall to `min_lr` at the last step (Loshchilov and Hutter 2017,
    https://arxiv.org/abs/1608.03983, without restarts). The decay of plateau depends on the loss,
    see `Plateau`.

    Args:
        step: Number of the step, from 0.
        schedule: Name and numbers of the decay.
        lr: The highest learning rate.
        steps_per_epoch: Optimizer steps in an epoch.
        total_steps: Optimizer steps in the whole training.
    """
    warmup_steps = round(schedule.warmup_epochs * steps_per_epoch)
    if step < warmup_steps:
        return lr * (step + 1) / (warmup_steps + 1)
    done = step - warmup_steps
    epochs_done = done // steps_per_epoch
    floor = min(schedule.min_lr, lr)
    match schedule.name:
        case "none":
            return lr
        case "cosine":
            progress = done / max(1, total_steps - 1 - warmup_steps)
            return floor + (lr - floor) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
        case "exponential":
            lr *= (schedule.gamma or 1.0) ** epochs_done
        case "step":
            lr *= (schedule.gamma or 1.0) ** (epochs_done // schedule.step_epochs)
        case "plateau":
            # Its decay depends on the loss: see `Plateau`.
            pass
        case _:
            assert_never(schedule.name)
    return max(lr, floor)


class Plateau:
    """A factor of the learning rate that falls while the validation loss does not.

    It is multiplied by gamma each time the loss has not fallen for `plateau_epochs`.
    """

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._best = math.inf
        self._waited = 0
        self.factor = 1.0

    def state(self) -> dict[str, float]:
        """Return the state that a resumed training needs."""
        return {"best": self._best, "waited": self._waited, "factor": self.factor}

    def load_state(self, state: dict[str, float]) -> None:
        """Go back to `state`."""
        self._best = state["best"]
        self._waited = int(state["waited"])
        self.factor = state["factor"]

    def observe(self, val_loss: float) -> None:
        """Take the validation loss of an epoch."""
        if self._schedule.name != "plateau":
            return
        if val_loss < self._best:
            self._best = val_loss
            self._waited = 0
            return
        self._waited += 1
        if self._waited >= self._schedule.plateau_epochs:
            self.factor *= self._schedule.gamma or 1.0
            self._waited = 0
