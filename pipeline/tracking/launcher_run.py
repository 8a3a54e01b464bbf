"""The run that ``mlflow run`` has made for this process: whether there is one, and how it ends.

``mlflow run`` makes a run, names it in MLFLOW_RUN_ID and starts our command. That variable may also
be left over from something else. So it is read here only, and a run is taken only if it has just
been made for the step that this process runs.

Nothing heavy is imported here before it is needed, since every command looks here first.
"""

from __future__ import annotations

import os

_VARIABLE = "MLFLOW_RUN_ID"
ENTRY_POINT = "mlflow.project.entryPoint"
"""Tag in which ``mlflow run`` says for which step it has made a run."""


class _State:
    taken = ""


def launched_run_id() -> str:
    """Return the id of the run that `adopt_launched_run` has taken, or an empty string."""
    return _State.taken


def adopt_launched_run(step: str) -> None:
    """Take the run that the environment names for this process.

    Raises:
        UserError: ``mlflow run`` has not just made that run for this step.
        StoreAway: The store does not answer.
    """
    _State.taken = ""
    run_id = os.environ.get(_VARIABLE, "")
    if not run_id:
        return
    from pipeline.errors import UserError

    problem = _find_problem(run_id, step)
    if problem:
        raise UserError(
            f"{_VARIABLE}: {problem}; only a run that `mlflow run` has just made for this step "
            "is taken: unset that variable"
        )
    _State.taken = run_id


def _find_problem(run_id: str, step: str) -> str:
    """Return why a run may not be taken; an empty string if it may."""
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
    tags = run.data.tags
    called = f"run {run_id} ({run.info.run_name})"
    if run.info.status != "RUNNING":
        return f"{called} is {run.info.status}"
    if names.STEP in tags:
        return f"{called} is taken already, by {tags[names.STEP]}"
    if tags.get(ENTRY_POINT) != step:
        return f"{called} was not made by `mlflow run` for entry point {step}"
    return ""


def end_launched_run(reason: str, state: str) -> None:
    """End the run that was taken, if there is one and it is still RUNNING."""
    if not _State.taken:
        return
    from mlflow import MlflowClient

    from pipeline.tracking import names
    from pipeline.tracking.patience import few_retries
    from pipeline.tracking.workspace import tracking_uri

    client = MlflowClient(tracking_uri())
    with few_retries():
        if client.get_run(_State.taken).info.status == "RUNNING":
            client.set_tag(_State.taken, names.REASON, reason[:5000])
            client.set_tag(_State.taken, names.STATE, state)
            client.set_terminated(_State.taken, names.STATUS_OF_STATE[state])
