"""Exported models: registered under a name, and loaded again."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import yaml
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts, list_artifacts
from mlflow.entities import FileInfo
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import MAX_MODEL_REGISTRY_TAG_VALUE_LENGTH

from pipeline.config import parse_yaml
from pipeline.errors import UserError, first_line
from pipeline.tracking import artifacts, export, names
from pipeline.tracking.workspace import Workspace, is_away
from pipeline.training.exported_model import (
    CALIBRATION,
    CLASSES,
    NETWORK,
    PREPROCESSING,
    Classifier,
)

CHAMPION = "champion"
LONGEST_TAG = MAX_MODEL_REGISTRY_TAG_VALUE_LENGTH
"""Number of characters that a tag of a version may have."""
_IDS_PER_SEARCH = 50
"""Run ids that one search names: they stand in the address that is asked for."""
_DESCRIPTION = "MLmodel"
_FILES = tuple(f"artifacts/{name}" for name in (CLASSES, PREPROCESSING, NETWORK))
_CALIBRATION = f"artifacts/{CALIBRATION}"
"""Models of earlier releases do not have it."""


def register(workspace: Workspace, run_id: str, name: str, tags: Mapping[str, str]) -> str:
    """Register the model of a run as the champion of `name`; the same run is not registered twice.

    Returns:
        Number of the version.

    Raises:
        UserError: The registry refuses the name.
    """
    client = workspace.client
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code == "INVALID_PARAMETER_VALUE":
            raise UserError(
                f"name: {name!r} cannot be a registered model: {first_line(error)}"
            ) from None
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    model_id = export.find_logged_model(workspace, run_id)
    # Anybody may have made a version that claims to be of this run.
    found = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    versions = [one for one in found if one.source == f"models:/{model_id}"]
    if versions:
        number = max(versions, key=lambda version: int(version.version)).version
    else:
        number = client.create_model_version(
            name, f"models:/{model_id}", run_id, model_id=model_id
        ).version
    for key, value in tags.items():
        client.set_model_version_tag(name, number, key, value)
    client.set_registered_model_alias(name, CHAMPION, number)
    return str(number)


class Version(NamedTuple):
    """A version of a registered model.

    Attributes:
        version: Number of the version.
        run_id: Id of the run that trained it, or empty.
        tags: Tags of the version.
    """

    version: str
    run_id: str
    tags: Mapping[str, str]


def champion(workspace: Workspace, name: str) -> Version | None:
    """Return the champion of a registered model, or None if there is none."""
    try:
        found = workspace.client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None
    return Version(str(found.version), str(found.run_id or ""), dict(found.tags))


def find_registered(workspace: Workspace, run_ids: Collection[str]) -> set[str]:
    """Return those of some runs of which a version of any registered model is."""
    found: set[str] = set()
    ids = list(run_ids)
    for start in range(0, len(ids), _IDS_PER_SEARCH):
        listed = ", ".join(f"'{one}'" for one in ids[start : start + _IDS_PER_SEARCH])
        token = None
        while True:
            page = workspace.client.search_model_versions(f"run_id IN ({listed})", page_token=token)
            found |= {str(version.run_id) for version in page}
            token = page.token
            if not token:
                break
    return found


def load_model(uri: str) -> tuple[Classifier, dict[str, str]]:
    """Load an exported model of this pipeline by its files.

    Whatever else the model holds, such as code, is not read.

    Returns:
        The classifier, and its origin by the keys model_uri, model_id, run_id and data_digest (the
        digest of its training images).

    Raises:
        UserError: There is no such model, or it is not one of ours.
    """
    if not uri.startswith(("models:/", "runs:/")):
        raise UserError(
            f"model_uri: {uri!r} given; allowed: models:/NAME@champion, models:/NAME/VERSION, "
            f"runs:/RUN_ID/{names.MODEL}"
        )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        try:
            # Each file is downloaded by its name: a model may claim that it stands in any folder of
            # this machine.
            description = _download(uri, _DESCRIPTION, folder)
            files = [_download(uri, name, folder) for name in _FILES]
            if _find_files(uri, _CALIBRATION):
                _download(uri, _CALIBRATION, folder)
        except (MlflowException, OSError, ValueError) as error:
            if is_away(error):
                raise
            raise UserError(f"model_uri: {uri!r} cannot be loaded: {first_line(error)}") from None
        try:
            described = parse_yaml(description.read_text(encoding="utf-8"))
            model_id = str(described.get("model_id") or "")
            run_id = str(described.get("run_id") or "")
            classifier = Classifier(files[0].parent)
        except (OSError, yaml.YAMLError, UnicodeDecodeError, AttributeError) as error:
            raise UserError(
                f"model_uri: {uri!r} is no image classifier of this pipeline: {first_line(error)}"
            ) from None
        except UserError as error:
            raise UserError(
                f"model_uri: {uri!r} is no image classifier of this pipeline: {error.message}"
            ) from None
    return classifier, {
        "model_uri": uri,
        "model_id": model_id,
        "run_id": run_id,
        "data_digest": _find_data_digest(run_id),
    }


def _find_files(uri: str, name: str) -> list[FileInfo]:
    """Return the model's files of that path: one, or none."""
    place, _, _ = f"{uri}/{name}".rpartition("/")
    return [
        entry
        for entry in list_artifacts(artifact_uri=place)
        if entry.path.rpartition("/")[2] == name.rpartition("/")[2]
    ]


def _download(uri: str, name: str, folder: Path) -> Path:
    for entry in _find_files(uri, name):
        artifacts.need_room(entry.file_size or 0, folder, name)
    return Path(download_artifacts(artifact_uri=f"{uri}/{name}", dst_path=str(folder)))


def _find_data_digest(run_id: str) -> str:
    if not run_id:
        return ""
    try:
        return str(MlflowClient().get_run(run_id).data.tags.get(names.DATA_DIGEST, ""))
    except MlflowException:
        # The run may be gone while its registered model stays.
        return ""
