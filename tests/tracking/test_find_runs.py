"""Runs read back from MLflow."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.identity import TrainingIdentity
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


def test_a_run_whose_worker_died_before_it_logged_a_param_goes_on_for_its_own_trial(
    workspace: Workspace,
) -> None:
    identity = TrainingIdentity("1" * 12, 0, 0, "2" * 32)
    tags = {
        names.EXPERIMENT: "quick",
        names.STEP: "train",
        names.STUDY: "quick-1",
        names.UID: "a" * 32,
        names.STATE: names.INTERRUPTED,
        names.CONFIG_HASH: identity.config_hash,
        names.DATA_DIGEST: identity.data_digest,
    }
    run_id = workspace.client.create_run(workspace.experiment_id, tags=tags).info.run_id
    begun = {run_id}
    found = find_runs.find_unfinished_training(workspace, "quick-1", identity, begun, are_own=True)
    assert found == run_id
    assert not find_runs.find_unfinished_training(workspace, "quick-1", identity, begun)
    workspace.client.log_param(run_id, "training.seed", "1")
    assert not find_runs.find_unfinished_training(
        workspace, "quick-1", identity, begun, are_own=True
    )


def test_a_run_of_two_studies_or_a_deleted_one_is_waited_for_no_more(workspace: Workspace) -> None:
    def make(uid: str, study: str, state: str) -> str:
        tags = {names.UID: uid, names.STUDY: study, names.STATE: state, names.STEP: "train"}
        return str(workspace.client.create_run(workspace.experiment_id, tags=tags).info.run_id)

    make("shared", "first,mine", names.COMPLETE)
    make("running", "mine", names.RUNNING)
    workspace.client.delete_run(make("deleted", "mine", names.RUNNING))
    make("foreign", "mine too", names.COMPLETE)
    make("doubled", "mine", names.RUNNING)
    workspace.client.delete_run(make("doubled", "mine", names.RUNNING))
    assert find_runs.find_ended(workspace, "mine") == {"shared", "deleted"}
