"""Artifacts of runs: listed, and downloaded if there is room."""

from __future__ import annotations

import shutil
from pathlib import Path, PurePosixPath

from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from pipeline.errors import UserError
from pipeline.files import existing_part
from pipeline.tracking import names
from pipeline.tracking.workspace import Workspace, is_away

MOST_BYTES = 1 << 34
"""Largest number of bytes of an artifact that is downloaded.

The largest networks that exist have half of it.
"""


def has_artifact(workspace: Workspace, run_id: str, name: str) -> bool:
    """Whether a run has an artifact of that path."""
    parent = str(PurePosixPath(name).parent)
    folder = None if parent == "." else parent
    return any(file.path == name for file in workspace.client.list_artifacts(run_id, folder))


def download_artifact(workspace: Workspace, run_id: str, name: str, folder: Path) -> Path:
    """Download one artifact of a run into `folder`.

    Raises:
        UserError: The run has no such artifact.
    """
    try:
        there = workspace.client.list_artifacts(run_id, name.rpartition("/")[0] or None)
        entry = next((entry for entry in there if entry.path == name), None)
        if entry is None:
            raise _explain_missing(workspace, run_id, name)
        need_room(entry.file_size or 0, folder, f"run {run_id}: {name}")
        return Path(
            download_artifacts(
                run_id=run_id, artifact_path=name, dst_path=str(folder), tracking_uri=workspace.uri
            )
        )
    except (MlflowException, OSError) as error:
        # A server that does not answer, or a disk that is full, says nothing about the run.
        if is_away(error) or has_artifact(workspace, run_id, name):
            raise
        raise _explain_missing(workspace, run_id, name) from None


def upload_artifact(workspace: Workspace, run_id: str, file: Path, name: str) -> None:
    """Upload a file at once, in the place of an earlier one of that path.

    Args:
        workspace: The open store.
        run_id: Id of the run.
        file: The file, whose name is that of the artifact.
        name: Path of the artifact.
    """
    workspace.client.log_artifact(run_id, str(file), str(PurePosixPath(name).parent))


def _explain_missing(workspace: Workspace, run_id: str, name: str) -> UserError:
    if name == names.CHECKPOINT:
        run = workspace.client.get_run(run_id)
        tags = run.data.tags
        if tags.get(names.WEIGHTS) == names.REMOVED:
            only = tags.get(names.CONFIG_HASH, "HASH")
            return UserError(
                f"run {run_id} ({run.info.run_name}) has no weights any more: "
                "tracking.keep_weights of its study has removed them; another training.seed "
                f"trains the configuration again (tune --study.only {only} --study.repeats 2)"
            )
    return UserError(
        f"run {run_id} has no artifact {name}; it is not a training of this pipeline, "
        "or was stopped before its first epoch"
    )


def remove_artifact(workspace: Workspace, run_id: str, name: str) -> int:
    """Remove a file among a run's artifacts, wherever they are; return its size in bytes.

    It is no error if there is no such file.

    Raises:
        Exception: The file cannot be removed. Each kind of store has errors of its own.
    """
    folder = name.rpartition("/")[0] or None
    there = workspace.client.list_artifacts(run_id, folder)
    size = next((entry.file_size or 0 for entry in there if entry.path == name), None)
    if size is None:
        return 0
    uri = str(workspace.client.get_run(run_id).info.artifact_uri)
    if not uri.rstrip("/").endswith(f"/{run_id}/artifacts"):
        # What the store says must not choose a folder of this machine in which files are removed.
        raise UserError(f"run {run_id}: {uri} is no folder of artifacts that MLflow has made")
    repository = get_artifact_repository(uri, tracking_uri=workspace.uri)
    repository.delete_artifacts(name)  # type: ignore[no-untyped-call]
    return size


def need_room(num_bytes: int, folder: Path, what: str) -> None:
    """Refuse to download a file that is larger than `MOST_BYTES` or than the free space.

    Args:
        num_bytes: Size of the file.
        folder: The folder for the file. It need not exist yet.
        what: Name of the file, for the message.

    Raises:
        UserError: The file is too large.
    """
    free = shutil.disk_usage(existing_part(folder.absolute())).free
    allowed = min(MOST_BYTES, free)
    if num_bytes > allowed:
        raise UserError(f"{what} has {num_bytes} bytes, and may have {allowed}")


def list_artifacts(workspace: Workspace, run_id: str, folder: str) -> list[str]:
    """Return the paths of all files among a run's artifacts in a folder and in folders below it."""
    found: list[str] = []
    for entry in workspace.client.list_artifacts(run_id, folder):
        if entry.is_dir:
            found += list_artifacts(workspace, run_id, entry.path)
        else:
            found.append(entry.path)
    return found
