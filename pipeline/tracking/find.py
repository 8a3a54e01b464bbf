"""Runs and studies read back from MLflow, as plain rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from mlflow.artifacts import download_artifacts
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from pipeline import models, ranking
from pipeline.config import Configuration, field_info, nest, parse
from pipeline.errors import UserError, nearest
from pipeline.identity import FIRST_RELEASE, config_hash
from pipeline.tracking import names
from pipeline.tracking.store import Workspace

Row = dict[str, Any]

_NO_SUCH = "RESOURCE_DOES_NOT_EXIST"

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


def _search(workspace: Workspace, filter_string: str, experiment_ids: list[str] | None = None) -> list[Run]:
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
        raise UserError(f"run_id: run {run_id} ({run.info.run_name}) is deleted; `mlflow runs restore --run-id {run_id}` brings it back")
    return run


def exists(workspace: Workspace, run_id: str) -> bool:
    """Whether a run is there and not deleted."""
    try:
        return str(workspace.client.get_run(run_id).info.lifecycle_stage) == "active"
    except MlflowException as error:
        if error.error_code != _NO_SUCH:
            # A server that does not answer says nothing about the run.
            raise
        return False


def trainings(workspace: Workspace, study: str = "") -> list[Row]:
    """Return a row per training of the experiment, or of one of its studies.

    Runs are found by the tag ``pipeline.experiment``, else in the MLflow experiment of that name.
    """
    tagged = _search(workspace, f"tags.`{names.EXPERIMENT}` = '{_quoted(workspace.experiment)}' and tags.`{names.STEP}` = 'train'")
    if not tagged and not study:
        by_name = workspace.client.get_experiment_by_name(workspace.experiment)
        tagged = (
            [run for run in _search(workspace, "", [by_name.experiment_id]) if run.data.metrics and names.STEP not in run.data.tags]
            if by_name
            else []
        )
    own = [run for run in tagged if names.JOINS not in run.data.tags]
    return [row(run) for run in own if not study or study in run.data.tags.get(names.STUDY, "").split(",")]


def _quoted(text: str) -> str:
    return text.replace("'", "\\'")


def row(run: Run) -> Row:
    """Return what the comparison and the ranking need of one run."""
    tags, params, metrics = run.data.tags, run.data.params, run.data.metrics
    found: Row = {
        "run_id": run.info.run_id,
        "run_name": run.info.run_name,
        "state": tags.get(names.STATE, STATE_OF_STATUS.get(run.info.status, names.RUNNING)),
    }
    found |= {column: _typed(name, params.get(name)) for column, name in _PARAMS.items()}
    found |= {column: metrics.get(name) for column, name in _METRICS.items()}
    found |= {"config_hash": tags.get(names.CONFIG_HASH) or _hash_of_params(params), "data_digest": tags.get(names.DATA_DIGEST, "")}
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
    return {"metric": metric, "value": value, "score": score, "test_value": metrics.get(ranking.on_test(metric))}


def _typed(name: str, value: str | None) -> Any:
    field = field_info(name)
    kind = field.annotation if field else None
    if value is None or kind not in (int, float):
        return value
    try:
        return kind(value)
    except ValueError:
        return value


def _hash_of_params(params: Mapping[str, str]) -> str:
    """Give a run without a hash one from its params over the defaults, as the first release did; empty where they make no configuration."""
    if not any(field_info(name) for name in params):
        return ""
    known = {name: yaml.safe_load(value) if value[:1] in "[{" else value for name, value in params.items() if field_info(name)}
    try:
        configuration = parse(Configuration, {section: fields for section, fields in nest(known).items() if section != "study"}, "params")
        return config_hash(configuration, models.origin(configuration.model), FIRST_RELEASE)
    except (UserError, yaml.YAMLError):
        return ""


def complete_training(workspace: Workspace, config_hash: str, seed: int, fold: int, data_digest: str) -> Row | None:
    """Return the complete training of that identity in this experiment, if there is one."""
    tags = {names.EXPERIMENT: workspace.experiment, names.STEP: "train", names.STATE: names.COMPLETE, names.CONFIG_HASH: config_hash}
    tags[names.DATA_DIGEST] = data_digest
    found = _search(workspace, " and ".join(f"tags.`{key}` = '{_quoted(value)}'" for key, value in tags.items()))
    rows = [row(run) for run in found if names.JOINS not in run.data.tags]
    return next((found for found in rows if found["seed"] == seed and found["fold"] == str(fold)), None)


def unfinished_training(workspace: Workspace, study: str, config_hash: str, seed: int, fold: int, data_digest: str) -> str:
    """Return the run id of a study's training of that identity that is running or was interrupted, the latest one, or an empty string."""
    tags = {names.EXPERIMENT: workspace.experiment, names.CONFIG_HASH: config_hash, names.DATA_DIGEST: data_digest}
    found = _search(workspace, " and ".join(f"tags.`{key}` = '{_quoted(value)}'" for key, value in tags.items()))
    rows = [row(run) for run in found if study in run.data.tags.get(names.STUDY, "").split(",")]
    unfinished = [one for one in rows if one["state"] in (names.RUNNING, names.INTERRUPTED)]
    same = [one for one in unfinished if one["seed"] == seed and one["fold"] == str(fold)]
    return str(max(same, key=lambda one: one["start_time"])["run_id"]) if same else ""


