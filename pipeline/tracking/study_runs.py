"""Studies read back from MLflow: their parent runs, as plain values."""

from __future__ import annotations

from typing import NamedTuple

from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from pipeline.errors import UserError, nearest
from pipeline.tracking import names
from pipeline.tracking.find_runs import quote, search
from pipeline.tracking.workspace import Workspace

_NO_SUCH = "RESOURCE_DOES_NOT_EXIST"


class Study(NamedTuple):
    """A study, as its parent run tells.

    Attributes:
        name: Of the study.
        parent: Id of that run.
        data_digest: Of the images that it trains on.
        source: ``data.source`` when it was begun; empty where it was not recorded.
        identity: The name that follows from base, space and data, where it was recorded beside a name of the user's own; else empty.
    """

    name: str
    parent: str
    data_digest: str
    source: str
    identity: str


def find_studies(workspace: Workspace) -> list[Study]:
    """Return the studies of the experiment, the one that was begun last first."""
    latest: dict[str, Study] = {}
    for run in _parents(workspace, f"tags.`{names.STUDY}` != ''"):
        tags = run.data.tags
        digest, source, identity = (
            tags.get(names.DATA_DIGEST, ""),
            run.data.params.get("data.source", ""),
            tags.get(names.IDENTITY, ""),
        )
        latest.setdefault(
            tags[names.STUDY],
            Study(tags[names.STUDY], run.info.run_id, digest, source, identity),
        )
    return list(latest.values())


def _parents(workspace: Workspace, of_study: str) -> list[Run]:
    of_experiment = f"tags.`{names.EXPERIMENT}` = '{quote(workspace.experiment)}' and {of_study}"
    # Two searches for few runs: one for all tags would fetch every training.
    found = [
        run
        for step in ("tune", "main")
        for run in search(workspace, f"{of_experiment} and tags.`{names.STEP}` = '{step}'")
    ]
    parents = [run for run in found if names.JOINS not in run.data.tags]
    return sorted(parents, key=lambda run: run.info.start_time, reverse=True)


def find_study_parents(workspace: Workspace, name: str) -> list[Run]:
    """Return the parent runs of a study, latest first; there is more than one where two folders have begun it at once."""
    return _parents(workspace, f"tags.`{names.STUDY}` = '{quote(name)}'")


def find_study_parent(workspace: Workspace, name: str) -> str:
    """Return the parent run id of a study that MLflow knows, or an empty string."""
    return next((str(run.info.run_id) for run in find_study_parents(workspace, name)), "")


def get_study(workspace: Workspace, name: str) -> Study:
    """Return the study of a name.

    Raises:
        UserError: There is none; those that there are, are listed.
    """
    known = find_studies(workspace)
    found = next((one for one in known if one.name == name), None)
    if found is None:
        there = [one.name for one in known]
        raise UserError(
            f"study.name: no study {name!r} in experiment {workspace.experiment!r}{nearest(name, there)}; "
            f"there are: {', '.join(there) or 'none'}"
        )
    return found


def studies_of_run(workspace: Workspace, run_id: str) -> str:
    """Return the studies that a training is of, separated by commas; empty where it is gone or of none."""
    try:
        return (
            str(workspace.client.get_run(run_id).data.tags.get(names.STUDY, "")) if run_id else ""
        )
    except MlflowException as error:
        if error.error_code != _NO_SUCH:
            raise
        return ""
