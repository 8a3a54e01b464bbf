"""A store, a run, a registered model and a data set are strangers: what they say chooses no path and runs no code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.jobs.train import TENSORBOARD
from pipeline.tracking import names
from pipeline.tracking.store import Workspace
from tests.conftest import Cli, interrupt


def trainings(workspace: Workspace) -> list[Any]:
    ids = [one.experiment_id for one in workspace.client.search_experiments()]
    found = workspace.client.search_runs(ids, order_by=["attributes.start_time ASC"])
    return [run for run in found if run.data.tags.get(names.STEP) == "train"]


@pytest.fixture
def precious(folder: Path) -> Path:
    """A folder beside the store that nobody must touch."""
    path = folder / "precious"
    path.mkdir()
    (path / "file").write_text("kept")
    return path


@pytest.fixture
def interrupted(cli: Cli, quick: Path, workspace: Workspace) -> str:
    """The id of an interrupted training."""
    interrupt(cli, "train", "--config", str(quick), "--training.epochs", "40", "--training.checkpoint_seconds", "0")
    (run,) = trainings(workspace)
    return str(run.info.run_id)


UIDS = ["PRECIOUS", "../../precious", "..", ".", "", "checkpoints", "0" * 31, "0" * 33, "G" * 32, f"{'0' * 32}/../../../precious"]


@pytest.mark.parametrize("uid", UIDS)
def test_a_uid_of_a_run_chooses_no_folder(cli: Cli, precious: Path, interrupted: str, workspace: Workspace, uid: str) -> None:
    given = str(precious) if uid == "PRECIOUS" else uid
    workspace.client.set_tag(interrupted, names.UID, given)
    before = sorted(path for path in precious.parent.rglob("*") if path.suffix != ".db" and ".db" not in path.name)
    refused = cli("train", "--run_id", interrupted)
    assert (refused.code, refused.err.count("\n")) == (2, 1), refused.err
    assert names.UID in refused.err
    assert sorted(path for path in precious.parent.rglob("*") if path.suffix != ".db" and ".db" not in path.name) == before
    assert workspace.client.get_run(interrupted).info.status == "KILLED"


@pytest.mark.parametrize("experiment", ["..", ".", "../precious", "", "a/../../precious", "/tmp"])
def test_an_experiment_of_a_run_chooses_no_folder(
    cli: Cli, precious: Path, interrupted: str, workspace: Workspace, experiment: str
) -> None:
    uid = workspace.client.get_run(interrupted).data.tags[names.UID]
    workspace.client.set_tag(interrupted, names.EXPERIMENT, experiment)
    refused = cli("train", "--run_id", interrupted)
    assert (refused.code, refused.err.count("\n")) == (2, 1), refused.err
    assert "experiment" in refused.err
    assert (precious / "file").is_file() and (workspace.checkpoints / uid).is_dir()


def test_a_study_trains_on_beside_a_run_whose_uid_was_changed(cli: Cli, precious: Path, quick: Path, workspace: Workspace) -> None:
    file = quick.with_name("study.yaml")
    file.write_text(yaml.safe_dump({**yaml.safe_load(quick.read_text()), "configs": [{}, {"optimizer": {"lr": 1e-3}}]}))
    interrupt(cli, "tune", "--config", str(file), "--training.epochs", "4")
    (stopped,) = trainings(workspace)
    workspace.client.set_tag(stopped.info.run_id, names.UID, str(precious))
    done = cli("tune", "--config", str(file), "--training.epochs", "4")
    assert done.code == 0, done.err
    assert (precious / "file").read_text() == "kept"
    states = {run.info.run_id: run.data.tags[names.STATE] for run in trainings(workspace)}
    assert states.pop(stopped.info.run_id) == names.INTERRUPTED
    assert list(states.values()) == [names.COMPLETE] * 2


def test_a_link_in_the_place_of_a_folder_of_checkpoints_is_not_removed_through(
    cli: Cli, precious: Path, interrupted: str, workspace: Workspace
) -> None:
    kept = workspace.checkpoints / workspace.client.get_run(interrupted).data.tags[names.UID]
    for file in kept.iterdir():
        if file.name != TENSORBOARD:
            file.rename(precious / file.name)
    (kept / TENSORBOARD).rename(precious / TENSORBOARD)
    kept.rmdir()
    kept.symlink_to(precious)
    cli("train", "--run_id", interrupted)
    assert (precious / "file").read_text() == "kept"


def test_a_run_that_does_not_say_what_it_was_trained_on_is_not_taken_up(
    cli: Cli, interrupted: str, workspace: Workspace, precious: Path
) -> None:
    workspace.client.delete_tag(interrupted, names.DATA_DIGEST)
    refused = cli("train", "--run_id", interrupted)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "does not say which images it was trained on" in refused.err
