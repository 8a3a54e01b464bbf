"""Runs and studies read back from MLflow, as plain rows."""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any

import yaml
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException

from pipeline import models, ranking
from pipeline.config import Configuration, field_info, nest, parse, parse_yaml
from pipeline.errors import UserError, first_line
from pipeline.identity import FIRST_RELEASE, TrainingIdentity, config_hash
from pipeline.tracking import artifacts, names
from pipeline.tracking.workspace import Workspace

Row = dict[str, Any]
"""What `to_row` returns of a run, by column."""

_NO_SUCH = "RESOURCE_DOES_NOT_EXIST"
_LAUNCHED = "mlflow.project.entryPoint"
"""Tag of runs that ``mlflow run`` has made."""

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
    "ece": "test/ece",
    "ece_by_chance": "test/ece_by_chance",
    "multiply_adds": names.MULTIPLY_ADDS,
    "images_per_second": names.SPEED,
    "weights_bytes": names.WEIGHTS_BYTES,
}
_OF_RANKING = ("val_accuracy", "val_loss", "best_epoch")
"""Columns that are as they are: runs of other programs may rank by percents."""
_SHARES = (
    "test_accuracy",
    "test_accuracy_low",
    "test_accuracy_high",
    "majority_rate",
    "ece",
    "ece_by_chance",
)
_HUGE = 1e300
"""MLflow stores infinity as 1.8e308."""


def search(
    workspace: Workspace,
    filter_string: str,
    experiment_ids: list[str] | None = None,
    view: int = ViewType.ACTIVE_ONLY,
) -> Iterator[Run]:
    """Yield all runs that a filter of MLflow's finds, by default in all MLflow experiments.

    They are read a thousand at a time: ten thousand at once take a gigabyte.
    """
    ids = experiment_ids or [found.experiment_id for found in workspace.client.search_experiments()]
    token: str | None = None
    while True:
        with _collect_no_garbage():
            page = workspace.client.search_runs(
                ids, filter_string, view, max_results=1000, page_token=token
            )
        yield from page
        token = page.token
        if not token:
            return


@contextmanager
def _collect_no_garbage() -> Iterator[None]:
    """Pause Python's search for cycles of garbage.

    MLflow makes a hundred objects for each run, of which none is garbage yet. To look through them
    again and again is half the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def get_run(workspace: Workspace, run_id: str, even_deleted: bool = False) -> Run:
    """Return a run.

    Args:
        workspace: The open store.
        run_id: Id of the run.
        even_deleted: Return the run also if it is deleted. A deleted run keeps its artifacts.

    Raises:
        UserError: There is no run of that id, or it is deleted and `even_deleted` is not set.
    """
    try:
        run = workspace.client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in (_NO_SUCH, "INVALID_PARAMETER_VALUE"):
            raise
        raise UserError(f"run_id: there is no run {run_id!r} in {workspace.uri}") from None
    if run.info.lifecycle_stage != "active" and not even_deleted:
        raise UserError(
            f"run_id: run {run_id} ({run.info.run_name}) is deleted; "
            f"`mlflow runs restore --run-id {run_id}` brings it back"
        )
    return run


def get_lifecycle(workspace: Workspace, run_id: str) -> str:
    """Return ``active`` or ``deleted``, or an empty string if this store has no run of that id."""
    try:
        return str(workspace.client.get_run(run_id).info.lifecycle_stage)
    except MlflowException as error:
        if error.error_code not in (_NO_SUCH, "INVALID_PARAMETER_VALUE"):
            # A server that does not answer says nothing about the run.
            raise
        return ""


def find_trainings(workspace: Workspace, study: str = "", condition: str = "") -> list[Row]:
    """Return one row for each training of the experiment, or of one of its studies.

    Runs are found by the tag ``pipeline.experiment``. If no run has it, they are looked for in the
    MLflow experiment of that name.

    Args:
        workspace: The open store.
        study: Name of the study, or empty.
        condition: A further filter in MLflow's words, or empty.

    Raises:
        UserError: The filter is none.
    """
    conditions = [
        f"tags.`{names.EXPERIMENT}` = '{quote(workspace.experiment)}'",
        f"tags.`{names.STEP}` = 'train'",
    ]
    if study:
        # A training may belong to several studies. Their names stand in one tag.
        conditions.append(f"tags.`{names.STUDY}` LIKE '%{quote(study)}%'")
    if condition:
        conditions.append(condition)
    try:
        runs = search(workspace, " and ".join(conditions))
        rows = [to_row(run, _load_params(workspace, run)) for run in runs if _is_of(study, run)]
        if not rows and not study:
            runs = _find_untagged_trainings(workspace, condition)
            rows = [to_row(run, _load_params(workspace, run)) for run in runs]
    except MlflowException as error:
        if not condition or error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        raise UserError(f"filter: {condition!r} given; {first_line(error)}") from None
    return rows


def _is_of(study: str, run: Run) -> bool:
    """Whether a run is a training of a study, or if that is empty, any training."""
    is_wanted = not study or _is_of_study(run, study)
    return is_wanted and names.JOINS not in run.data.tags


def _find_untagged_trainings(workspace: Workspace, condition: str) -> Iterator[Run]:
    experiment = workspace.client.get_experiment_by_name(workspace.experiment)
    if experiment:
        for run in search(workspace, condition, [experiment.experiment_id]):
            if run.data.metrics and names.STEP not in run.data.tags:
                yield run


def _is_of_study(run: Run, study: str) -> bool:
    return study in run.data.tags.get(names.STUDY, "").split(",")


def _load_params(workspace: Workspace, run: Run) -> Mapping[str, str]:
    """Return the params of what was trained.

    If ``mlflow run`` has made the run, its params are first what the user has given. They stay as
    they are, for example 50 epochs although two were trained with ``fast``. So for these runs the
    recorded configuration counts.
    """
    params: dict[str, str] = dict(run.data.params)
    if _LAUNCHED not in run.data.tags:
        return params
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = artifacts.download_artifact(
                workspace, run.info.run_id, names.CONFIG, Path(folder)
            )
            text = file.read_text(encoding="utf-8")
            configuration = parse(Configuration, parse_yaml(text), names.CONFIG)
        except (UserError, yaml.YAMLError):
            # The run was stopped before its configuration was logged, or is not of this pipeline.
            return params
    return params | {name: as_param(value) for name, value in configuration.flat().items()}


def as_param(value: Any) -> str:
    """Return a value as the text of a param."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def quote(text: str) -> str:
    """Return a text in the form that it has between quotes in a filter of MLflow's."""
    return text.replace("'", "\\'")


