"""Trainings that failed are tried again when their study is started again.

They are if the reason may have passed; others are not.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from pipeline.errors import (
    InUse,
    LossNotFinite,
    OutOfMemory,
    PipelineError,
    StoreAway,
    Unreachable,
    UserError,
    may_pass,
)
from pipeline.report.console import TrainingProgress
from pipeline.tracking import find_runs, names
from pipeline.tracking.workspace import Workspace, open_workspace
from tests.conftest import PROJECT, Cli, let_a_checkpoint_be_written
from tests.recorded.store import unpack
from tests.search.test_study import LIST, SPACE, runs, study_file
from tests.servers import MLflowServer

CHECKPOINTS = ("--training.checkpoint_seconds", "0")

TRAPPED = """
import time
from pathlib import Path
from pipeline.models import SmallCNN

class Trapped(SmallCNN):
    steps = 0

    def forward(self, images):
        if self.training and Path("TRAP").exists():
            self.steps += 1
            if self.steps == 4:
                # In the second epoch; so that a checkpoint of it can be taken, none being written
                # any more.
                time.sleep(0.3)
            if (self.steps >= 5 or Path("TRAP").read_text()) and len(images) > 4:
                # In a further life at once.
                Path("TRAP").write_text("sprung")
                raise ERROR
        return super().forward(images)

def build(num_classes):
    return Trapped(num_classes)
