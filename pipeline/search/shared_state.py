"""What those who work on a study tell one another, as user attributes of Optuna's study."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any, NamedTuple

import optuna
from optuna.trial import TrialState

import pipeline
from pipeline import ranking
from pipeline.config import Study
from pipeline.errors import PipelineError, UserError
from pipeline.experiment import Experiment
from pipeline.search.trials import num_places
from pipeline.tracking.heartbeat import Beat

DATA_DIGEST = "data_digest"
"""User attribute of an Optuna study: digest of its images."""
LONGEST_AWAY = 3600.0
"""Seconds for which workers wait for a tracking server that is away."""
LONGEST_START = 600.0
"""Seconds that a study's first process may take from its parent run to its first trial."""
_AGENDA = "agenda"
_STOP = "stop"


class Agenda(NamedTuple):
    """What a study's first process has decided for all its workers.

    Attributes:
        total: Number of trainings, for people.
        keys: Keys of the trainings that are wanted alone (`study.only`); empty: all are wanted.
        heartbeat: Seconds between two signs of life of each worker.
        began: When the first process enqueued the trials, in seconds since 1970.
        release: Release of the pipeline that works on the study.
        leader: The first process, as `Beat.process` names it.
    """

    total: int
    keys: list[str]
    heartbeat: float
    began: float
    release: str
    leader: str = ""


def write_agenda(study: optuna.Study, experiment: Experiment, keys: Collection[str]) -> None:
    """Tell the workers of a study what is to do, after all trials are enqueued.

    Args:
        study: The study.
        experiment: Its settings.
        keys: Keys of the trainings that `study.only` asks for.
    """
    is_part = bool(experiment.study.only)
    agenda = Agenda(
        total=max(experiment.trials, num_places(study)),
        keys=sorted(keys) if is_part else [],
        heartbeat=experiment.study.heartbeat,
        began=time.time(),
        release=pipeline.__version__,
        leader=Beat.now().process,
    )
    study.set_user_attr(_STOP, "")
    study.set_user_attr(_AGENDA, agenda._asdict())


def forget_agenda(study: optuna.Study) -> None:
    """Have those who join a study wait until its first process has enqueued the trials anew."""
    study.set_user_attr(_AGENDA, None)


def read_agenda(study: optuna.Study) -> Agenda | None:
    """Return what the study's first process has decided; None before it has enqueued the trials.

    Raises:
        UserError: That process is of another release, which may train otherwise.
    """
    recorded = study.user_attrs.get(_AGENDA)
    if not recorded:
        return None
    release = recorded.get("release")
    if release != pipeline.__version__:
        raise UserError(
            f"study {study.study_name} is worked on by release {release}, "
            f"and this is {pipeline.__version__}; take the same one"
        )
    return Agenda(**recorded)


def wait_for_agenda(study: optuna.Study) -> Agenda:
    """Return what the study's first process has decided, as soon as it has.

    Another process may be about to take its place.

    Raises:
        UserError: That process is of another release.
        PipelineError: It decides nothing.
    """
    started = time.monotonic()
    while time.monotonic() - started < LONGEST_START:
        agenda = read_agenda(study)
        if agenda is not None:
            return agenda
        time.sleep(1)
    raise no_agenda(study.study_name)


def no_agenda(study: str) -> PipelineError:
    """Return the error of a study whose first process does not begin."""
    return PipelineError(
        f"study {study}: the process that leads it has begun no trial within "
        f"{LONGEST_START / 60:.0f} minutes"
    )


def ask_to_stop(study: optuna.Study) -> None:
    """Have all workers of a study end when their current trials have."""
    study.set_user_attr(_STOP, "tune --stop asks for it")


def why_stop(study: optuna.Study, experiment: Experiment, began: float) -> str:
    """Return why no further trial of a study is to begin; empty if nothing speaks against it.

    Args:
        study: The study.
        experiment: Its settings.
        began: When the study's trials were enqueued, in seconds since 1970.
    """
    settings = experiment.study
    attributes: dict[str, Any] = study.user_attrs
    if attributes.get(_STOP):
        return str(attributes[_STOP])
    if settings.hours and time.time() - began >= 3600 * settings.hours:
        return f"study.hours {settings.hours:g} have passed"
    metric = experiment.base.training.best_metric
    if settings.stop_at_target:
        values = _values_in_order(study, settings)
        if values and max(values) >= ranking.score(settings.target, metric):
            return f"study.target {settings.target:g} is reached"
    if settings.patience and _trials_without_gain(study, settings) >= settings.patience:
        return f"none of the last {settings.patience} trials was better than the best before"
    return ""


def _values_in_order(study: optuna.Study, settings: Study) -> list[float]:
    """Return the values of the complete trials, and minus infinity for pruned ones, as they ended.

    A pruned trial was not better than the best. But in a race most are pruned before the best of
    them is trained to its end, so that they do not count.
    """
    states = [TrialState.COMPLETE]
    if settings.pruner != "one_epoch":
        states.append(TrialState.PRUNED)
    ended = study.get_trials(deepcopy=False, states=states)
    ended.sort(key=lambda trial: (trial.datetime_complete is None, trial.datetime_complete))
    values = []
    for trial in ended:
        is_complete = trial.state == TrialState.COMPLETE
        values.append(float(trial.values[0]) if is_complete else float("-inf"))
    return values


def _trials_without_gain(study: optuna.Study, settings: Study) -> int:
    """Return how many trials have ended since the best one."""
    values = _values_in_order(study, settings)
    if not values:
        return 0
    return len(values) - 1 - values.index(max(values))
