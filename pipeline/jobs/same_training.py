"""Which training is there already, so that it is not repeated, also while a server is away."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from pipeline import ranking
from pipeline.errors import StoreAway
from pipeline.identity import TrainingIdentity
from pipeline.jobs.training_job import Job
from pipeline.report.console import say_once
from pipeline.tracking import find_runs
from pipeline.tracking.patience import few_retries
from pipeline.tracking.sending import sender_of
from pipeline.tracking.workspace import STORE_ERRORS, Workspace, explain_store_error, is_away

if TYPE_CHECKING:
    from pipeline.jobs.train import Outcome

_Known = dict[TrainingIdentity, "tuple[Outcome, str]"]
_complete: WeakKeyDictionary[Workspace, _Known] = WeakKeyDictionary()
"""Complete trainings of this process with their study: a server may not know yet that they have
ended."""


def remember_complete(workspace: Workspace, job: Job, outcome: Outcome, study: str) -> None:
    """Note that a training of a study is complete."""
    if workspace.is_server:
        _complete.setdefault(workspace, {})[job.identity] = outcome, study


def find_same_training(workspace: Workspace, job: Job) -> find_runs.Row | None:
    """Return the complete training of the same identity, if there is one: it is not repeated.

    Trainings of this process are known without a server. For those of other processes a server is
    asked; if it does not answer, there is none. A study repeats nothing of its list even then,
    since its trials tell what is done.

    Returns:
        The training's row; one of this process has an empty ``run_id`` if the server has not made
        its run yet.
    """
    known = _complete.get(workspace, {}).get(job.identity)
    if known is not None:
        outcome, study = known
        return {
            "study": study,
            "run_id": outcome.run_id,
            "uid": outcome.run.uid,
            "run_name": job.configuration.model.name,
            "metric": outcome.metric,
            "value": outcome.value,
            "score": ranking.score(outcome.value, outcome.metric),
        }
    try:
        return _ask(workspace, job.identity)
    except StoreAway as away:
        say_once(f"  {away}: trained without looking for an equal training")
        return None


def _ask(workspace: Workspace, identity: TrainingIdentity) -> find_runs.Row | None:
    """Ask the store, with little patience.

    Raises:
        StoreAway: A server does not answer.
    """
    if not workspace.is_server:
        return find_runs.find_complete_training(workspace, identity)
    _need_answering(workspace)
    try:
        with few_retries():
            return find_runs.find_complete_training(workspace, identity)
    except STORE_ERRORS as error:
        if is_away(error):
            raise explain_store_error(error) from error
        raise


def _need_answering(workspace: Workspace) -> None:
    if sender_of(workspace).is_away:
        raise StoreAway("the tracking server does not answer")


def find_unfinished_training(
    workspace: Workspace, study: str, job: Job, begun: Collection[str], is_begun: bool
) -> str:
    """Return the run id of a job's training in a study that can go on, or an empty text.

    Args:
        workspace: The open store.
        study: Name of the study.
        job: What is trained.
        begun: Ids and uids of runs that the study has noted.
        is_begun: Whether the study has noted a run of this very training. Without a server, one
            that was never begun is a new one.

    Raises:
        StoreAway: The training was begun, and the server, which knows how far it is, is away.
    """
    if not workspace.is_server:
        return find_runs.find_unfinished_training(workspace, study, job.identity, begun, is_begun)
    try:
        _need_answering(workspace)
        with few_retries():
            return find_runs.find_unfinished_training(
                workspace, study, job.identity, begun, is_begun
            )
    except (StoreAway, *STORE_ERRORS) as error:
        if is_begun or not (isinstance(error, StoreAway) or is_away(error)):
            raise
        return ""