"""
BUSY = 'RuntimeError("CUDA error: the device is busy")'
NO_MEMORY = 'RuntimeError("DefaultCPUAllocator: can\'t allocate memory")'


def states(workspace: Workspace) -> dict[str, str]:
    return {row["run_id"]: row["state"] for row in find_runs.find_trainings(workspace)}


def test_a_failure_that_may_pass_is_tried_again_once_a_start_from_its_checkpoint(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    trap = quick.with_name("trap")
    network = quick.with_name("net.py")
    network.write_text(TRAPPED.replace("TRAP", str(trap)).replace("ERROR", NO_MEMORY))
    trap.touch()
    entries = [{"model": {"name": f"file:{network}:build"}}, *LIST[:1]]
    tune = ["tune", "--config", study_file(quick, configs=entries), *CHECKPOINTS]
    done = cli(*tune)
    assert done.code == 0, done.err
    assert (
        "failed: " in done.out and "; the study tries it again when it is started again" in done.out
    )
    failed, complete = runs("train")
    assert (failed.info.status, failed.data.tags[names.STATE], failed.data.tags[names.RETRY]) == (
        "FAILED",
        "failed",
        "true",
    )
    assert "data.batch_size 4 fits" in failed.data.tags[names.REASON]
    assert list(workspace.checkpoints.glob(f"{failed.data.tags[names.UID]}/resume-*.pt"))
    # Still so: one more try, and no more.
    done = cli(*tune)
    assert done.code == 0, done.err
    assert "1 of 2 trainings are there (1 of the list); 1 that failed is tried again" in done.out
    assert (done.out.count("trial 1 of 2"), done.out.count("failed: ")) == (1, 1)
    assert states(workspace) == {failed.info.run_id: "failed", complete.info.run_id: "complete"}
    trap.unlink()
    done = cli(*tune)
    assert done.code == 0, done.err
    assert "goes on after epoch 1" in done.out
    assert states(workspace) == {failed.info.run_id: "complete", complete.info.run_id: "complete"}
    tags = workspace.client.get_run(failed.info.run_id).data.tags
    assert not {names.RETRY, names.REASON, names.NOTE} & set(tags)
    assert [
        metric.step
        for metric in workspace.client.get_metric_history(failed.info.run_id, "val/loss")
    ] == [1, 2, 3]
    assert not list(workspace.checkpoints.glob("*/resume-*.pt"))
    done = cli(*tune)
    assert (
        "2 of 2 trainings are there (2 of the list)" in done.out and "tried again" not in done.out
    )


def test_a_searched_training_is_tried_again_with_its_values(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    trap = quick.with_name("trap")
    network = quick.with_name("net.py")
    network.write_text(TRAPPED.replace("TRAP", str(trap)).replace("ERROR", BUSY))
    trap.touch()
    study = {"trials": 2, "pruner": "none"}
    tune = [
        "tune",
        "--config",
        study_file(quick, space=SPACE, study=study),
        "--model.name",
        f"file:{network}:build",
    ]
    done = cli(*tune)
    assert done.code == 1 and "none of the 2 trainings of study" in done.err
    assert all(
        "CUDA error: the device is busy" in run.data.tags[names.REASON] for run in runs("train")
    )
    before = {run.info.run_id: run.data.params["optimizer.lr"] for run in runs("train")}
    trap.unlink()
    done = cli(*tune)
    assert done.code == 0, done.err
    assert "0 of 2 trainings are there (0 of the list); 2 that failed are tried again" in done.out
    assert {run.info.run_id: run.data.params["optimizer.lr"] for run in runs("train")} == before
    assert set(states(workspace).values()) == {"complete"}


def test_what_the_configuration_is_the_reason_of_is_not_tried_again(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    entries = [{"optimizer": {"name": "sgd", "lr": 1e30}}, LIST[0]]
    tune = ["tune", "--config", study_file(quick, configs=entries)]
    done = cli(*tune)
    assert done.code == 0 and "tries it again" not in done.out
    failed, complete = runs("train")
    assert failed.data.tags[names.RETRY] == "false"
    assert not list(workspace.checkpoints.glob("*/*"))
    done = cli(*tune)
    assert (
        "2 of 2 trainings are there (2 of the list, 1 failed for good)" in done.out
        and "trial" not in done.out
    )
    assert states(workspace) == {failed.info.run_id: "failed", complete.info.run_id: "complete"}


def test_a_failure_recorded_by_release_0_1_0_is_judged_by_its_reason(
    cli: Cli, folder: Path
) -> None:
    unpack(folder)
    workspace = open_workspace("half")
    before = states(workspace)
    done = cli("tune", "--config", "half.yaml")
    assert done.code == 0, done.err
    assert "2 of 4 trainings are there" in done.out and "failed for good" in done.out
    after = states(workspace)
    assert [run_id for run_id, state in before.items() if state == "failed"] == [
        run_id for run_id, state in after.items() if state == "failed"
    ]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (LossNotFinite("…"), False),
        (UserError("…"), False),
        (Unreachable("…"), True),
        (InUse("…"), True),
        (OutOfMemory("…"), True),
        (StoreAway("…"), True),
        (PipelineError("…"), True),
        (OSError(28, "No space left on device"), True),
        (KeyError("…"), True),
    ],
)
def test_what_may_pass(error: Exception, expected: bool) -> None:
    assert may_pass(error) == expected


@pytest.mark.thorough
def test_a_disk_that_was_full(cli: Cli, quick: Path, workspace: Workspace) -> None:
    network = quick.with_name("net.py")
    layers = "nn.Flatten(), nn.Linear(3 * 16 * 16, 4096), nn.ReLU(), nn.Linear(4096, num_classes)"
    network.write_text(
        f"from torch import nn\n\ndef build(num_classes):\n    return nn.Sequential({layers})\n"
    )
    entries = [{"model": {"name": f"file:{network}:build"}}, LIST[0]]
    tune = ["tune", "--config", str(study_file(quick, configs=entries)), *CHECKPOINTS]
    # No file may be larger: neither the weights of the wide network, of 13 MB, nor what it would go
    # on from.
    limit = 10 * 2**20
    ended = subprocess.run(
        [sys.executable, "-m", "pipeline", *tune],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    # The next training would find the same disk.
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert (
        "nothing can be written any more: File too large; make room and start again" in ended.stderr
    )
    (failed,) = runs("train")
    assert (failed.data.tags[names.STATE], failed.data.tags[names.RETRY]) == ("failed", "true")
    assert "File too large" in failed.data.tags[names.REASON]
    done = cli(*tune)
    assert done.code == 0, done.err
    assert list(states(workspace).values()) == ["complete"] * 2 and failed.info.run_id in states(
        workspace
    )


@pytest.mark.thorough
def test_a_server_that_did_not_take_artifacts(
    cli: Cli, quick: Path, tracking_server: MLflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPELINE_SEND_SECONDS", "1")
    mlflow.set_tracking_uri(tracking_server.uri)
    aside, shown = tracking_server.artifacts.with_name("aside"), TrainingProgress.on_epoch

    def on_epoch(
        progress: TrainingProgress, number: int, values: dict[str, float], is_best: bool
    ) -> None:
        shown(progress, number, values, is_best)
        if number == 1:
            let_a_checkpoint_be_written()
        if number == 2 and not aside.exists():
            # What is there is no folder: the server answers 500.
            tracking_server.artifacts.rename(aside)
            tracking_server.artifacts.write_text("")

    tune = [
        "tune",
        "--config",
        study_file(quick, configs=LIST[:1]),
        "--experiment",
        "artifacts",
        *CHECKPOINTS,
    ]
    with monkeypatch.context() as patched:
        patched.setattr(TrainingProgress, "on_epoch", on_epoch)
        failed = cli(*tune)
    assert (failed.code, failed.err.count("\n")) == (1, 1), failed.err
    tracking_server.artifacts.unlink()
    aside.rename(tracking_server.artifacts)
    workspace = open_workspace("artifacts")
    ((run_id, state),) = states(workspace).items()
    assert state == "running" and "reconcile` sends it later" in failed.err
    monkeypatch.delenv("PIPELINE_SEND_SECONDS")
    done = cli(*tune)
    assert done.code == 0, done.err
    # The training itself has ended, and is not done again.
    assert "all that it had logged is sent" in done.out and "epoch" not in done.out
    assert states(workspace) == {run_id: "complete"}
    assert {file.path for file in workspace.client.list_artifacts(run_id)} >= {
        "checkpoint",
        "config.yaml",
        "curves",
    }
