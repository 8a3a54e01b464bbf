"""Register a trained network as the champion of a name."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.jobs.restore import complete_run, restore
from pipeline.jobs.summarise import compare
from pipeline.tracking import find, names, registry
from pipeline.tracking.store import Workspace


@dataclass(frozen=True)
class Champion:
    """What was registered."""

    name: str
    version: str
    run_id: str
    run_name: str
    passed_over: int

    @property
    def uri(self) -> str:
        """Model URI for predict and serving."""
        return f"models:/{self.name}@{registry.CHAMPION}"


def export(workspace: Workspace, run_id: str) -> str:
    """Log the network of a complete run as LoggedModel, where it is not yet; return the model's id."""
    existing = registry.logged_model(workspace, run_id)
    if existing:
        return existing
    restored = restore(workspace, run_id)
    return registry.log_model(workspace, run_id, restored.network, restored.classes, restored.preprocessing)


def promote(workspace: Workspace, name: str, run_id: str = "", study: str = "", metric: str = "") -> Champion:
    """Register a run, or the best evaluated complete run of a study, under `name` as ``champion``.

    Raises:
        UserError: The run is not complete, or none is evaluated yet.
    """
    passed_over = 0
    if not run_id:
        compared = compare(workspace, study, metric)
        evaluated = compared.ranked(evaluated=True)
        if not evaluated:
            raise UserError(f"no complete run of {compared.study or workspace.experiment} is evaluated yet; run the step evaluate first")
        run_id = evaluated[0]["run_id"]
        passed_over = [row["run_id"] for row in compared.ranked()].index(run_id)
    run = complete_run(workspace, run_id)
    export(workspace, run_id)
    row = find.row(run)
    described = {
        names.DATA_DIGEST: row["data_digest"],
        names.CONFIG_HASH: row["config_hash"],
        "run_id": run_id,
        "classes": _classes(workspace, run_id),
        "preprocessing": json.dumps(_json_artifact(workspace, run_id, names.PREPROCESSING)),
        **{key.replace("/", "."): f"{value:.6g}" for key, value in run.data.metrics.items() if key.startswith(("best/", "test/"))},
    }
    version = registry.register(workspace, run_id, name, described)
    return Champion(name, version, run_id, str(run.info.run_name), passed_over)


def _classes(workspace: Workspace, run_id: str) -> str:
    """Return the names of the classes as JSON; of more than a tag can hold, how many there are and which artifact lists them."""
    classes = _json_artifact(workspace, run_id, names.CLASSES)
    whole = json.dumps(classes, ensure_ascii=False)
    if len(whole) <= registry.LONGEST_TAG:
        return whole
    return json.dumps({"count": len(classes), "artifact": f"runs:/{run_id}/{names.CLASSES}"})


def _json_artifact(workspace: Workspace, run_id: str, name: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return json.loads(find.artifact(workspace, run_id, name, Path(folder)).read_text(encoding="utf-8"))
