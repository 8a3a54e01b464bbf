"""Trainings and studies whose tracking server goes away: what they come to, and what is sent."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run

from pipeline.tracking import names
from pipeline.tracking.export import find_logged_model
from pipeline.tracking.workspace import Workspace, open_workspace
from pipeline.training.checkpoint import Checkpoints
from tests.conftest import Cli, start, wait_for
from tests.servers import MLflowServer, mlflow_server

pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path: Path, empty_store: Path) -> Iterator[MLflowServer]:
    """A real tracking server, which the test kills and starts again."""
    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    with mlflow_server(folder / "mlflow.db") as running:
        yield running


begun: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _nothing_waits_on() -> Iterator[None]:
    """Kill what still waits for a server when a test has failed."""
    yield
    while begun:
        process = begun.pop()
        process.kill()
        process.wait()


def begin(
    step: str, quick: Path, server: MLflowServer, *options: str, **environment: str
) -> subprocess.Popen[str]:
    """Start a step on a server."""
    variables = {"MLFLOW_TRACKING_URI": server.uri, "OMP_NUM_THREADS": "1", **environment}
    arguments = [sys.executable, "-m", "pipeline", step, *options]
    begun.append(start([*arguments, "--config", str(quick)], quick.parent, **variables))
    return begun[-1]


def open_on(server: MLflowServer) -> Workspace:
    mlflow.set_tracking_uri(server.uri)
    return open_workspace("quick")


def trainings(workspace: Workspace) -> list[Run]:
    found = workspace.client.search_runs(
        [workspace.experiment_id], f"tags.`{names.STEP}` = 'train'", order_by=["start_time ASC"]
    )
    return list(found)


def need_epochs(workspace: Workspace, run: Run, epochs: int) -> None:
    """Check that a run has each of its epochs once, measured one after another."""
    for name in ("train/loss", "val/accuracy", "epoch_seconds"):
        history = workspace.client.get_metric_history(run.info.run_id, name)
        ordered = sorted(history, key=lambda one: one.step)
        assert [one.step for one in ordered] == list(range(1, epochs + 1)), name
        times = [one.timestamp for one in ordered]
        assert times == sorted(times) and run.info.start_time <= times[0]
        assert times[-1] <= run.info.end_time


def files_of(workspace: Workspace, run: Run, folder: str = "") -> set[str]:
    found = set()
    for entry in workspace.client.list_artifacts(run.info.run_id, folder):
        found |= files_of(workspace, run, entry.path) if entry.is_dir else {entry.path}
    return found


def journals(workspace: Workspace) -> list[Path]:
    return [folder for folder in workspace.journals.iterdir() if folder.is_dir()]


@pytest.mark.thorough
def test_a_training_goes_on_without_its_server_and_waits_for_it_at_its_end(
    quick: Path, server: MLflowServer
) -> None:
    training = begin("train", quick, server, "--training.epochs", "12")
    wait_for(training, "epoch 2/")
    server.kill()
    # It is said when the training is done, with nothing left to do but to send.
    told = wait_for(training, "waiting up to 600 seconds")
    assert "epoch 12/" in told and "does not answer" in told
    server.start()
    told = training.communicate(timeout=120)[0]
    workspace = open_on(server)
    (run,) = trainings(workspace)
    assert training.returncode == 0 and f"model runs:/{run.info.run_id}/model" in told
    assert (run.info.status, run.data.tags[names.STATE]) == ("FINISHED", "complete")
    need_epochs(workspace, run, 12)
    there = files_of(workspace, run)
    needed = {names.CHECKPOINT, names.CONFIG, names.CLASSES, "curves/learning.png"}
    assert needed | {"confusion_matrix/val.png", "curves/weights.png"} <= there
    assert [name for name in there if name.startswith("tensorboard/")]
    assert find_logged_model(workspace, run.info.run_id)
    assert len(workspace.client.search_logged_models([workspace.experiment_id])) == 1
    assert not journals(workspace)


@pytest.mark.thorough
def test_a_study_without_its_server_trains_on_and_trains_nothing_twice(
    cli: Cli, quick: Path, server: MLflowServer
) -> None:
    space = "space: {optimizer.lr: [3.0e-3]}\n"
    study = quick.read_text().replace("study: {", "study: {trials: 3, ")
    quick.write_text(f"{study}configs: [{{}}, {{optimizer: {{lr: 1.0e-3}}}}]\n{space}")
    tuning = begin("tune", quick, server, PIPELINE_SEND_SECONDS="1")
    wait_for(tuning, "epoch 1/")
    server.kill()
    told = tuning.communicate(timeout=120)[0]
    assert tuning.returncode == 1 and "trial 3 of 3" in told and "Traceback" not in told
    # The third one, which the search has drawn, is equal to the first one.
    assert told.count("trained before as run") == 1 and told.count("epoch 3/3") == 2
    assert "reconcile` sends it later" in told.splitlines()[-1]
    server.start()
    workspace = open_on(server)
    done = cli("tune", "--config", quick)
    assert done.code == 0, done.err
    assert "epoch" not in done.out and done.out.count("all that it had logged is sent") == 3
    runs = trainings(workspace)
    assert [run.data.tags[names.STATE] for run in runs] == ["complete"] * 2
    assert len({run.data.tags[names.CONFIG_HASH] for run in runs}) == 2
    for run in runs:
        need_epochs(workspace, run, 3)
    assert not journals(workspace)


@pytest.mark.thorough
def test_trials_that_wait_for_others_go_on_when_the_server_answers_again(
    quick: Path, server: MLflowServer
) -> None:
    space = "space: {optimizer.lr: {low: 1.0e-4, high: 1.0e-2, log: true}}\n"
    study = quick.read_text().replace("study: {", "study: {trials: 5, finalists: 2, ")
    quick.write_text(f"{study}{space}")
    tuning = begin("tune", quick, server, "--study.pruner", "one_epoch")
    wait_for(tuning, "trial 3 of 5")
    server.kill()
    seen = wait_for(tuning, "answers again")
    server.start()
    told = tuning.communicate(timeout=240)[0]
    assert tuning.returncode == 0, seen + told
    workspace = open_on(server)
    runs = trainings(workspace)
    states = Counter(run.data.tags[names.STATE] for run in runs)
    assert states == {names.COMPLETE: 2, names.PRUNED: 3}
    for run in runs:
        is_complete = run.data.tags[names.STATE] == names.COMPLETE
        need_epochs(workspace, run, 3 if is_complete else 1)
    assert not journals(workspace)


@pytest.mark.thorough
def test_a_training_that_is_killed_without_its_server_is_sent_and_goes_on(
    cli: Cli, quick: Path, server: MLflowServer
) -> None:
    options = ["--training.epochs", "30", "--training.checkpoint_seconds", "0.1"]
    training = begin("train", quick, server, *options)
    wait_for(training, "epoch 2/")
    server.kill()
    wait_for(training, "epoch 6/")
    training.send_signal(signal.SIGKILL)
    training.wait()
    server.start()
    workspace = open_on(server)
    assert "1 run had logged is sent" in cli("reconcile").out
    (run,) = trainings(workspace)
    assert (run.info.status, run.data.tags[names.STATE]) == ("KILLED", "interrupted")
    history = workspace.client.get_metric_history(run.info.run_id, "val/loss")
    assert [one.step for one in history] == list(range(1, len(history) + 1))
    assert len(history) >= 5 and not journals(workspace)
    assert cli("train", "--run_id", run.info.run_id).code == 0
    (run,) = trainings(workspace)
    assert run.info.status == "FINISHED"
    need_epochs(workspace, run, 30)


@pytest.mark.thorough
def test_a_full_disk_under_the_journal_ends_a_training_that_can_go_on(
    cli: Cli, quick: Path, server: MLflowServer
) -> None:
    small = quick.parent / "small"
    small.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(small)]
    if os.geteuid() != 0 or subprocess.run(command, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        quick = Path(shutil.copy(quick, small / "quick.yaml"))
        options = ["--training.epochs", "2000", "--training.checkpoint_seconds", "0.1"]
        training = begin("train", quick, server, *options)
        # By then a checkpoint has been written.
        wait_for(training, "epoch 40/")
        server.kill()
        with pytest.raises(OSError), (small / "fill").open("wb", buffering=0) as fill:
            while True:
                fill.write(bytes(4096))
        told = training.communicate(timeout=120)[0]
        assert training.returncode == 2 and "Traceback" not in told
        assert "nothing can be written any more" in told
        (small / "fill").unlink()
        server.start()
        os.chdir(small)
        workspace = open_on(server)
        assert cli("reconcile").code == 0
        (run,) = trainings(workspace)
        assert run.info.status in ("KILLED", "FAILED")
        kept = Checkpoints(workspace.checkpoints / run.data.tags[names.UID]).load()
        assert kept is not None and kept["epoch"] >= 2
    finally:
        os.chdir(quick.parents[1])
        subprocess.run(["umount", "--lazy", str(small)], check=True)
