"""Run a study: each trial a training nested under the study's one parent run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import optuna
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from pipeline.config import Configuration
from pipeline.data.prepared import Prepared
from pipeline.errors import UserError
from pipeline.experiment import Experiment
from pipeline.identity import FIRST_RELEASE, study_name
from pipeline.jobs.check import check, replace_unreachable_weights
from pipeline.jobs.prepare import prepare_images, prepare_variant, with_white
from pipeline.jobs.summary import Summary
from pipeline.jobs.training_job import Job
from pipeline.report.console import say
from pipeline.search.own_study import IDENTITY, PARENT, find_own_study, keep_pruner, open_study
from pipeline.search.study_record import conclude_study, log_study
from pipeline.search.study_storage import STUDIES, Database
from pipeline.search.trial_runner import TrialRunner
from pipeline.search.trials import RUN_ID, with_repeat_seeds
from pipeline.tracking import study_runs
from pipeline.tracking.abandoned_runs import end_abandoned
from pipeline.tracking.study_parent import parent_run, refuse_if_tuned
from pipeline.tracking.workspace import Workspace


@dataclass(frozen=True)
class Tuned:
    """A finished study."""

    name: str
    parent: str
    compared: Summary


def tune(
    workspace: Workspace,
    experiment: Experiment,
    step: str,
    then: Callable[[str], None] = lambda name: None,
) -> Tuned:
    """Train the list and search the space, going on where an earlier run of the same study stopped.

    Args:
        workspace: The open store.
        experiment: List, space and number of trials.
        step: ``tune`` or ``main``: the parent's ``pipeline.step``.
        then: Called with the study's name at the end, while the parent still runs.

    Raises:
        UserError: A configuration is wrong (all are checked before the first one trains), or another
            process works on the same study.
        StoreAway: The study's database is busy or away, and stays so.
        PipelineError: Every training failed.
    """
    if experiment.trials == 0:
        raise UserError(
            f"{experiment.path}: nothing to tune: configs and space are both empty; train trains base alone"
        )
    workspace.need_writable(
        workspace.checkpoints,
        workspace.outputs,
        *workspace.artifacts,
        file=workspace.home / STUDIES,
    )
    if experiment.fast:
        base, entries = (
            replace_unreachable_weights(experiment.base),
            [replace_unreachable_weights(entry) for entry in experiment.entries],
        )
        experiment = replace(experiment, base=base, entries=entries)
    database = Database(experiment.study.storage, workspace.home)
    prepared = _images(workspace, experiment, database.storage)
    experiment = experiment.with_white(prepared.data.white)
    jobs = _checked(workspace, experiment, prepared)
    origin = check(experiment.base, prepared, f"{experiment.path}: base")
    identity = study_name(
        experiment.name, experiment.base, origin, experiment.space, prepared.digest
    )
    name, found = find_own_study(workspace, database.storage, experiment.study.name or identity)
    recorded = found.user_attrs if found else {}
    if recorded.get(IDENTITY, identity) != identity:
        before = study_name(
            experiment.name,
            experiment.base,
            origin,
            experiment.space,
            prepared.digest,
            FIRST_RELEASE,
        )
        why = "has another base, space, data or fold"
        if recorded[IDENTITY] == before:
            why = f"was begun by release {FIRST_RELEASE}, by which new heads on trained weights started otherwise"
        raise UserError(f"study.name: study {name!r} {why}; give another name, or none")
    refuse_if_tuned(workspace, name)
    in_use = f"study {name!r} is being tuned by another process on this machine; wait for it, or give another study.name"
    parent = recorded.get(PARENT) or study_runs.find_study_parent(workspace, name)
    experiment = keep_pruner(workspace, experiment, name, parent)
    with database.lock_study(name, in_use), parent_run(workspace, step, name, parent) as run:
        study = open_study(database.storage, experiment, name, is_new=found is None)
        study.set_user_attr(PARENT, run.id)
        study.set_user_attr(IDENTITY, identity)
        log_study(run, experiment, prepared, identity)
        _abandoned(workspace, study)
        TrialRunner(workspace, experiment, study, run, prepared, jobs).run()
        compared = conclude_study(workspace, study, name, run)
        then(name)
    return Tuned(name, run.id, compared)


def _images(workspace: Workspace, experiment: Experiment, storage: BaseStorage) -> Prepared:
    """Prepare the images of a study; one of release 0.1.0 that is named goes on with them as it decoded them."""
    data, log_images = experiment.base.data, experiment.base.tracking.log_images
    prepared = prepare_images(workspace, data, log_images)
    if not experiment.study.name and prepared.digest == prepared.first_digest():
        return prepared
    studies = {
        study.study_name: study.user_attrs.get(IDENTITY) for study in storage.get_all_studies()
    }
    base = with_white(experiment.base, prepared)
    origin = check(base, prepared, f"{experiment.path}: base")

    def identities(digest: str) -> set[str]:
        return {
            study_name(experiment.name, base, origin, experiment.space, digest, release)
            for release in ("", FIRST_RELEASE)
        }

    now, before = identities(prepared.digest), identities(prepared.first_digest())
    named = studies.get(experiment.study.name)
    if named is not None and named not in now:
        with suppress(UserError):
            # That release left images out which this one can read: their metadata is damaged. All are decoded to find out which.
            first = prepare_images(workspace, data, log_images, version=1)
            if named in identities(first.digest):
                return first
    for name, identity in studies.items():
        if identity in before - now:
            say(
                f"study {name} was begun on the same images as release {FIRST_RELEASE} decoded them, and is another one; "
                f"--study.name {name} goes on with it"
            )
    return prepared


def _checked(workspace: Workspace, experiment: Experiment, prepared: Prepared) -> list[Job]:
    """Check every entry of the list and every choice of the space; seeds of repeats are given."""
    checked: dict[str, dict[str, str]] = {}

    def origin_of(configuration: Configuration, where: str) -> dict[str, str]:
        key = configuration.change("training", seed=0).model_dump_json()
        if key not in checked:
            checked[key] = check(configuration, prepared, f"{experiment.path}: {where}")
        return checked[key]

    jobs = []
    for number, entry in enumerate(experiment.entries):
        origin = origin_of(entry, f"configs[{number}]")
        images = prepare_variant(workspace, entry.data, prepared)
        jobs.append(Job(entry, origin, images))
    for field, values in experiment.space.items():
        if isinstance(values, list):
            for value in values:
                origin_of(experiment.sampled({field: value}), f"space: {field}")
    seeded = with_repeat_seeds(
        [job.configuration for job in jobs], [job.config_hash for job in jobs]
    )
    return [Job(entry, job.origin, job.prepared) for job, entry in zip(jobs, seeded, strict=True)]


def _abandoned(workspace: Workspace, study: optuna.Study) -> None:
    """End the runs of trials whose process was killed."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        end_abandoned(workspace, trial.user_attrs.get(RUN_ID, ""))
