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
"""Finished trials that TPE and the median pruner wait for before they judge.

Optuna's own 10 would leave little of a study of 20 trials.
"""
JUDGED_AFTER = 4
"""Hyperband first judges a training after its epochs divided by this: after a quarter of them.

From 8 epochs on that is later than the first epoch, after which many of the best are still behind.
"""


def build_sampler(study: Study, seed: int) -> BaseSampler:
    """Build the sampler that ``study.sampler`` names."""
    match study.sampler:
        case "tpe":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                # Without groups, one entry outside the space would end joint sampling: it has no
                # values in the space.
                return TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS, group=True)
        case "random":
            return RandomSampler(seed=seed)
        case _:
            assert_never(study.sampler)


def first_rung(epochs: int) -> int:
    """Return the epoch after which hyperband first judges a training, in studies that begin now.

    Args:
        epochs: Number of epochs of each training.
    """
    return max(1, epochs // JUDGED_AFTER)


def build_pruner(study: Study, epochs: int, first: int = 0) -> BasePruner:
    """Build the pruner that ``study.pruner`` names.

    Args:
        study: The settings, which name the pruner.
        epochs: Number of epochs of each training.
        first: The epoch of hyperband's first rung in a study that was begun with one; 0 takes
            that of studies that begin now.
    """
    match study.pruner:
        case "hyperband":
            return HyperbandPruner(
                min_resource=first or first_rung(epochs), max_resource=epochs, reduction_factor=3
            )
        case "median":
            return MedianPruner(n_startup_trials=STARTUP_TRIALS)
        case "one_epoch" | "none":
            # Who is behind after an epoch is for `PruningCallback` to find out: a pruner can give a
            # trial up, and not have it wait.
            return NopPruner()
        case _:
            assert_never(study.pruner)


class PruningCallback(Callback):
    """Reports the score after each epoch, and gives a searched trial up if the pruner says so.

    Args:
        trial: The trial that is trained.
        metric: The metric that trainings are compared by.
        prunable: False for entries of the list, which only set the standard for the others.
    """

    def __init__(self, trial: optuna.Trial, metric: str, prunable: bool) -> None:
        self._trial = trial
        self._metric = metric
        self._prunable = prunable
        self._epochs = 0
        # The epochs that an earlier life of the trial has reported. Its training may go on from
        # before the last of them.
        recorded = trial.study.get_trials(deepcopy=False)[trial.number]
        self._reported = set(recorded.intermediate_values)

    def on_start(self, epochs: int, steps_per_epoch: int) -> None:
        self._epochs = epochs

    def on_epoch(self, epoch: int, values: dict[str, float], is_best: bool) -> None:
        is_hopeless = self._ask_pruner(epoch, values)
        if is_hopeless and self._prunable and epoch < self._epochs:
            value = ranking.text(values[self._metric], self._metric)
            raise Pruned(
                f"pruned after epoch {epoch} of {self._epochs} "
                f"at {ranking.title(self._metric)} {value}"
            )

    def on_resume(self, steps: int, history: Sequence[dict[str, float]]) -> None:
        # A new trial has not reported these epochs itself. The answers do not count: the pruner has
        # judged them in the earlier life.
        for number, values in enumerate(history, 1):
            if number not in self._reported:
                self._ask_pruner(number, values)

    def _ask_pruner(self, epoch: int, values: dict[str, float]) -> bool:
        """Report an epoch, and return whether the pruner gives the trial up.

        Pruners of successive halving note the score of a rung when they are asked.
        """
        if epoch not in self._reported:
            self._trial.report(ranking.score(values[self._metric], self._metric), epoch)
        return self._trial.should_prune()
