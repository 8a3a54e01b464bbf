"""The trials of a study: which are done, which are still to do, across interruptions.

A study makes `trials` trainings, numbered from 0: the place. The list's entries have the first places
and are enqueued; what is searched follows. A trial that was interrupted does not count: its place is
enqueued again with the same values.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def counted(study: optuna.Study) -> list[FrozenTrial]:
    """Return the finished trials that take a place: complete, pruned or failed by themselves."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished() and not trial.user_attrs.get(INTERRUPTED)]


def plan(study: optuna.Study, experiment: Experiment, keys: Sequence[str], entries: Sequence[Configuration]) -> int:
    """Enqueue what is still to do of the list and of interrupted trials; return how many of the list were done before.

    Args:
        study: Nothing else works on it.
        experiment: Its base and space.
        keys: Identity of each entry: configuration hash and seed.
        entries: Of the list, seeds of repeats given.
    """
    for trial in interrupted(study.get_trials(deepcopy=False)):
        if trial.state == TrialState.RUNNING:
            study._storage.set_trial_user_attr(trial._trial_id, INTERRUPTED, True)
            study.tell(trial.number, state=TrialState.FAIL)
    everything = study.get_trials(deepcopy=False)
    waiting = [trial for trial in everything if trial.state == TrialState.WAITING]
    taken = {trial.user_attrs.get(PLACE) for trial in (*counted(study), *waiting)}
    done = {trial.user_attrs[KEY] for trial in counted(study) if KEY in trial.user_attrs}
    queued = {trial.user_attrs[KEY] for trial in waiting if KEY in trial.user_attrs}
    for trial in interrupted(everything):
        attributes = {name: trial.user_attrs[name] for name in (PLACE, ENTRY, KEY) if name in trial.user_attrs}
        if PLACE in attributes and attributes[PLACE] not in taken:
            study.enqueue_trial(trial.params, attributes)
            taken.add(attributes[PLACE])
            queued.add(attributes.get(KEY, ""))
    place = next_place(study)
    for key, entry in zip(keys, entries, strict=True):
        if key in done or key in queued or place >= experiment.trials:
            continue
        point = as_point(entry, experiment.base, experiment.space) if experiment.space else None
        study.enqueue_trial(point or {}, {PLACE: place, KEY: key, ENTRY: entry.model_dump(mode="json")})
        place += 1
    return len(done & set(keys))


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
