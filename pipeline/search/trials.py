"""The trials of a study: which are done, which are still to do, across interruptions.

A study makes `trials` trainings, numbered from 0: the place. The list's entries have the first places
and are enqueued; what is searched follows. Of a place the latest trial stands. One that was interrupted
waits, as it is, to be gone on with; one that failed for a reason that may have passed is enqueued again
with the same values, once each time the study starts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState

from pipeline.config import Configuration
from pipeline.experiment import Experiment
from pipeline.search.space import as_point

PLACE = "place"
ENTRY = "entry"
KEY = "key"
INTERRUPTED = "interrupted"
"""On failed trials: their failure says nothing. Release 0.1.0 ended interrupted trials so; others have left the list."""
RUN_ID = "run_id"
REASON = "reason"
MAY_PASS = "may_pass"
"""On failed trials: whether their training is to be tried again."""


def with_repeat_seeds(
    entries: Sequence[Configuration], hashes: Sequence[str]
) -> list[Configuration]:
    """Give the k-th equal entry of a list the seed + k, so that repeats are real."""
    taken: set[tuple[str, int]] = set()
    seeded = []
    for entry, config_hash in zip(entries, hashes, strict=True):
        seed = entry.training.seed
        while (config_hash, seed) in taken:
            seed += 1
        taken.add((config_hash, seed))
        seeded.append(entry.change("training", seed=seed))
    return seeded


def may_succeed(trial: FrozenTrial) -> bool:
    """Whether a trial failed for a reason that may have passed; release 0.1.0 has noted the reason only."""
    if trial.state != TrialState.FAIL or INTERRUPTED in trial.user_attrs:
        return False
    return bool(
        trial.user_attrs.get(MAY_PASS, "is not finite" not in trial.user_attrs.get(REASON, ""))
    )


def latest_trials(study: optuna.Study, keys: Collection[str]) -> list[FrozenTrial]:
    """Return the latest trial of each place, of those that were searched and those of the current list."""
    latest: dict[int, FrozenTrial] = {}
    for trial in study.get_trials(deepcopy=False):
        if PLACE in trial.user_attrs and (
            KEY not in trial.user_attrs or trial.user_attrs[KEY] in keys
        ):
            latest[trial.user_attrs[PLACE]] = trial
    return list(latest.values())


def finished_trials(study: optuna.Study, keys: Collection[str]) -> list[FrozenTrial]:
    """Return the trials that are done: complete, pruned or failed."""
    return [
        trial
        for trial in latest_trials(study, keys)
        if trial.state.is_finished() and INTERRUPTED not in trial.user_attrs
    ]


def waiting_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that are to be done next."""
    return study.get_trials(deepcopy=False, states=(TrialState.WAITING,))


def put_back(study: optuna.Study, trial_id: int) -> None:
    """Let a trial that runs wait: with its values, and what it has reported, it is the next to be asked for."""
    study._storage.set_trial_state_values(trial_id, TrialState.WAITING)


class Repeated(NamedTuple):
    """How many trainings are done once more.

    Attributes:
        failed: For a reason that may have passed.
        deleted: Their runs were deleted.
    """

    failed: int
    deleted: int


def enqueue_missing(
    study: optuna.Study,
    experiment: Experiment,
    entries: Mapping[str, Configuration],
    there_are: Collection[str],
) -> Repeated:
    """Enqueue what is still to do of the list, of interrupted and of failed trials; entries no longer in the list are given up.

    Args:
        study: Nothing else works on it.
        experiment: Its base and space.
        entries: The list by identity (configuration hash and seed), seeds of repeats given, as many as are to be trained.
        there_are: Ids of the study's runs: what was trained in others, which were deleted since, is trained again.

    Returns:
        How many trainings are tried again.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
        runs = trial.state == TrialState.RUNNING
        if trial.user_attrs.get(KEY) not in {*entries, None} or (
            runs and PLACE not in trial.user_attrs
        ):
            _withdraw(study, trial)
        elif runs:
            put_back(study, trial._trial_id)
    latest = latest_trials(study, entries)
    again = [trial for trial in latest if may_succeed(trial) or _is_gone(trial, there_are)]
    for trial in latest:
        if KEY not in trial.user_attrs and (trial in again or INTERRUPTED in trial.user_attrs):
            study.enqueue_trial(trial.params, {PLACE: trial.user_attrs[PLACE]})
    there = {
        trial.user_attrs.get(KEY)
        for trial in latest
        if trial not in again and INTERRUPTED not in trial.user_attrs
    }
    places = {trial.user_attrs.get(KEY): trial.user_attrs[PLACE] for trial in latest}
    place = next_place(study)
    for key, entry in entries.items():
        if key in there:
            continue
        point = as_point(entry, experiment) if experiment.space else None
        kept = places.get(key)
        study.enqueue_trial(
            point or {},
            {
                PLACE: place if kept is None else kept,
                KEY: key,
                ENTRY: entry.model_dump(mode="json"),
            },
        )
        place += kept is None
    return Repeated(sum(map(may_succeed, again)), sum(not may_succeed(trial) for trial in again))


def _is_gone(trial: FrozenTrial, there_are: Collection[str]) -> bool:
    return (
        trial.state.is_finished()
        and RUN_ID in trial.user_attrs
        and trial.user_attrs[RUN_ID] not in there_are
    )


def _withdraw(study: optuna.Study, trial: FrozenTrial) -> None:
    study._storage.set_trial_user_attr(trial._trial_id, INTERRUPTED, True)
    study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)


def next_place(study: optuna.Study) -> int:
    """Return the lowest place that no trial has had."""
    return 1 + max(
        (
            trial.user_attrs[PLACE]
            for trial in study.get_trials(deepcopy=False)
            if PLACE in trial.user_attrs
        ),
        default=-1,
    )


def place_of(trial: optuna.Trial) -> int:
    """Return the trial's place; a searched trial takes the next one."""
    place: Any = trial.user_attrs.get(PLACE)
    if place is None:
        place = next_place(trial.study)
        trial.set_user_attr(PLACE, place)
    return int(place)


def is_point(trial: optuna.Trial) -> bool:
    """Whether a trial was enqueued with values in the space."""
    return bool(
        trial.study.get_trials(deepcopy=False)[trial.number].system_attrs.get("fixed_params")
    )