def running(workspace: Workspace, experiment: str = "") -> list[Run]:
    """Return the runs that are RUNNING, of one experiment of ours or of all."""
    of_experiment = f" and tags.`{names.EXPERIMENT}` = '{_quoted(experiment)}'" if experiment else ""
    return _search(workspace, f"attributes.status = 'RUNNING'{of_experiment}")


def studies(workspace: Workspace) -> dict[str, Run]:
    """Return the parent run of each study of the experiment by the study's name, latest first."""
    filter_string = f"tags.`{names.EXPERIMENT}` = '{_quoted(workspace.experiment)}' and tags.`{names.STUDY}` != ''"
    parents = [
        run
        for run in _search(workspace, filter_string)
        if run.data.tags.get(names.STEP) in ("tune", "main") and names.JOINS not in run.data.tags
    ]
    found: dict[str, Run] = {}
    for run in sorted(parents, key=lambda run: run.info.start_time, reverse=True):
        found.setdefault(run.data.tags[names.STUDY], run)
    return found


def study_parent(workspace: Workspace, name: str) -> str:
    """Return the parent run id of a study that MLflow knows, or an empty string."""
    run = studies(workspace).get(name)
    return str(run.info.run_id) if run else ""


def choose_study(workspace: Workspace, name: str) -> tuple[str, str]:
    """Return name and parent run id of the named study, or of the latest; ("", "") where there is none.

    Raises:
        UserError: No study of that name.
    """
    found = studies(workspace)
    if name and name not in found:
        raise UserError(
            f"study.name: no study {name!r} in experiment {workspace.experiment!r}{nearest(name, found)}; "
            f"there are: {', '.join(found) or 'none'}"
        )
    chosen = name or next(iter(found), "")
    return (chosen, found[chosen].info.run_id) if chosen else ("", "")


def known_experiments(workspace: Workspace) -> list[str]:
    """Return the names of all experiments that have runs of ours."""
    return sorted(
        {
            run.data.tags[names.EXPERIMENT]
            for run in _search(workspace, f"tags.`{names.STEP}` != ''")
            if names.EXPERIMENT in run.data.tags and run.data.tags[names.STEP] != "reconcile"
        }
    )


def listed(workspace: Workspace, run_id: str, folder: str) -> list[str]:
    """Return the paths of all files among a run's artifacts in a folder, and in those below it."""
    found: list[str] = []
    for entry in workspace.client.list_artifacts(run_id, folder):
        found += listed(workspace, run_id, entry.path) if entry.is_dir else [entry.path]
    return found


def artifact(workspace: Workspace, run_id: str, name: str, folder: Path) -> Path:
    """Download one artifact of a run into `folder`.

    Raises:
        UserError: The run has no such artifact.
    """
    try:
        return Path(download_artifacts(run_id=run_id, artifact_path=name, dst_path=str(folder), tracking_uri=workspace.uri))
    except (MlflowException, OSError):
        raise UserError(
            f"run {run_id} has no artifact {name}; it is not a training of this pipeline, or was stopped before its first epoch"
        ) from None
