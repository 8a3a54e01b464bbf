"""The trials of a study: which are done, which are still to do, across interruptions.

A study makes `trials` trainings, numbered from 0: the place. The list's entries have the first places
and are enqueued; what is searched follows. A trial that was interrupted does not count: its place is
enqueued again with the same values.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from pipeline.config import Configuration
from pipeline.experiment import Experiment
from pipeline.search.space import as_point

PLACE = "place"
ENTRY = "entry"
KEY = "key"
INTERRUPTED = "interrupted"
RUN_ID = "run_id"


def with_repeat_seeds(entries: Sequence[Configuration], hashes: Sequence[str]) -> list[Configuration]:
    """Give the k-th equal entry of a list the seed + k, so that repeats are real."""
    taken: set[tuple[str, int]] = set()
    seeded = []
    for entry, config_hash in zip(entries, hashes, strict=True):
        seed = entry.training.seed
        while (config_hash, seed) in taken:
            seed += 1
        taken.add((config_hash, seed))
        seeded.append(entry.model_copy(update={"training": entry.training.model_copy(update={"seed": seed})}))
    return seeded


def interrupted(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that were stopped from outside, RUNNING ones included: no process works on them."""
    return [trial for trial in trials if trial.state == TrialState.RUNNING or trial.user_attrs.get(INTERRUPTED)]


def counted(study: optuna.Study, keys: Collection[str]) -> list[FrozenTrial]:
    """Return the finished trials that take a place: searched ones and those of the current list, complete, pruned or failed."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state.is_finished()
        and not trial.user_attrs.get(INTERRUPTED)
        and (KEY not in trial.user_attrs or trial.user_attrs[KEY] in keys)
    ]


def waiting(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that are enqueued."""
    return study.get_trials(deepcopy=False, states=(TrialState.WAITING,))


def plan(study: optuna.Study, experiment: Experiment, entries: Mapping[str, Configuration]) -> None:
    """Enqueue what is still to do of the list and of interrupted trials; entries no longer in the list are given up.

    Args:
        study: Nothing else works on it.
        experiment: Its base and space.
        entries: The list by identity (configuration hash and seed), seeds of repeats given, as many as are to be trained.
    """
    for trial in interrupted(study.get_trials(deepcopy=False)):
        if trial.state == TrialState.RUNNING:
            study._storage.set_trial_user_attr(trial._trial_id, INTERRUPTED, True)
            study.tell(trial.number, state=TrialState.FAIL)
    for trial in waiting(study):
        if KEY in trial.user_attrs and trial.user_attrs[KEY] not in entries:
            study._storage.set_trial_user_attr(trial._trial_id, INTERRUPTED, True)
            study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    there = [*counted(study, entries), *waiting(study)]
    places = {trial.user_attrs.get(PLACE) for trial in there}
    keys = {trial.user_attrs.get(KEY) for trial in there}
    for trial in interrupted(study.get_trials(deepcopy=False)):
        if KEY not in trial.user_attrs and trial.user_attrs.get(PLACE) not in {*places, None}:
            study.enqueue_trial(trial.params, {PLACE: trial.user_attrs[PLACE]})
            places.add(trial.user_attrs[PLACE])
    before = {
        trial.user_attrs[KEY]: trial.user_attrs[PLACE] for trial in interrupted(study.get_trials(deepcopy=False)) if KEY in trial.user_attrs
    }
    place = next_place(study)
    for key, entry in entries.items():
        if key in keys:
            continue
        point = as_point(entry, experiment.base, experiment.space) if experiment.space else None
        kept = before.get(key)
        study.enqueue_trial(point or {}, {PLACE: place if kept is None else kept, KEY: key, ENTRY: entry.model_dump(mode="json")})
        place += kept is None


def next_place(study: optuna.Study) -> int:
    """Return the lowest place that no trial has had."""
    return 1 + max((trial.user_attrs[PLACE] for trial in study.get_trials(deepcopy=False) if PLACE in trial.user_attrs), default=-1)


def place_of(trial: optuna.Trial) -> int:
    """Return the trial's place; a searched trial takes the next one."""
    place: Any = trial.user_attrs.get(PLACE)
    if place is None:
        place = next_place(trial.study)
        trial.set_user_attr(PLACE, place)
    return int(place)
