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
    """A study, as its parent run describes it.

    Attributes:
        name: Name of the study.
        parent: Id of the parent run.
        data_digest: Digest of the images that it trains on.
        source: ``data.source`` when the study was begun; empty if it was not recorded.
        identity: The name that follows from base, space and data. It is empty unless it was
            recorded beside a name that the user had chosen.
    """

    name: str
    parent: str
    data_digest: str
    source: str
    identity: str


def find_studies(workspace: Workspace) -> list[Study]:
    """Return the studies of the experiment, beginning with the study that was begun last."""
    latest: dict[str, Study] = {}
    for run in _find_parents(workspace, f"tags.`{names.STUDY}` != ''"):
        tags = run.data.tags
        study = Study(
            name=tags[names.STUDY],
            parent=run.info.run_id,
            data_digest=tags.get(names.DATA_DIGEST, ""),
            source=run.data.params.get("data.source", ""),
            identity=tags.get(names.IDENTITY, ""),
        )
        latest.setdefault(study.name, study)
    return list(latest.values())


def _find_parents(workspace: Workspace, of_study: str) -> list[Run]:
    """Return the parent runs of the experiment that meet a further condition, latest first."""
    condition = f"tags.`{names.EXPERIMENT}` = '{quote(workspace.experiment)}' and {of_study}"
    found: list[Run] = []
    # Two searches find few runs. One search for all steps would fetch every training.
    for step in ("tune", "main"):
        found += search(workspace, f"{condition} and tags.`{names.STEP}` = '{step}'")
    parents = [run for run in found if names.JOINS not in run.data.tags]
    return sorted(parents, key=lambda run: run.info.start_time, reverse=True)


def find_study_parents(workspace: Workspace, name: str) -> list[Run]:
    """Return the parent runs of a study, latest first.

    There are several if processes in two folders have begun it at the same moment.
    """
    return _find_parents(workspace, f"tags.`{names.STUDY}` = '{quote(name)}'")


def find_study_parent(workspace: Workspace, name: str) -> str:
    """Return the parent run id of a study that MLflow knows, or an empty string."""
    parents = find_study_parents(workspace, name)
    return str(parents[0].info.run_id) if parents else ""


def get_study(workspace: Workspace, name: str) -> Study:
    """Return the study of a name.

    Raises:
        UserError: There is no study of that name. The message lists all studies.
    """
    known = {study.name: study for study in find_studies(workspace)}
    if name not in known:
        raise UserError(
            f"study.name: no study {name!r} in experiment {workspace.experiment!r}"
            f"{nearest(name, known)}; there are: {', '.join(known) or 'none'}"
        )
    return known[name]


def studies_of_run(workspace: Workspace, run_id: str) -> str:
    """Return the studies that a training belongs to, separated by commas.

    The text is empty if the training is gone or belongs to no study.
    """
    if not run_id:
        return ""
    try:
        return str(workspace.client.get_run(run_id).data.tags.get(names.STUDY, ""))
    except MlflowException as error:
        if error.error_code != _NO_SUCH:
            raise
        return ""
