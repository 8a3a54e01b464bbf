"""The race of ``study.pruner one_epoch``: all for one epoch, then the best of them to the end.

A searched trial that is among the best after its first epoch waits for the others. It goes on from
there when it is certain to be among the best of all; it is given up as soon as it no longer is.
That finds about as good configurations as pruners that compare at many epochs (arXiv 2307.15422).
The metric that chooses the best training decides. The validation loss, which is finer, would
mislead: after an epoch, networks with batch normalisation may have the larger loss the more they
have learnt.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState

from pipeline import ranking
from pipeline.config import Study
from pipeline.errors import Paused
from pipeline.experiment import Experiment
from pipeline.search.pruning import PruningCallback
from pipeline.search.trials import latest_trials
from pipeline.tracking.tracked_run import Pruned


class Standing(Enum):
    """How a trial stands after its first epoch."""

    AHEAD = "ahead"
    """It is among the best, whatever the trials reach that have not trained for an epoch yet.

    Or it is late: see `is_late`.
    """
    OPEN = "open"
    """It is among the best so far."""
    BEHIND = "behind"
    """So many others are better that it is given up."""


class Race(NamedTuple):
    """How the searched trials of a study stand after their first epochs.

    Attributes:
        order: Numbers of the trials that have trained for an epoch, the best first, but for those
            that are given up, and for all but the first of those with the same values. Of equal
            scores the earlier one is the better.
        num_open: Number of trials that have not trained for an epoch, and will.
        num_finalists: Number of trials that are trained to their end.
        num_hurried: Number of trials that do not wait for others, since it is late.
        total: Number of searched trials that take part.
    """

    order: list[int]
    num_open: int
    num_finalists: int
    num_hurried: int
    total: int

    @classmethod
    def of(cls, study: optuna.Study, settings: Study, late: bool = False) -> Race:
        """Read how the trials of a study stand.

        Args:
            study: The study.
            settings: Its settings.
            late: Whether it is late, see `is_late`. Then as large a share of the places is given
                away as of the trials have trained for an epoch.
        """
        # Trials of the list have keys, so that none of them is among these.
        searched = list(filter(_takes_part, latest_trials(study, ())))
        begun = [trial for trial in searched if trial.intermediate_values]
        begun.sort(key=lambda trial: (-_first_score(trial), trial.number))
        order: dict[str, int] = {}
        for trial in begun:
            if trial.state != TrialState.PRUNED:
                order.setdefault(repr(sorted(trial.params.items())), trial.number)
        num_open = len(searched) - len(begun)
        total = len(searched)
        finalists = settings.num_finalists(total)
        hurried = math.ceil(finalists * len(begun) / total) if late and total else 0
        return cls(list(order.values()), num_open, finalists, hurried, total)

    def standing(self, number: int) -> Standing:
        """Return how a trial stands that has trained for an epoch, by its number."""
        if number not in self.order:
            return Standing.BEHIND
        rank = 1 + self.order.index(number)
        if rank > self.num_finalists:
            return Standing.BEHIND
        is_certain = rank + self.num_open <= self.num_finalists or not self.num_open
        if is_certain or rank <= self.num_hurried:
            return Standing.AHEAD
        return Standing.OPEN

    def describe(self, number: int) -> str:
        """Say for people how a trial stands."""
        if number not in self.order:
            return "as another trial with the same values"
        return (
            f"place {1 + self.order.index(number)} so far; "
            f"the best {self.num_finalists} of {self.total} go on"
        )


def _takes_part(trial: FrozenTrial) -> bool:
    """Whether a searched trial takes part in the race.

    It does not if it has failed, or was complete after one epoch or without any: then it has taken
    the result of an earlier training.
    """
    if trial.state == TrialState.COMPLETE:
        return len(trial.intermediate_values) > 1
    return trial.state != TrialState.FAIL


def waits_for_others(trial: FrozenTrial) -> bool:
    """Whether a trial has trained for one epoch, and waits."""
    return trial.state == TrialState.WAITING and len(trial.intermediate_values) == 1


def is_late(experiment: Experiment, began: float) -> bool:
    """Whether the best so far go on at once, so that they reach their end within ``study.hours``.

    That is so when the time is over that the list and the first epochs have of a study which just
    fits into its hours. Trials that have not begun come after them.

    Args:
        experiment: List, number of trials and settings.
        began: When the study's trials were enqueued, in seconds since 1970.
    """
    settings = experiment.study
    if not settings.hours:
        return False
    epochs = experiment.base.training.epochs
    num_listed = min(len(experiment.entries), experiment.trials)
    num_searched = experiment.trials - num_listed
    before = num_listed * epochs + num_searched
    after = settings.num_finalists(num_searched) * (epochs - 1)
    share = before / (before + after)
    return time.time() - began >= share * 3600 * settings.hours


def _never() -> bool:
    return False


def _first_score(trial: FrozenTrial) -> float:
    """Return the score after the first epoch, the higher the better."""
    return trial.intermediate_values[min(trial.intermediate_values)]


class RaceCallback(PruningCallback):
    """Has a searched trial wait after its first epoch, or gives it up there.

    Args:
        trial: The trial that is trained.
        metric: The metric that trainings are compared by.
        settings: The study's settings.
        is_late: Whether it is late by now, see the function `is_late`.
    """

    def __init__(
        self,
        trial: optuna.Trial,
        metric: str,
        settings: Study,
        is_late: Callable[[], bool] = _never,
    ) -> None:
        super().__init__(trial, metric, prunable=False)
        self._settings = settings
        self._is_late = is_late

    def on_epoch(self, epoch: int, values: dict[str, float], is_best: bool) -> None:
        super().on_epoch(epoch, values, is_best)
        # It has been judged already if an earlier life trained for longer.
        if epoch == 1 and max(self._reported, default=0) <= 1:
            self._judge(values)

    def on_resume(self, steps: int, history: Sequence[dict[str, float]]) -> None:
        super().on_resume(steps, history)
        # If it had gone on before, it keeps its place although its last checkpoint is that of its
        # pause.
        if len(history) == 1 and max(self._reported, default=0) <= 1:
            self._judge(history[0])

    def _judge(self, values: Mapping[str, float]) -> None:
        if self._epochs == 1:
            return
        race = Race.of(self._trial.study, self._settings, self._is_late())
        standing = race.standing(self._trial.number)
        value = ranking.text(values[self._metric], self._metric)
        where = (
            f"after epoch 1 of {self._epochs} at {ranking.title(self._metric)} {value}, "
            f"{race.describe(self._trial.number)}"
        )
        if standing == Standing.BEHIND:
            raise Pruned(f"pruned {where}")
        if standing == Standing.OPEN:
            raise Paused(f"waits {where}")
