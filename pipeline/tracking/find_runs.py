"""Runs and studies read back from MLflow, as plain rows."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

import yaml
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from pipeline import models, ranking
from pipeline.config import Configuration, field_info, nest, parse, parse_yaml
from pipeline.errors import UserError
from pipeline.identity import FIRST_RELEASE, TrainingIdentity, config_hash
from pipeline.tracking import artifacts, names
from pipeline.tracking.workspace import Workspace

Row = dict[str, Any]

"""Of an artifact that is downloaded: the largest networks there are have half of it."""
_NO_SUCH = "RESOURCE_DOES_NOT_EXIST"
_LAUNCHED = "mlflow.project.entryPoint"
"""On runs that ``mlflow run`` has made."""

STATE_OF_STATUS = {"FINISHED": names.COMPLETE, "FAILED": names.FAILED, "KILLED": names.INTERRUPTED}

_PARAMS = {
    "model": "model.name",
    "weights": "model.weights",
    "freeze": "model.freeze",
    "optimizer": "optimizer.name",
    "lr": "optimizer.lr",
    "schedule": "schedule.name",
    "weight_decay": "optimizer.weight_decay",
    "seed": "training.seed",
    "epochs": "training.epochs",
}
_METRICS = {
    "best_epoch": "best/epoch",
    "val_accuracy": "best/val_accuracy",
    "val_loss": "best/val_loss",
    "test_accuracy": "test/accuracy",
    "test_accuracy_low": "test/accuracy_low",
    "test_accuracy_high": "test/accuracy_high",
    "parameters": "parameters",
    "majority_rate": "majority_rate",
    "seconds": "seconds",
}


def search(
    workspace: Workspace, filter_string: str, experiment_ids: list[str] | None = None
) -> list[Run]:
    """Return all runs that a filter of MLflow's finds, by default in all MLflow experiments."""
    ids = experiment_ids or [found.experiment_id for found in workspace.client.search_experiments()]
    runs: list[Run] = []
    token: str | None = None
    while True:
        page = workspace.client.search_runs(ids, filter_string, max_results=1000, page_token=token)
        runs.extend(page)
        token = page.token
        if not token:
            return runs


def get_run(workspace: Workspace, run_id: str, even_deleted: bool = False) -> Run:
    """Return a run.

    Raises:
        UserError: There is none of that id, or it is deleted, unless `even_deleted` ones, which keep their artifacts, will do.
    """
    try:
        run = workspace.client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in (_NO_SUCH, "INVALID_PARAMETER_VALUE"):
            raise
        raise UserError(f"run_id: there is no run {run_id!r} in {workspace.uri}") from None
    if run.info.lifecycle_stage != "active" and not even_deleted:
        raise UserError(
            f"run_id: run {run_id} ({run.info.run_name}) is deleted; `mlflow runs restore --run-id {run_id}` brings it back"
        )
    return run


def get_lifecycle(workspace: Workspace, run_id: str) -> str:
    """Return ``active`` or ``deleted``, or an empty string where this store has no run of that id."""
    try:
        return str(workspace.client.get_run(run_id).info.lifecycle_stage)
    except MlflowException as error:
        if error.error_code not in (_NO_SUCH, "INVALID_PARAMETER_VALUE"):
            # A server that does not answer says nothing about the run.
            raise
        return ""


def find_trainings(workspace: Workspace, study: str = "") -> list[Row]:
    """Return a row per training of the experiment, or of one of its studies.

    Runs are found by the tag ``pipeline.experiment``, else in the MLflow experiment of that name.
    """
    filter_string = f"tags.`{names.EXPERIMENT}` = '{quote(workspace.experiment)}' and tags.`{names.STEP}` = 'train'"
    # A training may be of several studies, whose names stand in one tag.
    tagged = search(
        workspace,
        filter_string + (f" and tags.`{names.STUDY}` LIKE '%{quote(study)}%'" if study else ""),
    )
    if not tagged and not study:
        by_name = workspace.client.get_experiment_by_name(workspace.experiment)
        tagged = (
            [
                run
                for run in search(workspace, "", [by_name.experiment_id])
                if run.data.metrics and names.STEP not in run.data.tags
            ]
            if by_name
            else []
        )
    own = [run for run in tagged if names.JOINS not in run.data.tags]
    return [
        to_row(run, _recorded_params(workspace, run))
        for run in own
        if not study or study in run.data.tags.get(names.STUDY, "").split(",")
    ]


