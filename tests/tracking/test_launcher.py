"""A run is taken from the environment only if ``mlflow run`` has just made it for the step.

Real launches are in test_project.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pytest

from pipeline.tracking import launcher_run, names
from pipeline.tracking.workspace import Workspace
from tests.conftest import Cli

ENTRY_POINT = "mlflow.project.entryPoint"


def snapshot(workspace: Workspace, run_id: str) -> tuple[Any, ...]:
    run = workspace.client.get_run(run_id)
    return run.info.status, run.info.end_time, run.info.run_name, run.data.to_dictionary()


@pytest.mark.parametrize("step", ["train", "tune", "evaluate", "predict", "reconcile", "init"])
def test_a_finished_run_in_the_environment_is_left_as_it_is(
    cli: Cli, quick: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    run_id = workspace.client.create_run(
        workspace.experiment_id, tags={ENTRY_POINT: step}, run_name="mine"
    ).info.run_id
    workspace.client.log_metric(run_id, "best/val_accuracy", 0.9)
    workspace.client.set_terminated(run_id)
    before = snapshot(workspace, run_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    done = cli(step, *([] if step in ("predict", "reconcile", "init") else ["--config", quick]))
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert (
        f"MLFLOW_RUN_ID: run {run_id} (mine) is FINISHED" in done.err
        and "unset that variable" in done.err
    )
    assert snapshot(workspace, run_id) == before
    assert len(workspace.client.search_runs([workspace.experiment_id])) == 1


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({}, "was not made by `mlflow run` for entry point train"),
        ({ENTRY_POINT: "tune"}, "was not made by `mlflow run` for entry point train"),
        ({ENTRY_POINT: "train", names.STEP: "train"}, "is taken already, by train"),
    ],
)
def test_a_running_run_of_somebody_else_is_left_as_it_is(
    cli: Cli,
    quick: Path,
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    tags: dict[str, str],
    message: str,
) -> None:
    run_id = workspace.client.create_run(workspace.experiment_id, tags=tags).info.run_id
    before = snapshot(workspace, run_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    done = cli("train", "--config", quick)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert message in done.err
    assert snapshot(workspace, run_id) == before


@pytest.mark.parametrize("run_id", ["0" * 32, "nonsense", "../x"])
def test_an_id_of_no_run_is_one_line(
    cli: Cli, quick: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, run_id: str
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    done = cli("train", "--config", quick)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert f"MLFLOW_RUN_ID: there is no run '{run_id}'" in done.err


def test_an_id_in_a_folder_without_a_store_makes_none(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    assert cli("train", "--data.source", "digits").code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_run_just_made_for_the_step_is_taken(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = workspace.client.create_run(
        workspace.experiment_id, tags={ENTRY_POINT: "train"}
    ).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    launcher_run.adopt_launched_run("train")
    assert launcher_run.launched_run_id() == run_id
    launcher_run.end_launched_run("wrong", names.FAILED)
    ended = workspace.client.get_run(run_id)
    assert (ended.info.status, ended.data.tags[names.REASON]) == ("FAILED", "wrong")
    monkeypatch.delenv("MLFLOW_RUN_ID")
    launcher_run.adopt_launched_run("train")
    assert launcher_run.launched_run_id() == ""
