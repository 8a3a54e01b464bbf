"""The race of ``study.pruner one_epoch``: all for one epoch, then the best of them to the end.

A searched trial that is among the best after its first epoch waits for the others. It goes on from
there when it is certain to be among the best of all; it is given up as soon as it no longer is.
That finds about as good configurations as pruners that compare at many epochs (arXiv 2307.15422).
The metric that chooses the best training decides. The validation loss, which is finer, would
mislead: after an epoch, networks with batch normalisation may have the larger loss the more they
have learnt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState

from pipeline import ranking
from pipeline.config import Study
from pipeline.errors import Paused
from pipeline.search.pruning import PruningCallback
from pipeline.search.trials import latest_trials
from pipeline.tracking.tracked_run import Pruned


class Standing(Enum):
    """How a trial stands after its first epoch."""

    AHEAD = "ahead"
    """It is among the best, whatever the trials reach that have not trained for an epoch yet."""
    OPEN = "open"
    """It is among the best so far."""
    BEHIND = "behind"
    """So many others are better that it is given up."""


class Race(NamedTuple):
    """How the searched trials of a study stand after their first epochs.

    Attributes:
        order: Numbers of the trials that have trained for an epoch, the best first. Of equal ones
            the earlier is the better.
        num_open: Number of trials that have not, and will.
        num_finalists: Number of trials that are trained to their end.
        total: Number of searched trials, but for those that have failed.
    """

    order: list[int]
    num_open: int
    num_finalists: int
    total: int

    @classmethod
    def of(cls, study: optuna.Study, settings: Study) -> Race:
        """Read how the trials of a study stand."""
        # Trials of the list have keys, so that none of them is among these.
        searched = [trial for trial in latest_trials(study, ()) if trial.state != TrialState.FAIL]
        ranked = [trial for trial in searched if trial.intermediate_values]
        ranked.sort(key=lambda trial: (-_first_score(trial), trial.number))
        # What was taken from an earlier training is complete without any epoch.
        to_come = [
            trial
            for trial in searched
            if not trial.intermediate_values and not trial.state.is_finished()
        ]
        finalists = settings.num_finalists(len(searched))
        order = [trial.number for trial in ranked]
        return cls(order, len(to_come), finalists, len(searched))

    def standing(self, number: int) -> Standing:
        """Return how a trial stands that has trained for an epoch, by its number."""
        rank = self.rank(number)
        if rank > self.num_finalists:
            return Standing.BEHIND
        if rank + self.num_open <= self.num_finalists or not self.num_open:
            return Standing.AHEAD
        return Standing.OPEN

    def rank(self, number: int) -> int:
        """Return the rank of a trial that has trained for an epoch, from 1."""
        return 1 + self.order.index(number)

    def describe(self, number: int) -> str:
        """Say for people how a trial stands."""
        return (
            f"place {self.rank(number)} of {len(self.order)} so far; "
            f"the best {self.num_finalists} of {self.total} go on"
        )


def waits_for_others(trial: FrozenTrial) -> bool:
    """Whether a trial has trained for one epoch, and waits."""
    return trial.state == TrialState.WAITING and len(trial.intermediate_values) == 1


def _first_score(trial: FrozenTrial) -> float:
    """Return the score after the first epoch, the higher the better."""
    return trial.intermediate_values[min(trial.intermediate_values)]


class RaceCallback(PruningCallback):
    """Has a searched trial wait after its first epoch, or gives it up there.

    Args:
        trial: The trial that is trained.
        metric: The metric that trainings are compared by.
        settings: The study's settings.
    """

    def __init__(self, trial: optuna.Trial, metric: str, settings: Study) -> None:
        super().__init__(trial, metric, prunable=False)
        self._settings = settings

    def on_epoch(self, epoch: int, values: dict[str, float], is_best: bool) -> None:
        super().on_epoch(epoch, values, is_best)
        if epoch == 1:
            self._judge(values)

    def on_resume(self, steps: int, history: Sequence[dict[str, float]]) -> None:
        super().on_resume(steps, history)
        if len(history) == 1:
            self._judge(history[0])

    def _judge(self, values: Mapping[str, float]) -> None:
        if self._epochs == 1:
            return
        race = Race.of(self._trial.study, self._settings)
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
