"""Go on with a training that was interrupted, in its own run."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pipeline.config import FILE, Configuration
from pipeline.errors import InUse, UserError, unknown_name
from pipeline.files import child_path, lock
from pipeline.identity import FIRST_RELEASE, config_hash
from pipeline.jobs.check import check, need_known_images
from pipeline.jobs.prepare import prepare_as_recorded
from pipeline.jobs.recorded_run import load_configuration, load_decoding_version
from pipeline.jobs.training_job import Job
from pipeline.models.own_models import find_own_file
from pipeline.report.console import say
from pipeline.tracking import find_runs, names
from pipeline.tracking.abandoned_runs import end_abandoned, has_never_begun, is_alive
from pipeline.tracking.heartbeat import Beat
from pipeline.tracking.tracked_run import uid_of
from pipeline.tracking.workspace import Workspace, database_file
from pipeline.training.checkpoint import Checkpoints
from pipeline.trust import is_users_own, need_trust


@contextmanager
def lock_run(workspace: Workspace, run_id: str) -> Iterator[None]:
    """Hold a run that is to be taken up: from the look at its state until its training has ended.

    Raises:
        InUse: Another process has taken it up, or still trains it.
        UserError: Another run has the same uid, and with it the same checkpoints.
    """
    uid = uid_of(run_id, find_runs.get_run(workspace, run_id).data.tags)
    if others := [one for one in find_runs.find_by_uid(workspace, uid) if one != run_id]:
        raise UserError(
            f"run_id: run {run_id} has the {names.UID} of run {others[0]}, and would take its checkpoints: one of them lies"
        )
    workspace.checkpoints.mkdir(parents=True, exist_ok=True)
    refusal = f"run_id: run {run_id} is being trained by another process on this machine; stop that one, or wait"
    with lock(child_path(workspace.checkpoints, uid), refusal):
        tags = find_runs.get_run(workspace, run_id).data.tags
        if is_alive(tags):
            beat = Beat.of(tags)
            assert beat is not None
            raise InUse(
                f"run_id: run {run_id} is being trained by process {beat.process_id} on {beat.host}; stop that one, or wait"
            )
        yield


def load_interrupted_job(workspace: Workspace, run_id: str) -> Job:
    """Return what a run that is held exclusively was training, as it recorded it.

    Raises:
        UserError: There is no such run, it is no training, is complete or pruned; images, network or weights have changed.
    """
    run = find_runs.get_run(workspace, run_id)
    tags, state = run.data.tags, find_runs.to_row(run)["state"]
    if tags.get(names.STEP) != "train" or names.JOINS in tags:
        raise UserError(
            f"run_id: run {run_id} ({run.info.run_name}) is no training of this pipeline"
        )
    refuse_ended(run_id, str(run.info.run_name), state)
    end_abandoned(workspace, run_id)
    with tempfile.TemporaryDirectory() as folder:
        configuration = load_configuration(workspace, run_id, Path(folder))
        version = load_decoding_version(workspace, run_id, Path(folder))
    if configuration.model.is_own:
        _need_trust(run_id, configuration.model.name)
    before = tags.get(names.DATA_DIGEST, "")
    if not before:
        raise UserError(
            f"run_id: run {run_id} does not say which images it was trained on ({names.DATA_DIGEST}); train anew"
        )
    need_known_images(workspace, configuration.data, run_id)
    prepared = prepare_as_recorded(workspace, configuration.data, before, version)
    if prepared.digest != before:
        raise UserError(
            f"run_id: run {run_id} was trained on data {before[:8]}, but {prepared.source} is {prepared.digest[:8]} now; "
            "train anew, or put the images back"
        )
    job = Job(
        configuration,
        check(configuration, prepared, "", is_recorded=True),
        prepared,
    )
    before = tags.get(names.CONFIG_HASH, job.config_hash)
    if job.config_hash != before and before == config_hash(
        configuration, job.origin, FIRST_RELEASE
    ):
        _need_checkpoint(workspace, run_id, tags, configuration)
    elif job.config_hash != before:
        model = configuration.model
        own = [name for name in (model.name, model.weights) if name.startswith(FILE)]
        whose = "what a release of this pipeline makes of its configuration"
        changed = f"{' or '.join(own)}, or a file that belongs to it," if own else whose
        raise UserError(
            f"run_id: run {run_id} was trained by configuration {before}, which is {job.config_hash} now: {changed} has changed; "
            "train anew, or put it back"
        )
    return job


def _need_trust(run_id: str, name: str) -> None:
    """Check that one's own network, which a run has recorded by a path of this machine, may be executed.

    Raises:
        UserError: It is not trusted (see `pipeline.trust`), or a file is gone.
    """
    file, _ = find_own_file(name)
    if not is_users_own(file):
        # What it imports, only executing it would tell; so all that it could.
        there = {
            one.relative_to(file.parent).as_posix(): one.read_bytes()
            for one in _importable(file.parent)
        }
        need_trust(
            {**there, file.name: file.read_bytes()},
            f"run {run_id}: its network {file}, with the Python files beside it,",
            is_here=True,
        )


def _importable(folder: Path) -> Iterator[Path]:
    """Yield the Python files of a folder that an import may name."""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name.isidentifier()]
        yield from (Path(place, name) for name in files if name.endswith(".py"))


def refuse_ended(run_id: str, name: str, state: str, options: str = "") -> None:
    """Refuse a run that has ended as it was to; `options` are what else was given, as on the command line.

    Raises:
        UserError: With the way to train its weights further.
    """
    if state in (names.COMPLETE, names.PRUNED):
        way = f"train --model.weights runs:/{run_id}/{names.MODEL}{options} trains its weights further, in a new run"
        raise UserError(
            f"run_id: run {run_id} ({name}) is {state}; there is nothing to go on with; {way}"
        )


def _need_checkpoint(
    workspace: Workspace, run_id: str, tags: Mapping[str, str], configuration: Configuration
) -> None:
    """Check that a run of release 0.1.0 with trained weights need not begin anew, which would end otherwise: its head started differently.

    Raises:
        UserError: It would begin anew.
    """
    uid = uid_of(run_id, tags)
    if (
        configuration.model.weights != "none"
        and Checkpoints(child_path(workspace.checkpoints, uid)).load() is None
    ):
        raise UserError(
            f"run_id: run {run_id} was begun by release {FIRST_RELEASE}, and there is no checkpoint to go on from in "
            f"{workspace.checkpoints / uid}; begun anew, its head would start otherwise than it did; train anew, as another run"
        )


def need_experiment(workspace: Workspace, experiment: str) -> None:
    """Check that there are runs of an experiment.

    Raises:
        UserError: There are none; with the nearest name.
    """
    if experiment not in (known := find_runs.list_experiments(workspace)):
        raise unknown_name("experiment", experiment, known)


def reconcile(workspace: Workspace, experiment: str = "", process_id: int = 0) -> int:
    """End the runs whose process died without ending them, as interrupted: trainings among them can go on.

    Args:
        workspace: The open store.
        experiment: Only runs of that name; empty: all.
        process_id: Only runs of that process of this machine; 0: all.

    Returns:
        How many.
    """
    ended = 0
    for run in find_runs.find_running(workspace, experiment):
        beat = Beat.of(run.data.tags)
        if beat is None and (process_id or not has_never_begun(run, database_file(workspace.uri))):
            continue
        if process_id and beat is not None and not beat.is_of(process_id):
            continue
        if end_abandoned(workspace, run.info.run_id):
            ended += 1
            is_training = (
                run.data.tags.get(names.STEP) == "train" and names.TRIAL not in run.data.tags
            )
            how = f"; go on with: train --run_id {run.info.run_id}" if is_training else ""
            say(f"{run.info.run_name} ({run.info.run_id}): {names.INTERRUPTED}{how}")
    return ended
