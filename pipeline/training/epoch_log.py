"""Log the metrics of each epoch and of the best one; correct them if epochs are trained again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from pipeline.ranking import best_name, score
from pipeline.training.callback import Callback

Values = Mapping[str, float]
Write = Callable[[Values, int], None]
"""A function that logs metrics of one step, which is an epoch, from 1."""

BEST = {"best/val_accuracy": "val/accuracy", "best/val_loss": "val/loss"}
_SPEEDS = {"epoch_seconds", "images_per_second"}


class EpochLog(Callback):
    """Logs each epoch once, and once more if a resumed training gets other numbers for it.

    A training goes on from its last checkpoint, and does again what it had logged beyond that. On a
    CPU this gives the same numbers. On a GPU it need not: the logged numbers are then those of
    weights that are gone. So, of several values of a metric at one step the last one holds, and it
    is NaN for an epoch that no longer exists. Of ``best/…`` the value at the highest step holds,
    which MLflow calls the latest.

    Args:
        write: The function that logs.
        once: Metrics that are logged with the first epoch.
        best_metric: Name of the metric that chooses the best epoch.
        known: The metrics that have been logged before, by epoch; the last ones of each.
        told: The values that have been logged as ``best/…`` before, at the highest step.
    """

    def __init__(
        self,
        write: Write,
        once: Values,
        best_metric: str,
        known: Mapping[int, Values] | None = None,
        told: Values | None = None,
    ) -> None:
        self._write = write
        self._once = once
        self._best_metric = best_metric
        self._known = dict(known or {})
        self._told = dict(told or {})
        self._names = {**BEST, best_name(best_metric): best_metric}
        self._kept: Values = {}
        self._epochs = 0
        self._last = max(self._known, default=0)
        self._has_departed = False

    def on_resume(self, steps: int, history: Sequence[dict[str, float]]) -> None:
        # Some may not have been written before a kill; what was written may be of another life than
        # the one that goes on.
        best = -math.inf
        for number, values in enumerate(history, 1):
            reached = score(values[self._best_metric], self._best_metric)
            self.on_epoch(number, values, reached >= best)
            best = max(best, reached)

    def on_epoch(self, epoch: int, values: dict[str, float], is_best: bool) -> None:
        self._epochs = epoch
        if is_best:
            kept = {name: values[source] for name, source in self._names.items()}
            self._kept = {**kept, "best/epoch": epoch}
        before = self._known.get(epoch)
        scores = {name: value for name, value in values.items() if name not in _SPEEDS}
        is_new = before is None or not _are_same(before, scores)
        if before is not None and is_new:
            self._has_departed = True
        # Until it gets other numbers, or more epochs, it is on its way to the best epoch that was
        # logged.
        best: Values = {}
        if self._has_departed or epoch >= self._last:
            best = self._take_untold()
        if best and not (is_new and epoch >= self._last):
            self._write(best, max(epoch, self._last))
            best = {}
        if is_new:
            # The best so far is there while the training runs, and comes first: the UI's comparison
            # plots a run's first metric. The network's size is no param, or it would take the place
            # of the schedule among the three params that are plotted with it.
            once = self._once if epoch == 1 else {}
            self._write({**best, **values, **once}, epoch)

    def conclude(self) -> None:
        """Log the best epoch that is kept, and NaN for logged epochs that are gone.

        Called at the end of a training that will not go on.
        """
        for step in sorted(self._known):
            if step > self._epochs:
                self._write(dict.fromkeys(self._known[step], math.nan), step)
        if not self._kept:
            self._kept = dict.fromkeys(self._told, math.nan)
        best = self._take_untold()
        if best:
            self._write(best, max(self._epochs, self._last))

    def _take_untold(self) -> Values:
        """Return what must now be logged as ``best/…``; nothing if that has been logged."""
        if _are_same(self._told, self._kept):
            return {}
        self._told = dict(self._kept)
        return self._kept


def _are_same(before: Values, values: Values) -> bool:
    """Whether all of `values` have been logged before."""
    return all(name in before and _is_same(before[name], value) for name, value in values.items())


def _is_same(before: float, value: float) -> bool:
    return before == value or (math.isnan(before) and math.isnan(value))
