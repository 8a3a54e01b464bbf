"""Go on with a training that was interrupted, in its own run."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pipeline.config import FILE, Configuration, Data
from pipeline.data.prepared import Prepared
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
def lock_run(workspace: Workspace, run_id: str, breaks: bool = False) -> Iterator[None]:
    """Lock a run that goes on, from the look at its state until its training has ended.

    Args:
        workspace: The open store.
        run_id: Id of the run.
        breaks: Take the lock from a process that has it but gives no sign of life.

    Raises:
        InUse: Another process has locked the run, or still trains it.
        UserError: Another run has the same uid, and with it the same checkpoints.
    """
    uid = uid_of(run_id, find_runs.get_run(workspace, run_id).data.tags)
    others = [one for one in find_runs.find_by_uid(workspace, uid) if one != run_id]
    if others:
        raise UserError(
            f"run_id: run {run_id} has the {names.UID} of run {others[0]}, "
            "and would take its checkpoints: one of them lies"
        )
    workspace.checkpoints.mkdir(parents=True, exist_ok=True)
    refusal = (
        f"run_id: run {run_id} is being trained by another process on this machine; "
        "stop that one, or wait"
    )
    with lock(child_path(workspace.checkpoints, uid), refusal, breaks):
        tags = find_runs.get_run(workspace, run_id).data.tags
        if is_alive(tags):
            beat = Beat.of(tags)
            assert beat is not None
            raise InUse(
                f"run_id: run {run_id} is being trained by process {beat.process_id} "
                f"on {beat.host}; stop that one, or wait"
            )
        yield


def load_interrupted_job(workspace: Workspace, run_id: str) -> Job:
    """Return what a run that `lock_run` has locked was training, as it recorded it.

    Raises:
        UserError: There is no such run; or it is no training, is complete or pruned; or images,
            network or weights have changed.
    """
    run = find_runs.get_run(workspace, run_id)
    tags = run.data.tags
    state = find_runs.to_row(run)["state"]
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
    digest = tags.get(names.DATA_DIGEST, "")
    prepared = _prepare_same_images(workspace, run_id, configuration.data, digest, version)
    origin = check(configuration, prepared, "", is_recorded=True)
    job = Job(configuration, origin, prepared)
    _need_same_configuration(workspace, run_id, tags, job)
    return job


def _prepare_same_images(
    workspace: Workspace, run_id: str, data: Data, digest: str, version: int
) -> Prepared:
    """Prepare the images of a run.

    Args:
        workspace: The open store.
        run_id: Id of the run.
        data: The options on images that the run has recorded.
        digest: Digest of the images that the run has recorded, or empty.
        version: Version of the rules by which the run has decoded them.

    Raises:
        UserError: The run has recorded no digest, or the images have changed.
    """
    if not digest:
        raise UserError(
            f"run_id: run {run_id} does not say which images it was trained on "
            f"({names.DATA_DIGEST}); train anew"
        )
    need_known_images(workspace, data, run_id)
    prepared = prepare_as_recorded(workspace, data, digest, version)
    if prepared.digest != digest:
        raise UserError(
            f"run_id: run {run_id} was trained on data {digest[:8]}, "
            f"but {prepared.source} is {prepared.digest[:8]} now; "
            "train anew, or put the images back"
        )
    return prepared


def _need_same_configuration(
    workspace: Workspace, run_id: str, tags: Mapping[str, str], job: Job
) -> None:
    """Check that a run's configuration has the hash that the run has recorded.

    Raises:
        UserError: It has another one: network, weights or the pipeline have changed.
    """
    recorded = tags.get(names.CONFIG_HASH, job.config_hash)
    if recorded == job.config_hash:
        return
    if recorded == config_hash(job.configuration, job.origin, FIRST_RELEASE):
        _need_checkpoint(workspace, run_id, tags, job.configuration)
        return
    model = job.configuration.model
    own = [name for name in (model.name, model.weights) if name.startswith(FILE)]
    changed = "what a release of this pipeline makes of its configuration"
    if own:
        changed = f"{' or '.join(own)}, or a file that belongs to it,"
    raise UserError(
        f"run_id: run {run_id} was trained by configuration {recorded}, "
        f"which is {job.config_hash} now: {changed} has changed; "
        "train anew, or put it back"
    )


def _need_trust(run_id: str, name: str) -> None:
    """Check that one's own network may be executed, which a run has recorded by a local path.

    Raises:
        UserError: It is not trusted (see `pipeline.trust`), or a file is gone.
    """
    file, _ = find_own_file(name)
    if is_users_own(file):
        return
    # Only executing the file would tell what it imports; so this is all that it could import.
    there = {
        one.relative_to(file.parent).as_posix(): one.read_bytes()
        for one in _find_importable(file.parent)
    }
    there[file.name] = file.read_bytes()
    where = f"run {run_id}: its network {file}, with the Python files beside it,"
    need_trust(there, where, is_here=True)


def _find_importable(folder: Path) -> Iterator[Path]:
    """Yield the Python files of a folder that an import may name."""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name.isidentifier()]
        for name in files:
            if name.endswith(".py"):
                yield Path(place, name)


def refuse_ended(run_id: str, name: str, state: str, options: str = "") -> None:
    """Refuse a run that is complete or pruned.

    Args:
        run_id: Id of the run.
        name: Name of the run.
        state: State of the run.
        options: The further options that were given, as text for a command line.

    Raises:
        UserError: The run is complete or pruned; the message says how to train its weights further.
    """
    if state in (names.COMPLETE, names.PRUNED):
        raise UserError(
            f"run_id: run {run_id} ({name}) is {state}; there is nothing to go on with; "
            f"train --model.weights runs:/{run_id}/{names.MODEL}{options} "
            "trains its weights further, in a new run"
        )


def _need_checkpoint(
    workspace: Workspace, run_id: str, tags: Mapping[str, str], configuration: Configuration
) -> None:
    """Check that a run of release 0.1.0 with trained weights need not begin anew.

    Its head started differently in that release, so that it would end otherwise.

    Raises:
        UserError: The run has no checkpoint, and would begin anew.
    """
    uid = uid_of(run_id, tags)
    if configuration.model.weights == "none":
        return
    if Checkpoints(child_path(workspace.checkpoints, uid)).load() is None:
        raise UserError(
            f"run_id: run {run_id} was begun by release {FIRST_RELEASE}, "
            f"and there is no checkpoint to go on from in {workspace.checkpoints / uid}; "
            "begun anew, its head would start otherwise than it did; train anew, as another run"
        )


def need_experiment(workspace: Workspace, experiment: str) -> None:
    """Check that there are runs of an experiment.

    Raises:
        UserError: There are no such runs; the message has the nearest name.
    """
    known = find_runs.list_experiments(workspace)
    if experiment not in known:
        raise unknown_name("experiment", experiment, known)


def reconcile(workspace: Workspace, experiment: str = "", process_id: int = 0) -> int:
    """End as interrupted the runs whose process died without ending them.

    Trainings among them can go on.

    Args:
        workspace: The open store.
        experiment: Name of the experiment whose runs are looked at; empty: all runs.
        process_id: Id of the process of this machine whose runs are looked at; 0: all runs.

    Returns:
        The number of runs that were ended.
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
            tags = run.data.tags
            is_training = tags.get(names.STEP) == "train" and names.TRIAL not in tags
            how = f"; go on with: train --run_id {run.info.run_id}" if is_training else ""
            say(f"{run.info.run_name} ({run.info.run_id}): {names.INTERRUPTED}{how}")
    return ended
