"""Enqueue what a study has still to do, before its workers start."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState

from pipeline.experiment import Experiment
from pipeline.jobs.training_job import Job
from pipeline.report.console import say
from pipeline.search.claims import is_held
from pipeline.search.shared_state import write_agenda
from pipeline.search.trials import (
    KEY,
    Repeated,
    enqueue_missing,
    enqueue_repeats,
    finished_trials,
)


def enqueue_trials(
    study: optuna.Study, experiment: Experiment, jobs: Sequence[Job], run_ids: Collection[str]
) -> None:
    """Enqueue all trials that are still to do, tell the workers, and say how far the study is.

    Args:
        study: The study; no other process enqueues anything at the same time.
        experiment: List, space and number of trials.
        jobs: The checked trainings of the list. Equal entries have different seeds.
        run_ids: Ids of the study's runs. A trial whose run is not among them is trained again.
    """
    # Repeats that are asked for come beside the trials that the study is to have.
    are_repeats = bool(experiment.study.only)
    taken = jobs if are_repeats else jobs[: experiment.trials]
    entries = {f"{job.config_hash}:{job.seed}": job.configuration for job in taken}
    if are_repeats:
        enqueue_repeats(study, experiment, entries, is_held)
        number = "1 training" if len(entries) == 1 else f"{len(entries)} trainings"
        say(f"study {study.study_name} goes on: {number} with further seeds")
    else:
        _say_what_is_left_out(experiment, len(jobs))
        repeated = enqueue_missing(study, experiment, entries, run_ids, is_held)
        done = finished_trials(study, entries)
        if done or any(repeated):
            described = _describe(done, experiment.trials, repeated)
            say(f"study {study.study_name} goes on: {described}")
    write_agenda(study, experiment, entries)


def _say_what_is_left_out(experiment: Experiment, num_entries: int) -> None:
    total = experiment.trials
    asked = experiment.study.trials
    if not experiment.space and asked > total:
        say(
            f"study.trials {asked}: there is no space to search, "
            f"so that the {total} of the list are all"
        )
    if num_entries > total:
        say(f"the list has {num_entries} entries; study.trials {total} trains the first {total}")


def _describe(done: Sequence[FrozenTrial], total: int, repeated: Repeated) -> str:
    """Say how many trainings are there, and how many are done once more."""
    failed = sum(trial.state == TrialState.FAIL for trial in done)
    text = f"{sum(KEY in trial.user_attrs for trial in done)} of the list"
    if failed:
        text += f", {failed} failed for good"
    text = f"{len(done)} of {total} trainings are there ({text})"
    if repeated.failed:
        text += f"; {repeated.failed} that failed {_is(repeated.failed)} tried again"
    if repeated.deleted:
        runs = "run was" if repeated.deleted == 1 else "runs were"
        text += f"; {repeated.deleted} whose {runs} deleted {_is(repeated.deleted)} trained again"
    return text


def _is(number: int) -> str:
    return "is" if number == 1 else "are"
