"""The trials of a study: which are done, which are still to do, across interruptions.

A study makes `trials` trainings, numbered from 0: the number is the place of a training. All places
are enqueued when the study starts, so that any number of workers makes that number of trainings:
those of the list's entries first, then those of the search, whose values are drawn when a worker
claims them. If a place has several trials, the latest one counts. An interrupted trial waits, as it
is, to go on. A trial that failed for a reason that may have passed is enqueued again with the same
values, once each time the study starts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import count, islice
from typing import Any, NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState

from pipeline.config import Configuration
from pipeline.experiment import Experiment
from pipeline.search.space import as_point
from pipeline.tracking import names

PLACE = "place"
ENTRY = "entry"
KEY = "key"
INTERRUPTED = "interrupted"
"""User attribute of failed trials whose failure says nothing about their configuration.

Release 0.1.0 ended interrupted trials with it. Now trials have it whose entry has left the list.
"""
RUN_ID = "run_id"
UID = "uid"
"""User attribute: uid of the trial's run, which may never have been made."""
FOLD_UIDS = "fold_uids"
"""User attribute: uids of the runs that a trial of several folds has ended."""
UNUSED = "unused_uid"
"""User attribute: the uid that a trial had noted when it took what was trained before instead."""
REASON = "reason"
MAY_PASS = "may_pass"
"""User attribute of failed trials: whether their training is tried again."""


def uids_of(trial: FrozenTrial) -> set[str]:
    """Return the uids of the runs that a finished trial has trained."""
    noted = {trial.user_attrs.get(UID, ""), *trial.user_attrs.get(FOLD_UIDS, [])}
    return {uid for uid in noted if names.is_uid(uid)} - {trial.user_attrs.get(UNUSED)}


def with_repeat_seeds(
    entries: Sequence[Configuration], hashes: Sequence[str]
) -> list[Configuration]:
    """Give the k-th equal entry of a list the seed + k, so that repeats are real.

    Args:
        entries: The list.
        hashes: Configuration hash of each entry.
    """
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
    """Whether a trial failed for a reason that may have passed.

    Release 0.1.0 has noted the reason only.
    """
    if trial.state != TrialState.FAIL or INTERRUPTED in trial.user_attrs:
        return False
    is_finite = "is not finite" not in trial.user_attrs.get(REASON, "")
    return bool(trial.user_attrs.get(MAY_PASS, is_finite))


def latest_trials(study: optuna.Study, keys: Collection[str]) -> list[FrozenTrial]:
    """Return the latest trial of each place.

    Args:
        study: The study.
        keys: Keys of the current list. Trials of entries that are not in it do not count; searched
            trials do.
    """
    latest: dict[int, FrozenTrial] = {}
    for trial in study.get_trials(deepcopy=False):
        if PLACE not in trial.user_attrs:
            continue
        if KEY not in trial.user_attrs or trial.user_attrs[KEY] in keys:
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
    """Return the trials that are done next."""
    return study.get_trials(deepcopy=False, states=(TrialState.WAITING,))


def put_back(study: optuna.Study, trial_id: int) -> None:
    """Let a running trial wait: it is the next to be asked for, with its values and its reports."""
    study._storage.set_trial_state_values(trial_id, TrialState.WAITING)


class Repeated(NamedTuple):
    """How many trainings are done once more.

    Attributes:
        failed: Number of trainings that failed for a reason that may have passed.
        deleted: Number of trainings whose runs were deleted.
    """

    failed: int
    deleted: int


def _nobody_holds(trial: FrozenTrial) -> bool:
    return False


def enqueue_repeats(
    study: optuna.Study,
    experiment: Experiment,
    entries: Mapping[str, Configuration],
    is_held: Callable[[FrozenTrial], bool] = _nobody_holds,
) -> None:
    """Enqueue trainings of `study.only`, and nothing else: what else is to do stays to do.

    Args:
        study: The study.
        experiment: Base and space of the study.
        entries: The trainings, by identity (configuration hash and seed).
        is_held: Whether a running trial has a worker, which goes on with it.
    """
    _settle_unfinished(study, entries, is_held)
    known: dict[Any, int] = {}
    missing = dict(entries)
    for trial in latest_trials(study, entries):
        key = str(trial.user_attrs.get(KEY, ""))
        known[key] = trial.user_attrs[PLACE]
        if not trial.state.is_finished():
            missing.pop(key, None)
    _enqueue_entries(study, experiment, missing, known)