def _recorded_params(workspace: Workspace, run: Run) -> Mapping[str, str]:
    """Return the params of what was trained.

    Of a run that ``mlflow run`` has made, those logged first are what the user has given, such as 50 epochs with ``fast``, which stay
    though two were trained: there the recorded configuration counts.
    """
    params: dict[str, str] = dict(run.data.params)
    if _LAUNCHED not in run.data.tags:
        return params
    with tempfile.TemporaryDirectory() as folder:
        try:
            text = artifacts.download_artifact(
                workspace, run.info.run_id, names.CONFIG, Path(folder)
            ).read_text(encoding="utf-8")
            configuration = parse(Configuration, parse_yaml(text), names.CONFIG)
        except (UserError, yaml.YAMLError):
            # It was stopped before that, or is a stranger's.
            return params
    return params | {name: as_param(value) for name, value in configuration.flat().items()}


def as_param(value: Any) -> str:
    """Return a value as the text of a param."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def quote(text: str) -> str:
    """Return a text as it stands between quotes in a filter of MLflow's."""
    return text.replace("'", "\\'")


def to_row(run: Run, params: Mapping[str, str] | None = None) -> Row:
    """Return what the comparison and the ranking need of one run; `params` instead of its own, where they are known better."""
    tags, metrics = run.data.tags, run.data.metrics
    params = run.data.params if params is None else params
    found: Row = {
        "run_id": run.info.run_id,
        "run_name": run.info.run_name,
        "state": tags.get(names.STATE, STATE_OF_STATUS.get(run.info.status, names.RUNNING)),
    }
    found |= {column: typed(name, params.get(name)) for column, name in _PARAMS.items()}
    found |= {column: metrics.get(name) for column, name in _METRICS.items()}
    found |= {
        "config_hash": tags.get(names.CONFIG_HASH) or _hash_of_params(params),
        "data_digest": tags.get(names.DATA_DIGEST, ""),
    }
    found |= {
        "start_time": run.info.start_time,
        "trial": tags.get(names.TRIAL),
        "fold": params.get("data.fold", "0"),
        "study": tags.get(names.STUDY, ""),
        "reason": tags.get(names.REASON, ""),
    }
    return found | _ranked_by(params, metrics) | {"params": dict(params)}


def _ranked_by(params: Mapping[str, str], metrics: Mapping[str, float]) -> Row:
    """Return the metric that a run ranks by, its value on validation and test images, and the score: the higher the better."""
    metric = params.get("training.best_metric", ranking.DEFAULT)
    value = metrics.get(ranking.best_name(metric))
    score = None if value is None else ranking.score(value, metric)
    return {
        "metric": metric,
        "value": value,
        "score": score,
        "test_value": metrics.get(ranking.on_test(metric)),
    }


def typed(name: str, value: str | None) -> Any:
    """Return a param's value as a number where the field of that name is one."""
    field = field_info(name)
    kind = field.annotation if field else None
    if value is None or kind not in (int, float):
        return value
    try:
        return kind(value)
    except ValueError:
        return value


def _hash_of_params(params: Mapping[str, str]) -> str:
    """Give a run without a hash one from its params over the defaults, as the first release did; empty where they make no configuration.

    Of files that params name nobody knows what they held, and a network's file would be run to find that out.
    """
    try:
        known = {
            name: parse_yaml(value) if value.startswith(("[", "{")) else value
            for name, value in params.items()
            if field_info(name)
        }
        known = {name: value for name, value in known.items() if value != "null"}
        if not known or any(
            ":" in str(known.get(name, "")) for name in ("model.name", "model.weights")
        ):
            return ""
        configuration = parse(
            Configuration,
            {section: fields for section, fields in nest(known).items() if section != "study"},
            "params",
        )
        return config_hash(configuration, models.origin(configuration.model), FIRST_RELEASE)
    except (UserError, yaml.YAMLError):
        return ""


