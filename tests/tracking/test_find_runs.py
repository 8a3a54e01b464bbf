"""Runs read back from MLflow."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.tracking import find_runs, names
from pipeline.tracking.workspace import Workspace
from tests.conftest import Cli


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--schedule.name", "exponential", "--optimizer.name", "sgd"),
        ("--data.augment", "RandomHorizontalFlip"),
    ],
)
def test_the_hash_from_a_runs_params_is_its_own(
    cli: Cli, quick: Path, workspace: Workspace, options: tuple[str, ...]
) -> None:
    assert cli("train", "--config", quick, "--training.epochs", "1", *options).code == 0
    (row,) = find_runs.find_trainings(workspace)
    workspace.client.delete_tag(row["run_id"], names.CONFIG_HASH)
    (again,) = find_runs.find_trainings(workspace)
    assert again["config_hash"] == row["config_hash"] != ""


def test_a_file_that_params_name_is_not_looked_at(workspace: Workspace, folder: Path) -> None:
    network = folder / "net.py"
    network.write_text("from pathlib import Path\nPath('executed').touch()\n")
    tags = {names.EXPERIMENT: "quick", names.STEP: "train"}
    run = workspace.client.create_run(workspace.experiment_id, tags=tags)
    workspace.client.log_param(run.info.run_id, "model.name", f"file:{network}:build")
    (row,) = find_runs.find_trainings(workspace)
    assert row["config_hash"] == "" and not Path("executed").exists()


def test_a_training_of_several_studies_is_found_in_each(workspace: Workspace) -> None:
    tags = {names.EXPERIMENT: "quick", names.STEP: "train", names.STUDY: "quick-1,quick-12"}
    run = workspace.client.create_run(workspace.experiment_id, tags=tags)
    assert [row["run_id"] for row in find_runs.find_trainings(workspace, "quick-12")] == [
        run.info.run_id
    ]
    assert [row["run_id"] for row in find_runs.find_trainings(workspace, "quick-1")] == [
        run.info.run_id
    ]
    assert find_runs.find_trainings(workspace, "quick-2") == []
