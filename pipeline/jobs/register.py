"""Register a trained network as the champion of a name."""

from __future__ import annotations

import json
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.jobs.recorded_run import get_complete_run, restore_network
from pipeline.jobs.summary import Summary
from pipeline.report.format import format_percent
from pipeline.tracking import artifacts, export, find_runs, names, registry, study_runs
from pipeline.tracking.run_log import RunLog
from pipeline.tracking.workspace import Workspace


@dataclass(frozen=True)
class Champion:
    """What was registered.

    Attributes:
        name: Name of the registered model.
        version: Version of the registered model.
        run_id: Id of the run that trained it.
        run_name: Name of that run.
        replaced: Description of the champion whose place it takes, if that one is of another study,
            or is better; else empty.
    """

    name: str
    version: str
    run_id: str
    run_name: str
    replaced: str

    @property
    def uri(self) -> str:
        """Model URI for predict and serving."""
        return f"models:/{self.name}@{registry.CHAMPION}"

    @property
    def described(self) -> str:
        """Sentence that names model, version and run, and the champion that is replaced."""
        replaces = f"; it replaces {self.replaced}" if self.replaced else ""
        return (
            f"champion: {self.uri}, version {self.version}: "
            f"run {self.run_id} ({self.run_name}){replaces}"
        )


def export_model(workspace: Workspace, run_id: str) -> str:
    """Log the network of a complete run as LoggedModel; return the model's id.

    If that has been done before, nothing is logged.
    """
    existing = export.find_logged_model(workspace, run_id)
    if existing:
        return existing
    restored = restore_network(workspace, run_id)
    export.log_model(
        RunLog(workspace, run_id),
        restored.network,
        restored.classes,
        restored.preprocessing,
        1.0 if restored.temperature is None else restored.temperature,
    )
    return export.find_logged_model(workspace, run_id)


def find_best_evaluated(compared: Summary) -> tuple[str, int]:
    """Return the best run that is evaluated, and how many rank higher but are not.

    Raises:
        UserError: No run is evaluated yet.
    """
    evaluated = compared.ranked(evaluated=True)
    if not evaluated:
        raise UserError(
            f"no complete run of {compared.study or 'the experiment'} is evaluated yet; "
            "run the step evaluate first"
        )
    run_id = str(evaluated[0]["run_id"])
    ranked = [row["run_id"] for row in compared.ranked()]
    return run_id, ranked.index(run_id)


def register(workspace: Workspace, name: str, run_id: str) -> Champion:
    """Register a complete run under `name` as ``champion``.

    Raises:
        UserError: The run is not complete.
    """
    run = get_complete_run(workspace, run_id)
    export_model(workspace, run_id)
    row = find_runs.to_row(run)
    replaced = _describe_replaced(workspace, name, run_id, row)
    described = {
        names.EXPERIMENT: run.data.tags.get(names.EXPERIMENT, ""),
        names.STUDY: row["study"],
        names.DATA_DIGEST: row["data_digest"],
        names.CONFIG_HASH: row["config_hash"],
        "run_id": run_id,
        "classes": _describe_classes(workspace, run_id),
        "preprocessing": json.dumps(_load_json(workspace, run_id, names.PREPROCESSING)),
    }
    for key, value in run.data.metrics.items():
        if key.startswith(("best/", "test/")):
            described[key.replace("/", ".")] = f"{value:.6g}"
    version = registry.register(workspace, run_id, name, described)
    return Champion(name, version, run_id, str(run.info.run_name), replaced)


def _describe_replaced(workspace: Workspace, name: str, run_id: str, row: find_runs.Row) -> str:
    """Describe the champion whose place a run takes.

    The text is empty if there is no champion yet, or if it is the same run, or of the same study
    and no better on the validation images.
    """
    before = registry.champion(workspace, name)
    if before is None or before.run_id == run_id:
        return ""
    study = before.tags.get(names.STUDY) or study_runs.studies_of_run(workspace, before.run_id)
    accuracy, is_better = "unknown", False
    with suppress(KeyError, ValueError):
        value = float(before.tags["best.val_accuracy"])
        accuracy = format_percent(value)
        # The version has six digits of it.
        is_better = value > float(f"{row['val_accuracy']:.6g}")
    is_shared = set(study.split(",")) & set(str(row["study"]).split(",")) - {""}
    # A run may be of two studies, in one of which another run is better.
    if is_shared and not is_better:
        return ""
    scores = f"validation accuracy {accuracy}, now {format_percent(row['val_accuracy'])}"
    return f"version {before.version} of {study or 'no study'} ({scores})"


def _describe_classes(workspace: Workspace, run_id: str) -> str:
    """Return the names of the classes as JSON.

    If a tag cannot hold them, return their number and the artifact that lists them instead.
    """
    classes = _load_json(workspace, run_id, names.CLASSES)
    whole = json.dumps(classes, ensure_ascii=False)
    if len(whole) <= registry.LONGEST_TAG:
        return whole
    return json.dumps({"count": len(classes), "artifact": f"runs:/{run_id}/{names.CLASSES}"})


def _load_json(workspace: Workspace, run_id: str, name: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        file = artifacts.download_artifact(workspace, run_id, name, Path(folder))
        return json.loads(file.read_text(encoding="utf-8"))
