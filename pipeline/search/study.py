"""Run a study: each trial a training nested under the study's one parent run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

import optuna
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from pipeline.config import Configuration
from pipeline.data.prepared import Prepared
from pipeline.errors import UserError
from pipeline.experiment import Experiment
from pipeline.identity import FIRST_RELEASE, study_name
from pipeline.jobs.check import check, replace_unreachable_weights
from pipeline.jobs.prepare import prepare_images, prepare_variant
from pipeline.jobs.summary import Summary
from pipeline.jobs.training_job import Job
from pipeline.report.console import say
from pipeline.report.settings_text import (
    SETTING_LABELS,
    differing_names,
    settings_with_effect,
)
from pipeline.search.own_study import IDENTITY, PARENT, find_own_study, keep_pruner, open_study
from pipeline.search.repeats import find_repeated
from pipeline.search.study_record import conclude_study, log_study
from pipeline.search.study_storage import STUDIES, Database
from pipeline.search.trial_runner import TrialRunner
from pipeline.search.trials import RUN_ID, with_repeat_seeds
from pipeline.tracking import find_runs, study_runs
from pipeline.tracking.abandoned_runs import end_abandoned
from pipeline.tracking.sending import wait_until_sent
from pipeline.tracking.study_parent import parent_run, refuse_if_tuned
from pipeline.tracking.workspace import Workspace


@dataclass(frozen=True)
class Tuned:
    """A finished study.

    Attributes:
        name: Name of the study.
        parent: Run id of its parent.
        compared: The comparison of its trainings.
    """

    name: str
    parent: str
    compared: Summary


def tune(
    workspace: Workspace,
    experiment: Experiment,
    step: str,
    then: Callable[[Summary], None] = lambda compared: None,
) -> Tuned:
    """Train the list and search the space, going on where an earlier run of the study stopped.

    Args:
        workspace: The open store.
        experiment: List, space and number of trials.
        step: ``tune`` or ``main``, which becomes the parent's ``pipeline.step``.
        then: Called with the comparison of the trainings at the end, while the parent still runs.

    Raises:
        UserError: A configuration is wrong (all are checked before the first one trains), or
            another process works on the same study.
        StoreAway: The study's database is busy or away, and stays so.
        PipelineError: Every training failed.
    """
    _need_startable(workspace, experiment)
    if experiment.fast:
        base = replace_unreachable_weights(experiment.base)
        entries = [replace_unreachable_weights(entry) for entry in experiment.entries]
        experiment = replace(experiment, base=base, entries=entries)
    database = Database(experiment.study.storage, workspace.home)
    prepared = _prepare_images(workspace, experiment, database.storage)
    experiment = experiment.with_white(prepared.data.white)
    jobs = _check_configurations(workspace, experiment, prepared)
    found = _find_study(workspace, experiment, prepared, database.storage)
    experiment = keep_pruner(workspace, experiment, found.name, found.parent)
    begun = experiment
    if experiment.study.only:
        experiment = _only_repeats(workspace, experiment, found, prepared, database.storage)
        jobs = _check_configurations(workspace, replace(experiment, space={}), prepared)
    in_use = (
        f"study {found.name!r} is being tuned by another process on this machine; "
        "wait for it, or give another study.name"
    )
    with (
        database.lock_study(found.name, in_use),
        parent_run(workspace, step, found.name, found.parent) as run,
    ):
        study = open_study(database.storage, experiment, found.name, found.is_new)
        study.set_user_attr(PARENT, run.id)
        study.set_user_attr(IDENTITY, found.identity)
        log_study(run, begun, prepared, found.identity)
        _end_abandoned_trials(workspace, study)
        telling = _telling_settings(begun)
        TrialRunner(workspace, experiment, study, run, prepared, jobs, telling).run()
        wait_until_sent(workspace)
        compared = conclude_study(workspace, experiment, study, run, prepared)
        then(compared)
    return Tuned(found.name, run.id, compared)


def _need_startable(workspace: Workspace, experiment: Experiment) -> None:
    """Check that there is something to tune, and that its results can be written."""
    if experiment.trials == 0:
        raise UserError(
            f"{experiment.path}: nothing to tune: configs and space are both empty; "
            "train trains base alone"
        )
    workspace.need_writable(
        workspace.checkpoints,
        workspace.outputs,
        *workspace.artifacts,
        file=workspace.home / STUDIES,
    )


def _prepare_images(workspace: Workspace, experiment: Experiment, storage: BaseStorage) -> Prepared:
    """Prepare the images of a study.

    A study of release 0.1.0 that is named goes on with its images as that release decoded them.
    """
    data = experiment.base.data
    log_images = experiment.base.tracking.log_images
    prepared = prepare_images(workspace, data, log_images)
    first_digest = prepared.first_digest()
    if not experiment.study.name and prepared.digest == first_digest:
        return prepared
    studies = {
        study.study_name: study.user_attrs.get(IDENTITY) for study in storage.get_all_studies()
    }
    experiment = experiment.with_white(prepared.data.white)
    origin = check(experiment.base, prepared, f"{experiment.path}: base")
    now = _identities(experiment, origin, prepared.digest)
    named = studies.get(experiment.study.name)
    if named is not None and named not in now:
        with suppress(UserError):
            # That release left out images with damaged metadata, which this one can read. To find
            # out which they are, all images are decoded.
            first = prepare_images(workspace, data, log_images, version=1)
            if named in _identities(experiment, origin, first.digest):
                return first
    before = _identities(experiment, origin, first_digest)
    for name, identity in studies.items():
        if identity in before - now:
            say(
                f"study {name} was begun on the same images as release {FIRST_RELEASE} "
                f"decoded them, and is another one; --study.name {name} goes on with it"
            )
    return prepared


def _identities(experiment: Experiment, origin: Mapping[str, str], data_digest: str) -> set[str]:
    """Return the names that this release and the first one give to an experiment's study."""
    return {
        _identity(experiment, origin, data_digest),
        _identity(experiment, origin, data_digest, FIRST_RELEASE),
    }


