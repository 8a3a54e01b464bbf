"""The parent run of a study, on which one process works at a time.

The process may be on this machine, or on any other machine that logs to the same store.
"""

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
"""Seconds after which a server shows what another process wrote while this one was looking."""


def refuse_if_tuned(workspace: Workspace, study: str) -> None:
    """Check that no other process works on a study of this store.

    Raises:
        InUse: Another process works on it. The message names host and process.
    """
    for run in find_tuned_elsewhere(workspace, study):
        raise _in_use(study, run)


@contextmanager
def parent_run(workspace: Workspace, step: str, study: str, parent: str) -> Iterator[TrackedRun]:
    """Open the parent run of a study, after `refuse_if_tuned`.

    Under ``mlflow run`` the launcher's run becomes the parent, or joins the parent that exists.

    Args:
        workspace: The open store.
        step: ``tune`` or ``main``.
        study: Name of the study.
        parent: Id of the parent run if there is one already, or empty.

    Raises:
        InUse: Another process has begun to work on the study at the same moment. The later process
            gives way. If it has made a new run, that run is deleted; one that ``mlflow run`` has
            made belongs to no study. If the other process has taken up the same run, that run is
            left as it is.
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
        rival = _find_rival(workspace, study, run)
        if rival is not None:
            if parent:
                run.withdraw()
            elif workspace.launched_run:
                run.delete_tag(names.STUDY)
            else:
                run.flush()
                run.withdraw()
                workspace.client.delete_run(run.id)
            raise _in_use(study, rival)
        yield run


@contextmanager
def joining_run(workspace: Workspace, step: str, study: str, parent: str) -> Iterator[None]:
    """Keep the run that ``mlflow run`` has made, while this process works on another one's study.

    Args:
        workspace: The open store.
        step: ``tune`` or ``main``.
        study: Name of the study.
        parent: Id of the study's parent run.
    """
    if not workspace.launched_run:
        yield
        return
    joins = {names.STUDY: study, names.JOINS: parent}
    with TrackedRun(workspace, step, f"{study} (joined)", tags=joins, single=True):
        yield


def _find_rival(workspace: Workspace, study: str, own: TrackedRun) -> Run | None:
    """Return the run of another process to which this process gives way, or None.

    It is this run, if the other process has taken it up too, or an earlier run of the study.
    """
    if not workspace.uri.startswith("sqlite"):
        # This is not needed for a database file: its processes have a common lock file too.
        time.sleep(_SETTLED)
    run = find_runs.get_run(workspace, own.id)
    if _is_anothers(run):
        return run
    others = find_tuned_elsewhere(workspace, study)
    earlier = [other for other in others if _order(other) < _order(run)]
    return min(earlier, key=_order, default=None)


def _order(run: Run) -> tuple[int, str]:
    return run.info.start_time, run.info.run_id


def find_tuned_elsewhere(workspace: Workspace, study: str) -> list[Run]:
    """Return the parent runs of a study that other processes, which live, work on."""
    parents = study_runs.find_study_parents(workspace, study)
    return [run for run in parents if is_alive(run.data.tags) and _is_anothers(run)]


def wait_for_leader(workspace: Workspace, study: str) -> bool:
    """Return whether another process that lives leads a study.

    One on another machine that has died a moment ago seems to live. So a further sign of life is
    waited for.
    """
    seen: dict[str, float] = {}
    while True:
        beats = []
        for run in find_tuned_elsewhere(workspace, study):
            beat = Beat.of(run.data.tags)
            if beat is not None:
                beats.append(beat)
        if not beats:
            return False
        for beat in beats:
            if beat.is_from_here or beat.time > seen.setdefault(beat.process, beat.time):
                return True
        time.sleep(1)


def find_leaders(workspace: Workspace, study: str) -> set[str]:
    """Return the other processes that lead a study, as `Beat.process` names them."""
    beats = [Beat.of(run.data.tags) for run in find_tuned_elsewhere(workspace, study)]
    return {beat.process for beat in beats if beat is not None}


def is_concluded(workspace: Workspace, study: str) -> bool:
    """Whether the process that worked on a study last has compared its trainings."""
    parents = study_runs.find_study_parents(workspace, study)
    return any(run.data.tags.get(names.STATE) == names.COMPLETE for run in parents)


def _is_anothers(run: Run) -> bool:
    beat = Beat.of(run.data.tags)
    return beat is not None and not beat.is_of(os.getpid())


def _in_use(study: str, run: Run) -> InUse:
    beat = Beat.of(run.data.tags)
    where = f"process {beat.process_id} on {beat.host}" if beat else "another process"
    return InUse(
        f"study {study!r} is being tuned by {where} (run {run.info.run_id}); "
        "wait for it, or give another study.name"
    )
