"""A trained network back from its run."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from pipeline import models
from pipeline.config import Configuration, parse
from pipeline.data.transforms import Preprocessing
from pipeline.errors import UserError
from pipeline.tracking import find, names
from pipeline.tracking.store import Workspace
from pipeline.weights import load_state


@dataclass(frozen=True)
class Restored:
    """A run's configuration and its network with the best weights, on the CPU in evaluation mode."""

    configuration: Configuration
    network: nn.Module
    classes: list[str]
    preprocessing: Preprocessing
    data_digest: str


def complete_run(workspace: Workspace, run_id: str) -> Any:
    """Return a complete training, as MLflow's Run.

    Raises:
        UserError: No such run, no training, or not complete.
    """
    run = find.get_run(workspace, run_id)
    step, state = run.data.tags.get(names.STEP), find.row(run)["state"]
    if step not in ("train", None) or not run.data.params:
        raise UserError(f"run_id: run {run_id} is a {step} run; a training is needed")
    if state != names.COMPLETE:
        raise UserError(f"run_id: run {run_id} ({run.info.run_name}) is {state}; only a complete training can be used")
    return run


def restore(workspace: Workspace, run_id: str) -> Restored:
    """Rebuild the network of a complete run from its artifacts.

    Raises:
        UserError: The run is not complete, or its artifacts are missing.
    """
    run = complete_run(workspace, run_id)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        raw = yaml.safe_load(find.artifact(workspace, run_id, names.CONFIG, folder).read_text(encoding="utf-8"))
        configuration = parse(Configuration, raw, f"run {run_id}: {names.CONFIG}")
        classes = json.loads(find.artifact(workspace, run_id, names.CLASSES, folder).read_text(encoding="utf-8"))
        preprocessing = Preprocessing.from_dict(json.loads(find.artifact(workspace, run_id, names.PREPROCESSING, folder).read_text()))
        model = configuration.model.model_copy(update={"freeze": "none"})
        if model.name.startswith("file:"):
            path, _, function = model.name.removeprefix("file:").rpartition(":")
            kept = find.artifact(workspace, run_id, f"{names.SOURCE}/{Path(path).name}", folder)
            model = model.model_copy(update={"name": f"file:{kept}:{function}"})
        network = models.build(model, len(classes), configuration.data.image_size, load=False).module
        load_state(network, find.artifact(workspace, run_id, names.CHECKPOINT, folder), model.name)
    return Restored(configuration, network.eval(), classes, preprocessing, run.data.tags.get(names.DATA_DIGEST, ""))
