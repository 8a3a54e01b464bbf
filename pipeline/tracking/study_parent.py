"""The parent run of a study, on which one process works at a time: of this machine or of any that logs to the same store."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from mlflow.entities import Run

from pipeline.errors import InUse
from pipeline.tracking import find_runs, names, study_runs
from pipeline.tracking.abandoned_runs import is_alive
from pipeline.tracking.heartbeat import Beat
from pipeline.tracking.tracked_run import TrackedRun
from pipeline.tracking.workspace import Workspace

_SETTLED = 2.0
"""Seconds after which a server shows what another process has written while this one looked."""


def refuse_if_tuned(workspace: Workspace, study: str) -> None:
    """Check that no other process works on a study of this store.

    Raises:
        InUse: One does; the message names host and process.
    """
    for run in _tuned_elsewhere(workspace, study):
        raise _in_use(study, run)


@contextmanager
def parent_run(workspace: Workspace, step: str, study: str, parent: str) -> Iterator[TrackedRun]:
    """Open the parent run of a study, after `refuse_if_tuned`; under ``mlflow run`` the launcher's run becomes it, or joins it.

    Args:
        workspace: The open store.
        step: ``tune`` or ``main``.
        study: Its name.
        parent: Run id where there is one already, or empty.

    Raises:
        InUse: Another process has begun to work on the study in the same moment. The later one gives way: its own new run ends FAILED
            and belongs to no study, one that the other has taken up is left alone.
    """
    with ExitStack() as runs:
        if parent and workspace.launched_run:
            joins = {names.STUDY: study, names.JOINS: parent}
            runs.enter_context(
                TrackedRun(workspace, step, f"{study} (continued)", tags=joins, single=True)
            )
        run = runs.enter_context(
            TrackedRun(
                workspace, step, study, run_id=parent, tags={names.STUDY: study}, single=True
            )
        )
        if (rival := _rival(workspace, study, run)) is not None:
            if parent:
                run.withdraw()
            else:
                run.delete_tag(names.STUDY)
            raise _in_use(study, rival)
        yield run


def _rival(workspace: Workspace, study: str, own: TrackedRun) -> Run | None:
    """Return the run of another process to which this one gives way: the one that has taken up the same run, or an earlier one."""
    if not workspace.uri.startswith("sqlite"):
        # Processes with a common database file have a common lock file too.
        time.sleep(_SETTLED)
    run = find_runs.get_run(workspace, own.id)
    if _is_anothers(run):
        return run
    others = [other for other in _tuned_elsewhere(workspace, study) if _order(other) < _order(run)]
    return min(others, key=_order, default=None)


def _order(run: Run) -> tuple[int, str]:
    return run.info.start_time, run.info.run_id


def _tuned_elsewhere(workspace: Workspace, study: str) -> list[Run]:
    return [
        run
        for run in study_runs.find_study_parents(workspace, study)
        if is_alive(run.data.tags) and _is_anothers(run)
    ]


def _is_anothers(run: Run) -> bool:
    beat = Beat.of(run.data.tags)
    return beat is not None and not beat.is_of(os.getpid())


def _in_use(study: str, run: Run) -> InUse:
    beat = Beat.of(run.data.tags)
    where = f"process {beat.process_id} on {beat.host}" if beat else "another process"
    return InUse(
        f"study {study!r} is being tuned by {where} (run {run.info.run_id}); wait for it, or give another study.name"
    )
