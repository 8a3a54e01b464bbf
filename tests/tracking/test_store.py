from __future__ import annotations

from pathlib import Path

import mlflow
import pytest

from pipeline.errors import UserError
from pipeline.tracking.store import home, open_workspace


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
    assert home() == unset


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
