"""Runs that still say RUNNING though no process works on them: how they are found, and ended."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

import psutil
from mlflow.entities import Run

from pipeline.tracking import find_runs, names
from pipeline.tracking.heartbeat import Beat
from pipeline.tracking.launcher_run import ENTRY_POINT
from pipeline.tracking.run_log import RunLog
from pipeline.tracking.workspace import Workspace, database_file

_LONGEST_BUILD = 3600.0
"""Seconds that another machine may take to build an environment."""


def is_alive(tags: Mapping[str, str]) -> bool:
    """Whether the process of a run still works on it, as far as its heartbeat tells."""
    beat = Beat.of(tags)
    return beat is not None and tags.get(names.STATE) == names.RUNNING and beat.lives


def end_abandoned(workspace: Workspace, run_id: str) -> bool:
    """End a run whose process died without ending it; return whether it was such a run.

    Its end time is that of its last heartbeat.
    """
    if not run_id or not find_runs.get_lifecycle(workspace, run_id):
        return False
    run = workspace.client.get_run(run_id)
    if run.info.status != "RUNNING" or run.info.lifecycle_stage != "active":
        return False
    if is_alive(run.data.tags):
        return False
    beat = Beat.of(run.data.tags)
    reason = "its process died"
    if beat is not None:
        reason += f" (process {beat.process_id} on {beat.host})"
    if has_never_begun(run, database_file(workspace.uri)):
        reason = (
            "mlflow run has ended without starting it: "
            "it could not build the environment, or was killed"
        )
    _end_interrupted(workspace, run_id, reason, int(beat.time * 1000) if beat else None)
    return True


def end_silent(workspace: Workspace, run_id: str, worker: str) -> None:
    """End a run whose worker gives no sign of life, whatever the run says: another goes on with it.

    Args:
        workspace: The open store.
        run_id: Id of the run.
        worker: The worker, for people.
    """
    if find_runs.get_lifecycle(workspace, run_id) != "active":
        return
    if workspace.client.get_run(run_id).info.status == "RUNNING":
        _end_interrupted(workspace, run_id, f"{worker} gave no sign of life", None)


def _end_interrupted(workspace: Workspace, run_id: str, reason: str, ended: int | None) -> None:
    tags = {
        names.STATE: names.INTERRUPTED,
        names.REASON: reason,
        names.NOTE: f"{names.INTERRUPTED}: {reason}",
    }
    RunLog(workspace, run_id).tag(tags)
    workspace.client.set_terminated(run_id, names.STATUS_OF_STATE[names.INTERRUPTED], ended)


def has_never_begun(run: Run, database: Path | None) -> bool:
    """Whether ``mlflow run`` has made a run for a step of ours and ended without starting it.

    That happens if there is no conda. The run does not say which process made it. On this machine
    it is an ``mlflow run`` that existed when the run was made, and that has the same store. A run
    on a server may come from another machine, which may build an environment for a while.

    Args:
        run: A run that is RUNNING.
        database: The store, if it is a database of this machine; None for a server.
    """
    made = run.info.start_time / 1000
    if not _is_for_us(run) or (database is None and time.time() - made < _LONGEST_BUILD):
        return False
    for process in psutil.process_iter(["cmdline", "create_time"]):
        # Of a process of another user, the system may not tell when it started.
        started = process.info["create_time"]
        is_younger = started is not None and started > made
        if _is_launcher(process) and not is_younger and _may_use(process, database):
            return False
    return True


def _is_for_us(run: Run) -> bool:
    """Whether a run was made for one of our entry points, and no step has taken it.

    The entry point is recognised by its parameters.
    """
    step = run.data.tags.get(ENTRY_POINT)
    if step is None or names.STEP in run.data.tags:
        return False
    declared = {
        "predict": {"model_uri", "images", "out"},
        "init": {"out"},
        "reconcile": {"experiment"},
    }
    return declared.get(step, {"config", "experiment"}) <= run.data.params.keys()


def _is_launcher(process: psutil.Process) -> bool:
    words = [Path(word).name for word in process.info["cmdline"] or []]
    return "mlflow" in words and "run" in words[words.index("mlflow") :]


def _may_use(process: psutil.Process, database: Path | None) -> bool:
    """Whether a process may log to a store. If the system does not tell, it may."""
    if database is None:
        return True
    try:
        uri = process.environ().get("MLFLOW_TRACKING_URI", "")
        folder = Path(process.cwd())
    except (psutil.Error, OSError):
        return True
    theirs = database_file(unquote(uri)) if uri else folder / database.name
    return theirs is None or (folder / theirs).resolve() == database.resolve()
