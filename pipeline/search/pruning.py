"""Samplers and pruners by name, and the callback that asks the pruner after each epoch."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import assert_never

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from pipeline import ranking
from pipeline.config import Study
from pipeline.tracking.tracked_run import Pruned
from pipeline.training.callback import Callback

STARTUP_TRIALS = 5
"""Finished trials before TPE and the median pruner judge: Optuna's 10 would leave little of a study of 20."""
JUDGED_AFTER = 4
"""Hyperband first judges a training after a quarter of its epochs, from 8 epochs on: after the first one many of the best are behind."""


def build_sampler(study: Study, seed: int) -> BaseSampler:
    """Build the sampler that ``study.sampler`` names."""
    match study.sampler:
        case "tpe":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                # Without groups one entry outside the space, which has no values in it, would end joint sampling.
                return TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS, group=True)
        case "random":
            return RandomSampler(seed=seed)
        case _:
            assert_never(study.sampler)


def first_rung(epochs: int) -> int:
    """Return the epoch after which hyperband first judges trainings of so many epochs, in studies that begin now."""
    return max(1, epochs // JUDGED_AFTER)


def build_pruner(study: Study, epochs: int, first: int = 0) -> BasePruner:
    """Build the pruner that ``study.pruner`` names.

    Args:
        study: Names it.
        epochs: Of each training.
        first: The epoch of hyperband's first rung, of a study that has begun with one; 0: as in studies that begin now.
    """
    match study.pruner:
        case "hyperband":
            return HyperbandPruner(
                min_resource=first or first_rung(epochs), max_resource=epochs, reduction_factor=3
            )
        case "median":
            return MedianPruner(n_startup_trials=STARTUP_TRIALS)
        case "none":
            return NopPruner()
        case _:
            assert_never(study.pruner)


class PruningCallback(Callback):
    """Reports the score after each epoch; gives a searched trial up where the pruner says so.

    Args:
        trial: Of the study.
        metric: What trainings are compared by.
        prunable: False for entries of the list, which only set the standard for the others.
    """

    def __init__(self, trial: optuna.Trial, metric: str, prunable: bool) -> None:
        self._trial, self._metric, self._prunable = trial, metric, prunable
        self._epochs = 0
        # In an earlier life of the trial, whose training may go on from before its last epoch.
        self._reported = set(
            trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        )

    def on_start(self, epochs: int, steps_per_epoch: int) -> None:
        self._epochs = epochs

    def on_epoch(self, epoch: int, values: dict[str, float], is_best: bool) -> None:
        hopeless = self._is_hopeless(epoch, values)
        if hopeless and self._prunable and epoch < self._epochs:
            reached = (
                f"{ranking.title(self._metric)} {ranking.text(values[self._metric], self._metric)}"
            )
            raise Pruned(f"pruned after epoch {epoch} of {self._epochs} at {reached}")

    def on_resume(self, steps: int, history: Sequence[dict[str, float]]) -> None:
        # What a new trial has not reported itself; the answers were given in the earlier life.
        for number, values in enumerate(history, 1):
            if number not in self._reported:
                self._is_hopeless(number, values)

    def _is_hopeless(self, epoch: int, values: dict[str, float]) -> bool:
        """Report an epoch, and return what the pruner says: those of successive halving note the score of a rung when they are asked."""
        if epoch not in self._reported:
            self._trial.report(ranking.score(values[self._metric], self._metric), epoch)
        return self._trial.should_prune()