def to_row(run: Run, params: Mapping[str, str] | None = None) -> Row:
    """Return what the comparison and the ranking need of one run.

    Args:
        run: The run.
        params: Params that are taken instead of the run's own.
    """
    tags = run.data.tags
    metrics = run.data.metrics
    if params is None:
        params = run.data.params
    found: Row = {
        "run_id": run.info.run_id,
        "uid": tags.get(names.UID, ""),
        "run_name": run.info.run_name,
        "state": tags.get(names.STATE, STATE_OF_STATUS.get(run.info.status, names.RUNNING)),
    }
    found |= {column: typed(name, params.get(name)) for column, name in _PARAMS.items()}
    for column, name in _METRICS.items():
        found[column] = _plausible(column, metrics.get(name))
    found |= {
        "config_hash": tags.get(names.CONFIG_HASH) or _compute_hash(params),
        "data_digest": tags.get(names.DATA_DIGEST, ""),
        "start_time": run.info.start_time,
        "trial": tags.get(names.TRIAL),
        "is_searched": tags.get(names.SEARCHED) == "true",
        "fold": params.get("data.fold", "0"),
        "study": tags.get(names.STUDY, ""),
        "reason": tags.get(names.REASON, ""),
        "test_images": _count_images(names.TEST_IMAGES, params, metrics),
        "val_images": _count_images(names.VAL_IMAGES, params, metrics),
        "flags": _load_flags(tags),
        "has_weights": tags.get(names.WEIGHTS) != names.REMOVED,
        "measured_on": tags.get(names.COST, "").partition(" pixels, ")[2],
    }
    return found | _ranking_columns(params, metrics) | {"params": dict(params)}


def _plausible(column: str, value: float | None) -> float | None:
    """Return a metric; None if it cannot be what it is called: anybody may write to a store."""
    if value is None or column in _OF_RANKING:
        return value
    most = 1.0 if column in _SHARES else _HUGE
    return value if 0 <= value <= most else None


def _load_flags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the flags of a training, by name."""
    flags = {}
    for name, text in tags.items():
        if name.startswith(names.FLAG):
            flags[name.removeprefix(names.FLAG)] = text
    return flags


def _count_images(name: str, params: Mapping[str, str], metrics: Mapping[str, float]) -> int | None:
    """Return the number of images of a split, or None if the run has not logged it."""
    given = params.get(name) or metrics.get(name)
    try:
        number = int(float(given)) if given else 0
        return number if 0 < number < _HUGE else None
    except (ValueError, OverflowError):
        # A param that anybody may write.
        return None


def _ranking_columns(params: Mapping[str, str], metrics: Mapping[str, float]) -> Row:
    """Return a run's metric for ranking, its values on validation and test images, and the score.

    A higher score is better.
    """
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
    """Return a param's value, as a number if the configuration field of that name is one."""
    field = field_info(name)
    kind = field.annotation if field else None
    if value is None or kind not in (int, float):
        return value
    try:
        return kind(value)
    except ValueError:
        return value


