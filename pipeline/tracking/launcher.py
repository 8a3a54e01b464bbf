"""The run that ``mlflow run`` has made for this process: whether it is one, and how it ends.

``mlflow run`` makes a run, names it in MLFLOW_RUN_ID and starts our command. That variable may as well be left over from elsewhere, so
that it is read here alone: a run is taken only if it has just been made for the step that is run.

``mlflow run`` also sets its run to FAILED whenever its command ends with an error, even where the run is ended already (its check compares
the status' name with numbers). So after an interruption this file is started as a process of its own, waits until the launcher is gone,
and sets KILLED again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import psutil

if TYPE_CHECKING:
    from mlflow.entities import Run

_VARIABLE = "MLFLOW_RUN_ID"
_ENTRY_POINT = "mlflow.project.entryPoint"
_LONGEST_WAIT = 60.0
_LONGEST_BUILD = 3600.0
"""Seconds after which an environment that another machine builds is no longer waited for."""
_PROJECT = Path(__file__).resolve().parents[2]


class _State:
    taken = ""


def launched_run_id() -> str:
    """Return the id of the run that `adopt_launched_run` has found to be this process's, or an empty string."""
    return _State.taken


def adopt_launched_run(step: str) -> None:
    """Make the run that the environment names this process's own.

    Raises:
        UserError: It is not one that ``mlflow run`` has just made for this step.
        StoreAway: The store does not answer.
    """
    _State.taken = ""
    run_id = os.environ.get(_VARIABLE, "")
    if not run_id:
        return
    from pipeline.errors import UserError

    if problem := _problem(run_id, step):
        raise UserError(
            f"{_VARIABLE}: {problem}; only a run that `mlflow run` has just made for this step is taken: unset that variable"
        )
    _State.taken = run_id


def _problem(run_id: str, step: str) -> str:
    """Return why a run is not to be taken; empty where it is."""
    from pipeline.errors import UserError
    from pipeline.tracking import find_runs, names
    from pipeline.tracking.workspace import database_file, open_workspace, tracking_uri

    database = database_file(tracking_uri())
    if database is not None and not database.is_file():
        return f"there is no run {run_id!r} in {database}, which does not exist"
    try:
        run = find_runs.get_run(open_workspace(""), run_id)
    except UserError as error:
        return error.message.removeprefix("run_id: ")
    tags, called = run.data.tags, f"run {run_id} ({run.info.run_name})"
    if run.info.status != "RUNNING":
        return f"{called} is {run.info.status}"
    if names.STEP in tags:
        return f"{called} is taken already, by {tags[names.STEP]}"
    if tags.get(_ENTRY_POINT) != step:
        return f"{called} was not made by `mlflow run` for entry point {step}"
    return ""


def end_launched_run(reason: str, state: str) -> None:
    """End the run that was taken, where there is one and it still runs."""
    if not _State.taken:
        return
    from mlflow import MlflowClient

    from pipeline.tracking import names
    from pipeline.tracking.workspace import tracking_uri

    client = MlflowClient(tracking_uri())
    if client.get_run(_State.taken).info.status == "RUNNING":
        client.set_tag(_State.taken, names.REASON, reason[:5000])
        client.set_tag(_State.taken, names.STATE, state)
        client.set_terminated(_State.taken, names.STATUS_OF_STATE[state])


def has_never_begun(run: Run, database: Path | None) -> bool:
    """Whether ``mlflow run`` has made a run for a step of ours and is gone without having started it, as where there is no conda.

    The run does not say which process made it. On this machine that is one of `mlflow run` that was there when the run was made, and has
    the same store; a server may have been told by another machine, which may build an environment for a while.

    Args:
        run: That is RUNNING.
        database: The store, where it is a database of this machine; None: a server.
    """
    made = run.info.start_time / 1000
    if not _is_for_us(run) or (database is None and time.time() - made < _LONGEST_BUILD):
        return False
    launchers = [
        process
        for process in psutil.process_iter(["cmdline", "create_time"])
        if _is_launcher(process)
    ]
    return not any(
        process.info["create_time"] <= made and _may_use(process, database) for process in launchers
    )


def _is_for_us(run: Run) -> bool:
    """Whether a run was made for one of our entry points, by their parameters, and no step has taken it."""
    from pipeline.tracking import names

    step, params = run.data.tags.get(_ENTRY_POINT), set(run.data.params)
    declared = {
        "predict": {"model_uri", "images", "out"},
        "init": {"out"},
        "reconcile": {"experiment"},
    }
    return (
        step is not None
        and names.STEP not in run.data.tags
        and declared.get(step, {"config", "experiment"}) <= params
    )


def _is_launcher(process: psutil.Process) -> bool:
    words = [Path(word).name for word in process.info["cmdline"] or []]
    return "mlflow" in words and "run" in words[words.index("mlflow") :]


def _may_use(process: psutil.Process, database: Path | None) -> bool:
    """Whether a process may log to a store; also where the system does not tell."""
    from pipeline.tracking.workspace import database_file

    if database is None:
        return True
    try:
        uri, folder = process.environ().get("MLFLOW_TRACKING_URI", ""), Path(process.cwd())
    except (psutil.Error, OSError):
        return True
    its = database_file(unquote(uri)) if uri else folder / database.name
    return its is None or (folder / its).resolve() == database.resolve()


def restore_killed_later() -> None:
    """Start the process that sets the run that was taken to KILLED once the launcher, our parent process, has ended."""
    if not _State.taken:
        return
    # It starts in the user's folder, whatever is called pipeline there (-P), and imports this package.
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            [str(_PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
    }
    arguments = [sys.executable, "-P", "-m", __name__, _State.taken, str(os.getppid())]
    nowhere = subprocess.DEVNULL
    subprocess.Popen(
        arguments,
        env=environment,
        start_new_session=True,
        stdin=nowhere,
        stdout=nowhere,
        stderr=nowhere,
    )


def _is_alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def main(run_id: str, launcher: int) -> None:
    """Wait for the launcher's end, then correct the status, unless the run is being continued."""
    from mlflow import MlflowClient

    from pipeline.tracking import names
    from pipeline.tracking.workspace import tracking_uri

    started = time.monotonic()
    while _is_alive(launcher) and time.monotonic() - started < _LONGEST_WAIT:
        time.sleep(0.1)
    client = MlflowClient(tracking_uri())
    run = client.get_run(run_id)
    if run.info.status == "FAILED" and run.data.tags.get(names.STATE) == names.INTERRUPTED:
        client.set_terminated(run_id, "KILLED", run.info.end_time)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
