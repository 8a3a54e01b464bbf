from __future__ import annotations

import sys
import time
from importlib.util import find_spec
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from pipeline.errors import Unwritable, UserError
from pipeline.tracking.workspace import Workspace, open_workspace, results_folder
from tests.conftest import start, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture
def unset(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a space in its path, and no tracking URI set."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    return folder


def test_with_nothing_set_everything_stands_in_the_current_folder(unset: Path) -> None:
    workspace = open_workspace("mine")
    assert workspace.home == unset
    assert (unset / "mlflow.db").is_file()
    assert not Path(str(unset).replace(" ", "%20")).exists()
    run = workspace.client.create_run(workspace.experiment_id)
    assert Path(run.info.artifact_uri).is_relative_to(unset / "mlruns")


def test_a_relative_database_stands_where_the_uri_says(unset: Path) -> None:
    mlflow.set_tracking_uri("sqlite:///other.db")
    assert open_workspace("mine").home == unset
    assert (unset / "other.db").is_file()


def test_with_a_server_results_stand_in_the_current_folder(unset: Path) -> None:
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    assert results_folder() == unset


def test_a_deleted_experiment_is_one_line(folder: Path) -> None:
    workspace = open_workspace("mine")
    workspace.client.delete_experiment(workspace.experiment_id)
    with pytest.raises(UserError, match="'mine' is deleted"):
        _ = open_workspace("mine").experiment_id


def test_opening_makes_no_experiment(folder: Path) -> None:
    workspace = open_workspace("mine")
    assert [one.name for one in workspace.client.search_experiments()] == ["Default"]


def test_a_store_that_cannot_be_opened_is_one_line(folder: Path) -> None:
    (folder / "broken.db").write_text("this is no database, but long enough to look like one" * 50)
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'broken.db'}")
    with pytest.raises(UserError, match="cannot be used"):
        open_workspace("mine")


def test_a_database_below_a_file_is_one_line_at_once(unset: Path) -> None:
    (unset / "file").touch()
    mlflow.set_tracking_uri(f"sqlite:///{unset / 'file' / 'mlflow.db'}")
    started = time.monotonic()
    with pytest.raises(
        Unwritable,
        match=(
            r"mlflow\.db, where runs are kept, cannot be written to: Not a directory; start in "
            "another"
        ),
    ):
        open_workspace("mine")
    assert time.monotonic() - started < 1


def test_folders_that_cannot_be_written_to_are_one_line(store: Path) -> None:
    workspace = open_workspace("mine")
    workspace.need_writable(workspace.outputs, workspace.checkpoints, *workspace.artifacts)
    assert not workspace.outputs.exists()
    (store / "outputs").touch()
    with pytest.raises(
        Unwritable,
        match=(
            "outputs/mine cannot be written to: Not a directory; start in another folder, or choose"
        ),
    ):
        workspace.need_writable(workspace.checkpoints, workspace.outputs)


def test_a_server_keeps_the_artifacts_itself(unset: Path) -> None:
    uri = "http://127.0.0.1:9"
    assert Workspace(MlflowClient(uri), uri, unset, "mine", "").artifacts == ()


@pytest.mark.parametrize(
    "uri", ["mysql://me:secret@127.0.0.1:9/x", "mssql+nothing://me:secret@127.0.0.1:9/x"]
)
def test_a_database_server_that_cannot_be_asked_is_one_line_without_its_password(
    unset: Path, uri: str
) -> None:
    mlflow.set_tracking_uri(uri)
    with pytest.raises(
        UserError,
        match=r"the MLflow store .*me:\*\*\*@127.0.0.1:9/x (needs the package|cannot be used)",
    ):
        open_workspace("mine")


def test_a_database_server_that_does_not_answer_is_said(unset: Path) -> None:
    pytest.importorskip("psycopg2" if find_spec("psycopg") is None else "psycopg")
    script = [sys.executable, "-m", "pipeline", "reconcile"]
    process = start(script, unset, MLFLOW_TRACKING_URI="postgresql://me:secret@127.0.0.1:9/x")
    try:
        seen = wait_for(process, "does not answer")
    finally:
        process.kill()
        rest = process.communicate()[0]
    assert "postgresql://me:***@127.0.0.1:9/x does not answer; it is tried for two minutes" in seen
    assert "secret" not in seen + rest
