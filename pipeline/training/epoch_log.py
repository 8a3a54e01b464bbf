"""What is told of each epoch, and of the best one, kept true where epochs are trained again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from pipeline.ranking import best_name, score
from pipeline.training.callback import Callback

Values = Mapping[str, float]
Write = Callable[[Values, int], None]
"""Logs metrics of one step: an epoch, from 1."""

BEST = {"best/val_accuracy": "val/accuracy", "best/val_loss": "val/loss"}
_SPEEDS = {"epoch_seconds", "images_per_second"}


class EpochLog(Callback):
    """Logs each epoch once, and once more where a training that was taken up makes something else of it.

    A training goes on from its last checkpoint, and does again what it had logged beyond that. On a CPU this gives the same numbers, on
    a GPU it need not: what was logged is then of weights that are gone. So, of a metric's values the last one of each step holds, NaN
    for an epoch that there is no more; and of ``best/…`` the one of the highest step, which is what MLflow calls the latest.

    Args:
        write: Where it is logged.
        once: Metrics that are logged with the first epoch.
        best_metric: What chooses the best epoch.
        known: The metrics of each epoch that have been logged before, the last ones.
        told: What has been logged as ``best/…`` before, at the highest step.
    """

    def __init__(
        self,
        write: Write,
        once: Values,
        best_metric: str,
        known: Mapping[int, Values] | None = None,
        told: Values | None = None,
    ) -> None:
        self._write, self._once, self._best_metric = write, once, best_metric
        self._known, self._told = dict(known or {}), dict(told or {})
        self._names = {**BEST, best_name(best_metric): best_metric}
        self._kept: Values = {}
        self._epochs, self._last = 0, max(self._known, default=0)
        self._has_departed = False

    def on_resume(self, steps: int, history: Sequence[dict[str, float]]) -> None:
        # Some may not have been written any more, or be of another life than the one that goes on.
        best = -math.inf
        for number, values in enumerate(history, 1):
            reached = score(values[self._best_metric], self._best_metric)
            self.on_epoch(number, values, reached >= best)
            best = max(best, reached)

    def on_epoch(self, epoch: int, values: dict[str, float], is_best: bool) -> None:
        self._epochs = epoch
        if is_best:
            self._kept = {
                **{name: values[source] for name, source in self._names.items()},
                "best/epoch": epoch,
            }
        before = self._known.get(epoch)
        is_new = before is None or not _are_same(
            before, {name: value for name, value in values.items() if name not in _SPEEDS}
        )
        self._has_departed |= before is not None and is_new
        # Until it makes something else, or more, of the epochs, it is on its way to the best one that was logged.
        best = self._untold() if self._has_departed or epoch >= self._last else {}
        if best and not (is_new and epoch >= self._last):
            self._write(best, max(epoch, self._last))
            best = {}
        if is_new:
            # The best so far is there while the training runs, and first: the UI's comparison plots a run's first metric.
            # The size is no param, or it would take the place of the schedule among the three that are plotted with it.
            self._write({**best, **values, **(self._once if epoch == 1 else {})}, epoch)

    def conclude(self) -> None:
        """Log, at the end of a training that will not go on, the best epoch that is kept, and that later ones are gone."""
        for step in sorted(self._known):
            if step > self._epochs:
                self._write(dict.fromkeys(self._known[step], math.nan), step)
        self._kept = self._kept or dict.fromkeys(self._told, math.nan)
        if best := self._untold():
            self._write(best, max(self._epochs, self._last))

    def _untold(self) -> Values:
        """Return what is to be logged as ``best/…``; nothing where that has been logged."""
        if _are_same(self._told, self._kept):
            return {}
        self._told = dict(self._kept)
        return self._kept


def _are_same(before: Values, values: Values) -> bool:
    """Whether all of `values` have been logged before."""
    return all(name in before and _is_same(before[name], value) for name, value in values.items())


def _is_same(before: float, value: float) -> bool:
    return before == value or (math.isnan(before) and math.isnan(value))