def _identity(
    experiment: Experiment, origin: Mapping[str, str], data_digest: str, release: str = ""
) -> str:
    return study_name(
        experiment.name, experiment.base, origin, experiment.space, data_digest, release
    )


def _check_configurations(
    workspace: Workspace, experiment: Experiment, prepared: Prepared
) -> list[Job]:
    """Check every entry of the list and every choice of the space.

    Returns:
        The trainings of the list. Equal entries have different seeds.
    """
    checked: dict[str, dict[str, str]] = {}

    def check_once(configuration: Configuration, where: str) -> dict[str, str]:
        key = configuration.change("training", seed=0).model_dump_json()
        if key not in checked:
            checked[key] = check(configuration, prepared, f"{experiment.path}: {where}")
        return checked[key]

    jobs = []
    for number, entry in enumerate(experiment.entries):
        origin = check_once(entry, f"configs[{number}]")
        images = prepare_variant(workspace, entry.data, prepared)
        jobs.append(Job(entry, origin, images))
    for field, values in experiment.space.items():
        if isinstance(values, list):
            for value in values:
                check_once(experiment.sampled({field: value}), f"space: {field}")
    configurations = [job.configuration for job in jobs]
    hashes = [job.config_hash for job in jobs]
    seeded = with_repeat_seeds(configurations, hashes)
    return [Job(entry, job.origin, job.prepared) for job, entry in zip(jobs, seeded, strict=True)]


class _FoundStudy(NamedTuple):
    """The study that this store works on.

    Attributes:
        name: Name of the study.
        identity: The name that follows from experiment, base, space and images.
        parent: Run id of its parent, or empty if it has none yet.
        is_new: Whether Optuna's database does not hold it yet.
    """

    name: str
    identity: str
    parent: str
    is_new: bool


def _find_study(
    workspace: Workspace, experiment: Experiment, prepared: Prepared, storage: BaseStorage
) -> _FoundStudy:
    """Find the study that this store works on, and refuse one that does not fit.

    Raises:
        UserError: The study has another base, space, data or fold.
        InUse: Another process works on it.
    """
    origin = check(experiment.base, prepared, f"{experiment.path}: base")
    identity = _identity(experiment, origin, prepared.digest)
    name, study = find_own_study(workspace, storage, experiment.study.name or identity)
    recorded = study.user_attrs if study else {}
    if recorded.get(IDENTITY, identity) != identity:
        why = "has another base, space, data or fold"
        if recorded[IDENTITY] == _identity(experiment, origin, prepared.digest, FIRST_RELEASE):
            why = (
                f"was begun by release {FIRST_RELEASE}, "
                "by which new heads on trained weights started otherwise"
            )
        raise UserError(f"study.name: study {name!r} {why}; give another name, or none")
    refuse_if_tuned(workspace, name)
    parent = recorded.get(PARENT) or study_runs.find_study_parent(workspace, name)
    return _FoundStudy(name, identity, parent, is_new=study is None)


def _only_repeats(
    workspace: Workspace,
    experiment: Experiment,
    found: _FoundStudy,
    prepared: Prepared,
    storage: BaseStorage,
) -> Experiment:
    """Return the experiment with the repeats that `study.only` asks for in place of its list."""
    if found.is_new:
        raise UserError(
            f"study.only: study {found.name} has no trainings yet; tune it without study.only first"
        )
    trials = storage.get_all_trials(storage.get_study_id_from_name(found.name), deepcopy=False)
    rows = find_runs.find_trainings(workspace, found.name)
    entries = find_repeated(experiment, trials, rows, prepared.digest)
    if not entries:
        say(f"study.only: each of them has {experiment.study.repeats} trainings or more already")
    return replace(experiment, entries=entries)


def _telling_settings(experiment: Experiment) -> list[str]:
    """Return the settings in which the list and the space of a study differ."""
    params = []
    for entry in experiment.entries:
        params.append({name: find_runs.as_param(value) for name, value in entry.flat().items()})
    differing = differing_names([settings_with_effect(some) for some in params])
    telling = dict.fromkeys([*differing, *experiment.space])
    of_one_run = ("model.name", "training.seed", "data.fold")
    return [name for name in SETTING_LABELS if name in telling and name not in of_one_run]


def _end_abandoned_trials(workspace: Workspace, study: optuna.Study) -> None:
    """End the runs of trials whose process was killed."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        end_abandoned(workspace, trial.user_attrs.get(RUN_ID, ""))
