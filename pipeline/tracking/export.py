"""Exported networks: logged to a run as LoggedModel, with all that serving them needs."""

from __future__ import annotations

import base64
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import mlflow
import mlflow.pyfunc
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import Array, ColSpec, DataType, Schema
from PIL import Image
from torch import nn

import pipeline
from pipeline.data.transforms import Preprocessing
from pipeline.tracking import names
from pipeline.tracking.run_log import RunLog
from pipeline.tracking.workspace import Workspace
from pipeline.training.exported_model import (
    CALIBRATION,
    CLASSES,
    NETWORK,
    PREPROCESSING,
    save_exported,
)

_NO_SUCH = "RESOURCE_DOES_NOT_EXIST"
_REQUIREMENTS = ("mlflow", "numpy", "pandas", "pillow", "pydantic", "torch", "torchvision")
_SIGNATURE = ModelSignature(
    Schema([ColSpec(DataType.string, "image")]),
    Schema(
        [
            ColSpec(DataType.string, "label"),
            ColSpec(DataType.double, "confidence"),
            ColSpec(Array(DataType.double), "probabilities"),
        ]
    ),
)


def find_logged_model(workspace: Workspace, run_id: str) -> str:
    """Return the id of the model that a run has exported, or an empty string."""
    outputs = workspace.client.get_run(run_id).outputs
    for output in outputs.model_outputs if outputs else []:
        try:
            model = workspace.client.get_logged_model(output.model_id)
        except MlflowException as error:
            # One that was not whole has been removed.
            if error.error_code != _NO_SUCH:
                raise
            continue
        if model.name == names.MODEL and str(model.status) == "READY":
            return str(model.model_id)
    return ""


def log_model(
    run: RunLog,
    network: nn.Module,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    temperature: float = 1.0,
) -> None:
    """Export a trained network and log it to a run as LoggedModel ``model``.

    Args:
        run: The run that trained the network. Its status stays as it is.
        network: The network. After the call it is in evaluation mode and on the CPU.
        classes: Names of the classes in the order of the logits.
        preprocessing: The preprocessing of the images. It is kept in the model, so that a caller
            never chooses it.
        temperature: What the logits are divided by, see `pipeline.scores.calibration`.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = _write_files(Path(folder), network, classes, preprocessing, temperature)
        run.model(files, preprocessing.image_size)
        run.flush()


def publish_model(
    workspace: Workspace, run_id: str, files: Mapping[str, Path], image_size: int
) -> None:
    """Log an exported network to a run, unless it has it.

    A model of the run that is not whole is removed: the server went away while it was logged.

    Args:
        workspace: The open store.
        run_id: The run that trained the network.
        files: The files that serving the network needs, by name.
        image_size: Height and width of its images.
    """
    if find_logged_model(workspace, run_id):
        return
    client = workspace.client
    experiment_id = str(client.get_run(run_id).info.experiment_id)
    for model in client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'"):
        if model.name == names.MODEL and str(model.status) != "READY":
            client.delete_logged_model(model.model_id)
    package = Path(pipeline.__file__).parent
    with _current_experiment(experiment_id):
        Model.log(
            artifact_path=None,
            name=names.MODEL,
            flavor=mlflow.pyfunc,
            run_id=run_id,
            python_model=str(package / "tracking" / "served_model.py"),
            artifacts={name: str(file) for name, file in files.items()},
            code_paths=[str(package)],
            signature=_SIGNATURE,
            input_example=_make_example(image_size),
            pip_requirements=list(map(requirement, _REQUIREMENTS)),
        )


def _write_files(
    folder: Path,
    network: nn.Module,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    temperature: float,
) -> dict[str, Path]:
    """Write the files that a served model reads; return them by name."""
    files = {
        "network": folder / NETWORK,
        "classes": folder / CLASSES,
        "preprocessing": folder / PREPROCESSING,
        "calibration": folder / CALIBRATION,
    }
    save_exported(network, preprocessing.image_size, files["network"])
    files["classes"].write_text(json.dumps(list(classes), ensure_ascii=False), encoding="utf-8")
    files["preprocessing"].write_text(json.dumps(preprocessing.to_dict()))
    files["calibration"].write_text(json.dumps({"temperature": temperature}))
    return files


@contextmanager
def _current_experiment(experiment_id: str) -> Iterator[None]:
    """Make an experiment the current one: MLflow files a model under it, whatever its run's is.

    MLflow leaves an environment variable behind, which every process started from this one would
    get.
    """
    variable = "MLFLOW_EXPERIMENT_ID"
    before = os.environ.get(variable)
    mlflow.set_experiment(experiment_id=experiment_id)
    try:
        yield
    finally:
        os.environ.pop(variable, None)
        if before is not None:
            os.environ[variable] = before


def _make_example(size: int) -> pd.DataFrame:
    """Return one grey image as a caller of the served model would send it."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), "grey").save(buffer, "PNG")
    return pd.DataFrame({"image": [base64.b64encode(buffer.getvalue()).decode()]})


def requirement(package_name: str) -> str:
    """Return the requirement that installs a package in the version that is installed here.

    The local part of the version (``+cu128``) is left out: registries do not have it.
    """
    return f"{package_name}=={version(package_name).partition('+')[0]}"