def enqueue_missing(
    study: optuna.Study,
    experiment: Experiment,
    entries: Mapping[str, Configuration],
    there_are: Collection[str],
    is_held: Callable[[FrozenTrial], bool] = _nobody_holds,
) -> Repeated:
    """Enqueue what is still to do: of the list, of interrupted and failed trials, of the search.

    Trials of entries that are no longer in the list are given up. So are searched ones that have
    not begun, if the study is to have fewer.

    Args:
        study: The study; no other process enqueues anything at the same time.
        experiment: Base, space and number of trials of the study.
        entries: The entries of the list that are trained, by identity (configuration hash and
            seed). Repeats have their own seeds.
        there_are: Ids of the study's runs. A trial whose run is not among them is trained again:
            the run was deleted.
        is_held: Whether a running trial has a worker, which goes on with it.

    Returns:
        The numbers of trainings that are done once more.
    """
    _settle_unfinished(study, entries, is_held)
    latest = latest_trials(study, entries)
    wants_failed = experiment.study.retry_failed
    failed = [trial for trial in latest if may_succeed(trial) or (wants_failed and _failed(trial))]
    deleted = [trial for trial in latest if trial not in failed and _is_gone(trial, there_are)]
    again = [*failed, *deleted]
    places = {}
    done = set()
    for trial in latest:
        key = trial.user_attrs.get(KEY)
        place = trial.user_attrs[PLACE]
        places[key] = place
        if trial not in again and INTERRUPTED not in trial.user_attrs:
            done.add(key)
        elif key is None:
            study.enqueue_trial(trial.params, {PLACE: place})
    missing = {key: entry for key, entry in entries.items() if key not in done}
    _enqueue_entries(study, experiment, missing, places)
    if experiment.space:
        _enqueue_searched(study, experiment.trials, entries)
    return Repeated(len(failed), len(deleted))


def _settle_unfinished(
    study: optuna.Study, keys: Collection[str], is_held: Callable[[FrozenTrial], bool]
) -> None:
    """Let running trials wait that nobody holds, and give up those that have left the list.

    A running trial that has no place yet is given up too.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
        is_running = trial.state == TrialState.RUNNING
        if is_running and is_held(trial):
            continue
        has_left = KEY in trial.user_attrs and trial.user_attrs[KEY] not in keys
        if has_left or (is_running and PLACE not in trial.user_attrs):
            _give_up(study, trial)
        elif is_running:
            put_back(study, trial._trial_id)


def _give_up(study: optuna.Study, trial: FrozenTrial) -> None:
    study._storage.set_trial_user_attr(trial._trial_id, INTERRUPTED, True)
    study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)


def _failed(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.FAIL and INTERRUPTED not in trial.user_attrs


def _is_gone(trial: FrozenTrial, there_are: Collection[str]) -> bool:
    """Whether a trial is finished, and its run was deleted."""
    if not trial.state.is_finished() or RUN_ID not in trial.user_attrs:
        return False
    return trial.user_attrs[RUN_ID] not in there_are


def _enqueue_entries(
    study: optuna.Study,
    experiment: Experiment,
    entries: Mapping[str, Configuration],
    places: Mapping[Any, int],
) -> None:
    """Enqueue entries of the list, each at the place that it has had, or at the next one."""
    free = _free_places(study)
    for key, entry in entries.items():
        place = places.get(key)
        if place is None:
            place = next(free)
        point = None
        if experiment.space:
            point = as_point(entry, experiment)
        noted = {PLACE: place, KEY: key, ENTRY: entry.model_dump(mode="json")}
        study.enqueue_trial(point or {}, noted)


def _enqueue_searched(study: optuna.Study, total: int, keys: Collection[str]) -> None:
    """Enqueue places of the search, or give them up, until the study has `total` trials.

    What has begun is not given up.
    """
    there = [one for one in latest_trials(study, keys) if INTERRUPTED not in one.user_attrs]
    missing = total - len(there)
    for place in islice(_free_places(study), max(0, missing)):
        study.enqueue_trial({}, {PLACE: place})
    idle = [one for one in there if one.state == TrialState.WAITING and _has_nothing(one)]
    idle.sort(key=lambda trial: int(trial.user_attrs[PLACE]))
    for trial in idle[len(idle) - min(len(idle), max(0, -missing)) :]:
        _give_up(study, trial)


def _has_nothing(trial: FrozenTrial) -> bool:
    """Whether a trial is a searched one that has not begun: it has neither values nor a run."""
    begun = trial.params or trial.system_attrs.get("fixed_params")
    return not begun and not {KEY, RUN_ID} & trial.user_attrs.keys()


def _free_places(study: optuna.Study) -> Iterator[int]:
    """Yield the places, the lowest first, that no trial has, or only one that never began."""
    taken = set()
    for trial in study.get_trials(deepcopy=False):
        was_dropped = INTERRUPTED in trial.user_attrs and _has_nothing(trial)
        if PLACE in trial.user_attrs and not was_dropped:
            taken.add(trial.user_attrs[PLACE])
    yield from (place for place in count() if place not in taken)


def num_places(study: optuna.Study) -> int:
    """Return how many places a study needs for the trials that are still to do."""
    places = [0]
    for trial in study.get_trials(deepcopy=False):
        if not trial.state.is_finished() and PLACE in trial.user_attrs:
            places.append(1 + trial.user_attrs[PLACE])
    return max(places)


def num_drawn(study: optuna.Study) -> int:
    """Return how many trials of a study have begun, those among them that wait to go on too."""
    trials = study.get_trials(deepcopy=False)
    return sum(trial.state != TrialState.WAITING or bool(trial.params) for trial in trials)


def is_point(trial: optuna.Trial) -> bool:
    """Whether a trial was enqueued with values in the space."""
    recorded = trial.study.get_trials(deepcopy=False)[trial.number]
    return bool(recorded.system_attrs.get("fixed_params"))