def _compute_hash(params: Mapping[str, str]) -> str:
    """Return the hash of a run that has none, from its params over the defaults.

    Release 0.1.0 did the same. The hash is empty if the params make no configuration, or if they
    name files: nobody knows what the files held, and a network's file would be run to find out.
    """
    try:
        known = _parse_params(params)
        named = [str(known.get(field, "")) for field in ("model.name", "model.weights")]
        if not known or any(":" in text for text in named):
            return ""
        sections = nest(known)
        sections.pop("study", None)
        configuration = parse(Configuration, sections, "params")
        return config_hash(configuration, models.origin(configuration.model), FIRST_RELEASE)
    except (UserError, yaml.YAMLError):
        return ""


def _parse_params(params: Mapping[str, str]) -> Row:
    """Return the values of the params that are fields of a configuration, without null."""
    known: Row = {}
    for name, text in params.items():
        if field_info(name) and text != "null":
            known[name] = parse_yaml(text) if text.startswith(("[", "{")) else text
    return known


def metric_history(workspace: Workspace, run_id: str, metric: str) -> dict[int, float]:
    """Return a metric of a run by epoch.

    An epoch that was trained again has its last value, and an epoch that is gone has NaN (see
    `EpochLog`).
    """
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
    same = [row for row in rows if _is_same(row, identity) and _is_of_use(row)]
    return same[0] if same else None


def _is_of_use(row: Row) -> bool:
    """Whether a complete training is evaluated, or still can be."""
    return bool(row["has_weights"]) or row["test_accuracy"] is not None


def find_ended(workspace: Workspace, study: str) -> set[str]:
    """Return the uids of a study's trainings that the store knows to have ended.

    A run that was deleted counts: nobody ends it any more.
    """
    # A training may belong to several studies. Their names stand in one tag.
    named = f"tags.`{names.STUDY}` LIKE '%{quote(study)}%'"
    found, running = set(), set()
    for run in search(workspace, f"{named} and tags.`{names.STEP}` = 'train'", view=ViewType.ALL):
        if not _is_of_study(run, study):
            continue
        uid = run.data.tags.get(names.UID, "")
        found.add(uid)
        is_running = run.data.tags.get(names.STATE, names.RUNNING) == names.RUNNING
        if is_running and run.info.lifecycle_stage == "active":
            running.add(uid)
    # A double that a late answer has made is deleted while the run itself goes on.
    return found - running


def find_unfinished_training(
    workspace: Workspace,
    study: str,
    identity: TrainingIdentity,
    begun: Collection[str],
    are_own: bool = False,
) -> str:
    """Return the run id of a study's latest training of that identity that can go on.

    It is running, was interrupted, or failed for a reason that may have passed. The id is empty if
    there is none.

    Args:
        workspace: The open store.
        study: Name of the study.
        identity: The training.
        begun: Ids and uids of runs that the study itself has noted. Only these count, since anybody
            may write such tags.
        are_own: Whether these are runs of this very training. Then one also counts whose worker
            died before it had logged any param.
    """
    rows = []
    for run in _search_training(workspace, identity, {}):
        run_id = run.info.run_id
        uid = run.data.tags.get(names.UID, run_id)
        is_own = (run_id in begun or uid in begun) and names.is_uid(uid)
        if is_own and _is_of_study(run, study) and _can_go_on(run):
            rows.append(to_row(run))
    same = []
    for row in rows:
        if _is_same(row, identity) or (are_own and not row["params"]):
            same.append(row)
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
    return list(search(workspace, " and ".join(conditions)))


def _is_same(row: Row, identity: TrainingIdentity) -> bool:
    return bool(row["seed"] == identity.seed and row["fold"] == str(identity.fold))


def _can_go_on(run: Run) -> bool:
    tags = run.data.tags
    state = to_row(run)["state"]
    if state != names.FAILED:
        return state in (names.RUNNING, names.INTERRUPTED)
    if names.RETRY in tags:
        return bool(tags[names.RETRY] == "true")
    # Release 0.1.0 only tags the reason of a failure.
    return "is not finite" not in tags.get(names.REASON, "")


def find_by_uid(workspace: Workspace, uid: str) -> list[str]:
    """Return the ids of the runs that have a uid."""
    runs = search(workspace, f"tags.`{names.UID}` = '{quote(uid)}'")
    return [str(run.info.run_id) for run in runs]


def find_running(workspace: Workspace, experiment: str = "") -> list[Run]:
    """Return the runs that are RUNNING, of one experiment of ours or of all."""
    condition = "attributes.status = 'RUNNING'"
    if experiment:
        condition += f" and tags.`{names.EXPERIMENT}` = '{quote(experiment)}'"
    return list(search(workspace, condition))


def list_experiments(workspace: Workspace) -> list[str]:
    """Return the names of all experiments that have runs of ours."""
    found: set[str] = set()
    for run in search(workspace, f"tags.`{names.STEP}` != ''"):
        tags = run.data.tags
        if names.EXPERIMENT in tags and tags[names.STEP] != "reconcile":
            found.add(tags[names.EXPERIMENT])
    return sorted(found)
