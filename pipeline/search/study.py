"""Run a study: its images and configurations are checked, then it is led, joined or worked on."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path

from optuna.storages import BaseStorage
from optuna.trial import TrialState

from pipeline.config import Configuration
from pipeline.data.prepared import Prepared
from pipeline.errors import UserError
from pipeline.experiment import Experiment
from pipeline.identity import FIRST_RELEASE, study_name
from pipeline.jobs.check import check, replace_unreachable_weights
from pipeline.jobs.disk_space import need_space_for_study
from pipeline.jobs.prepare import prepare_images, prepare_variant
from pipeline.jobs.summary import Summary
from pipeline.jobs.training_job import Job
from pipeline.jobs.which_study import find_study
from pipeline.report.console import say
from pipeline.search.leading import (
    FoundStudy,
    LedElsewhere,
    OpenStudy,
    Tuned,
    be_worker,
    join,
    lead,
)
from pipeline.search.own_study import (
    IDENTITY,
    PARENT,
    find_own_study,
    keep_pruner,
    load_study,
)
from pipeline.search.ray_workers import need_cluster
from pipeline.search.repeats import find_repeated
from pipeline.search.shared_state import DATA_DIGEST, ask_to_stop
from pipeline.search.study_storage import STUDIES, Database
from pipeline.search.trials import with_repeat_seeds
from pipeline.search.worker_place import this_worker
from pipeline.search.worker_processes import need_sharable, num_cores
from pipeline.tracking import find_runs, study_runs
from pipeline.tracking.study_parent import is_concluded, wait_for_leader
from pipeline.tracking.workspace import Workspace


def tune(
    workspace: Workspace,
    experiment: Experiment,
    step: str,
    then: Callable[[Summary], None] = lambda compared: None,
) -> Tuned | None:
    """Train the list and search the space, going on where an earlier run of the study stopped.

    If other processes work on the study, and its database is on a server, this one joins them.

    Args:
        workspace: The open store.
        experiment: List, space and number of trials.
        step: ``tune`` or ``main``, which becomes the parent's ``pipeline.step``.
        then: Called with the comparison of the trainings at the end, while the parent still runs.

    Returns:
        The finished study. None if another process concludes it: then this one has trained what was
        left for it.

    Raises:
        UserError: A configuration is wrong (all are checked before the first one trains), or
            another process works on the same study in a local database.
        StoreAway: The study's database is busy or away, and stays so.
        PipelineError: Every training failed.
    """
    place = this_worker()
    if place is not None:
        # The process that has started this one has told all about the images.
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            opened = _open(workspace, place.named(experiment), is_worker=True)
        be_worker(opened).run()
        return None
    while True:
        opened = _open(workspace, experiment)
        try:
            with lead(opened, step) as leader:
                leader.trainer().run()
                return leader.conclude(then)
        except LedElsewhere as other:
            if not opened.database.is_on_server:
                raise
            with join(opened, step, other) as trainer:
                trainer.run()
        name = opened.found.name
        if wait_for_leader(workspace, name) or is_concluded(workspace, name):
            return None
        # Whoever led the study has died: this process concludes it.


def stop(workspace: Workspace, experiment: Experiment) -> str:
    """Have all workers of an experiment's study end when their current trials have.

    Returns:
        Text for people that says so.

    Raises:
        UserError: There is no such study, or nothing works on it.
    """
    name = find_study(workspace, experiment).name
    storage = Database(experiment.study.storage, workspace.home).storage
    known = [study.study_name for study in storage.get_all_studies()]
    if not name or name not in known:
        raise UserError(
            f"stop: there is no study of {experiment.path} in the database; "
            f"there are: {', '.join(known) or 'none'}"
        )
    study = load_study(storage, experiment, name)
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    if not running:
        raise UserError(f"stop: no trial of study {name} is running")
    ask_to_stop(study)
    trials = "trial" if len(running) == 1 else "trials"
    return f"study {name} begins no further trial; {len(running)} running {trials} will end first"


def _open(workspace: Workspace, experiment: Experiment, is_worker: bool = False) -> OpenStudy:
    """Prepare and check all that working on an experiment's study needs.

    Args:
        workspace: The open store.
        experiment: List, space and number of trials.
        is_worker: Whether the first process of the study has checked its trainings already.
    """
    _need_startable(workspace, experiment)
    if experiment.fast:
        base = replace_unreachable_weights(experiment.base)
        entries = [replace_unreachable_weights(entry) for entry in experiment.entries]
        experiment = replace(experiment, base=base, entries=entries)
    database = Database(experiment.study.storage, workspace.home)
    need_sharable(database, experiment)
    if experiment.study.launcher == "ray":
        need_cluster(experiment, workspace, database)
    prepared = _prepare_images(workspace, experiment, database.storage)
    experiment = experiment.with_white(prepared.data.white)
    jobs = [] if is_worker else _check_configurations(workspace, experiment, prepared)
    found = _find_study(workspace, experiment, prepared, database.storage)
    experiment = keep_pruner(workspace, experiment, found.name, found.parent)
    begun = experiment
    if experiment.study.only and not is_worker:
        experiment = _only_repeats(workspace, experiment, found, prepared, database.storage)
        jobs = _check_configurations(workspace, replace(experiment, space={}), prepared)
    if not is_worker:
        count = experiment.study.workers
        workers = num_cores() if count == "auto" else count
        need_space_for_study(workspace, experiment, jobs, found.name, prepared, workers)
    return OpenStudy(workspace, experiment, begun, database, prepared, jobs, found)


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


def _find_study(
    workspace: Workspace, experiment: Experiment, prepared: Prepared, storage: BaseStorage
) -> FoundStudy:
    """Find the study that this store works on, and refuse one that does not fit.

    Raises:
        UserError: The study has another base, space, data or fold.
    """
    origin = check(experiment.base, prepared, f"{experiment.path}: base")
    identity = _identity(experiment, origin, prepared.digest)
    name, study = find_own_study(workspace, storage, experiment.study.name or identity)
    recorded = study.user_attrs if study else {}
    if recorded.get(IDENTITY, identity) != identity:
        digest = recorded.get(DATA_DIGEST, prepared.digest)
        if digest != prepared.digest:
            raise UserError(
                f"study.name: study {name!r} is of images with digest {digest}, and these have "
                f"{prepared.digest}: copy the same images here, or give another name"
            )
        why = "has another base, space, data or fold"
        if recorded[IDENTITY] == _identity(experiment, origin, prepared.digest, FIRST_RELEASE):
            why = (
                f"was begun by release {FIRST_RELEASE}, "
                "by which new heads on trained weights started otherwise"
            )
        raise UserError(f"study.name: study {name!r} {why}; give another name, or none")
    parent = recorded.get(PARENT) or study_runs.find_study_parent(workspace, name)
    return FoundStudy(name, identity, parent, is_new=study is None)


def _only_repeats(
    workspace: Workspace,
    experiment: Experiment,
    found: FoundStudy,
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