def metric_history(workspace: Workspace, run_id: str, metric: str) -> dict[int, float]:
    """Return a metric of a run by epoch: of one that was trained again the last value, NaN of one that is gone (see `EpochLog`)."""
    logged = sorted(
        workspace.client.get_metric_history(run_id, metric),
        key=lambda entry: (entry.step, entry.timestamp),
    )
    return {entry.step: entry.value for entry in logged}


def find_complete_training(workspace: Workspace, identity: TrainingIdentity) -> Row | None:
    """Return the complete training of that identity in this experiment, if there is one."""
    found = _search_training(
        workspace, identity, {names.STEP: "train", names.STATE: names.COMPLETE}
    )
    rows = [to_row(run) for run in found if names.JOINS not in run.data.tags]
    same = [row for row in rows if _is_same(row, identity)]
    return same[0] if same else None


def find_unfinished_training(
    workspace: Workspace, study: str, identity: TrainingIdentity, begun: Collection[str]
) -> str:
    """Return the run id of a study's latest training of that identity that can go on.

    It is running, was interrupted, or failed for a reason that may have passed. The id is empty if
    there is none.

    Args:
        workspace: The open store.
        study: Name of the study.
        identity: The training.
        begun: Run ids that the study itself has noted: anybody may write tags like theirs.
    """
    rows = []
    for run in _search_training(workspace, identity, {}):
        tags = run.data.tags
        is_own = run.info.run_id in begun and names.is_uid(tags.get(names.UID, run.info.run_id))
        if is_own and study in tags.get(names.STUDY, "").split(",") and _can_go_on(run):
            rows.append(to_row(run))
    same = [row for row in rows if _is_same(row, identity)]
    if not same:
        return ""
    return str(max(same, key=itemgetter("start_time"))["run_id"])


def _search_training(
    workspace: Workspace, identity: TrainingIdentity, further_tags: Mapping[str, str]
) -> list[Run]:
    """Return the runs of this experiment with a configuration and images, whatever their seed."""
    tags = {
        names.EXPERIMENT: workspace.experiment,
        **further_tags,
        names.CONFIG_HASH: identity.config_hash,
        names.DATA_DIGEST: identity.data_digest,
    }
    conditions = [f"tags.`{key}` = '{quote(value)}'" for key, value in tags.items()]
    return search(workspace, " and ".join(conditions))


def _is_same(row: Row, identity: TrainingIdentity) -> bool:
    return bool(row["seed"] == identity.seed and row["fold"] == str(identity.fold))


def _can_go_on(run: Run) -> bool:
    tags = run.data.tags
    # Release 0.1.0 tags the reason of a failure only.
    retry = tags.get(
        names.RETRY, "false" if "is not finite" in tags.get(names.REASON, "") else "true"
    )
    state = to_row(run)["state"]
    return state in (names.RUNNING, names.INTERRUPTED) or (
        state == names.FAILED and retry == "true"
    )


def find_by_uid(workspace: Workspace, uid: str) -> list[str]:
    """Return the ids of the runs that have a uid."""
    return [
        str(run.info.run_id) for run in search(workspace, f"tags.`{names.UID}` = '{quote(uid)}'")
    ]


def find_running(workspace: Workspace, experiment: str = "") -> list[Run]:
    """Return the runs that are RUNNING, of one experiment of ours or of all."""
    of_experiment = f" and tags.`{names.EXPERIMENT}` = '{quote(experiment)}'" if experiment else ""
    return search(workspace, f"attributes.status = 'RUNNING'{of_experiment}")


def list_experiments(workspace: Workspace) -> list[str]:
    """Return the names of all experiments that have runs of ours."""
    return sorted(
        {
            run.data.tags[names.EXPERIMENT]
            for run in search(workspace, f"tags.`{names.STEP}` != ''")
            if names.EXPERIMENT in run.data.tags and run.data.tags[names.STEP] != "reconcile"
        }
    )
