"""Trainings that are killed, and taken up again in their own runs."""

from __future__ import annotations

import math
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from mlflow.entities import Metric
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.errors import Interrupted, StoreAway
from pipeline.jobs.resume import lock_run
from pipeline.jobs.summary import summarise
from pipeline.jobs.training_log import FlagsLog
from pipeline.models import SmallCNN, builtin_models
from pipeline.tracking import artifacts, find_runs, names
from pipeline.tracking.abandoned_runs import end_abandoned
from pipeline.tracking.heartbeat import Beat
from pipeline.tracking.run_log import RunLog
from pipeline.tracking.tracked_run import TrackedRun
from pipeline.tracking.workspace import Workspace
from pipeline.training.diagnostics import Diagnostics
from tests.conftest import Cli, interrupt, start, wait_for

LONG = ("--training.epochs", "400", "--training.checkpoint_seconds", "0")


def trainings(workspace: Workspace) -> list[Any]:
    found = workspace.client.search_runs(
        [workspace.experiment_id], order_by=["attributes.start_time ASC"]
    )
    return [run for run in found if run.data.tags.get(names.STEP) == "train"]


def kill_in_epoch(
    arguments: list[str], cwd: Path, epoch: int, with_signal: signal.Signals = signal.SIGKILL
) -> int:
    """Start a step, send it a signal, and return its exit code.

    The signal is sent when that epoch is over and a checkpoint of the second one is written.
    """
    process = start([sys.executable, "-m", "pipeline", *arguments], cwd, OMP_NUM_THREADS="1")
    wait_for(process, f"epoch {epoch}/")
    # An epoch has three steps.
    while process.poll() is None and not any(
        int(file.stem[7:]) > 3 for file in cwd.glob("checkpoints/*/*/resume-*.pt")
    ):
        time.sleep(0.001)
    process.send_signal(with_signal)
    process.communicate()
    return process.returncode


def weights(workspace: Workspace, run_id: str, folder: Path) -> dict[str, bytes]:
    state = load_file(
        artifacts.download_artifact(workspace, run_id, names.CHECKPOINT, folder / run_id)
    )
    return {name: value.numpy().tobytes() for name, value in state.items()}


def history(workspace: Workspace, run_id: str, metric: str) -> list[tuple[int, float]]:
    return [
        (entry.step, entry.value) for entry in workspace.client.get_metric_history(run_id, metric)
    ]


@pytest.mark.thorough
def test_a_killed_training_goes_on_in_its_run_to_the_same_weights(
    cli: Cli, quick: Path, workspace: Workspace, tmp_path: Path
) -> None:
    options = [*LONG[2:], "--training.epochs", "120"]
    kill_in_epoch(["train", "--config", str(quick), *options], quick.parent, 2)
    (killed,) = trainings(workspace)
    assert killed.info.status == "RUNNING"
    done = cli("train", "--run_id", killed.info.run_id)
    assert done.code == 0, done.err
    assert "goes on after epoch" in done.out
    (resumed,) = trainings(workspace)
    assert (resumed.info.status, resumed.data.tags[names.STATE]) == ("FINISHED", "complete")
    assert not any(workspace.checkpoints.glob("*/*"))
    assert cli("train", "--config", quick, *options, "--experiment", "whole").code == 0
    experiment = workspace.client.get_experiment_by_name("whole")
    (whole,) = workspace.client.search_runs([experiment.experiment_id])
    for metric in (
        "train/loss",
        "val/loss",
        "val/accuracy",
        "best/val_accuracy",
        "best/epoch",
        "lr",
    ):
        assert history(workspace, resumed.info.run_id, metric) == history(
            workspace, whole.info.run_id, metric
        )
    assert [step for step, _ in history(workspace, resumed.info.run_id, "val/loss")] == list(
        range(1, 121)
    )
    assert weights(workspace, resumed.info.run_id, tmp_path) == weights(
        workspace, whole.info.run_id, tmp_path
    )


def log_of_another_life(workspace: Workspace, run_id: str, epochs: list[int]) -> None:
    """Log epochs as a GPU might have made them in a life whose weights are gone: better ones."""
    values = {
        "train/loss": 0.01,
        "train/accuracy": 1.0,
        "val/loss": 0.011,
        "val/accuracy": 0.999,
        "lr": 0.003,
    }
    for epoch in epochs:
        of_epoch = {
            **values,
            "best/val_accuracy": 0.999,
            "best/val_loss": 0.011,
            "best/epoch": epoch,
        }
        workspace.client.log_batch(
            run_id,
            [
                Metric(name, value, int(1000 * time.time()), epoch)
                for name, value in of_epoch.items()
            ],
        )


def test_scores_of_weights_that_are_gone_are_replaced_by_those_of_the_weights_that_are_kept(
    cli: Cli, quick: Path, workspace: Workspace, tmp_path: Path
) -> None:
    options = ["--training.epochs", "5", "--training.checkpoint_seconds", "0"]
    interrupt(cli, "train", "--config", str(quick), *options, epoch=2)
    (run,) = trainings(workspace)
    run_id = run.info.run_id
    # Beyond the last checkpoint, and beyond the end.
    log_of_another_life(workspace, run_id, [4, 5, 7])
    done = cli("train", "--run_id", run_id)
    assert done.code == 0, done.err
    assert cli("train", "--config", quick, *options, "--experiment", "whole").code == 0
    (whole,) = workspace.client.search_runs(
        [workspace.client.get_experiment_by_name("whole").experiment_id]
    )
    resumed = workspace.client.get_run(run_id)
    for metric in ("val/loss", "val/accuracy", "train/loss", "lr"):
        last = find_runs.metric_history(workspace, run_id, metric)
        assert math.isnan(last.pop(7))
        assert last == dict(history(workspace, whole.info.run_id, metric))
    for metric in ("best/val_accuracy", "best/val_loss", "best/epoch"):
        assert resumed.data.metrics[metric] == whole.data.metrics[metric]
    assert weights(workspace, run_id, tmp_path) == weights(workspace, whole.info.run_id, tmp_path)
    # Epochs that the checkpoint had are not logged again.
    assert [step for step, _ in history(workspace, run_id, "val/loss") if step <= 2] == [1, 2]


def test_a_training_begun_anew_that_fails_keeps_no_weights_and_tells_no_best(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    options = ["--training.checkpoint_seconds", "1000", "--training.epochs", "4"]
    interrupt(cli, "train", "--config", str(quick), *options, epoch=2)
    (run,) = trainings(workspace)
    assert list(workspace.checkpoints.glob("*/best.safetensors"))

    class Failing(SmallCNN):
        def forward(self, images: Any) -> Any:
            return super().forward(images) * math.nan

    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(builtin_models.BUILDERS, "small_cnn", Failing)
        assert cli("train", "--run_id", run.info.run_id).code == 1
    failed = workspace.client.get_run(run.info.run_id)
    assert "no weights are kept" in failed.data.tags[names.REASON]
    assert math.isnan(failed.data.metrics["best/val_accuracy"]) and math.isnan(
        failed.data.metrics["val/loss"]
    )
    assert not [
        file
        for file in workspace.client.list_artifacts(run.info.run_id)
        if file.path == "checkpoint"
    ]
    table = cli("summary", "--experiment", "quick")
    assert table.code == 0, table.err


def test_who_reached_the_target_is_told_by_the_epochs_that_count(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    study = quick.with_name("study.yaml")
    study.write_text(
        yaml.safe_dump(
            {
                **yaml.safe_load(quick.read_text()),
                "configs": [{"optimizer": {"lr": 1e-9}}],
                "study": {"target": 0.9},
            }
        )
    )
    assert cli("tune", "--config", study).code == 0
    (run,) = trainings(workspace)
    before = run.info.start_time - 1000
    # Of an epoch that was trained again since: its last value counts.
    workspace.client.log_batch(run.info.run_id, [Metric("val/accuracy", 0.99, before, 1)])
    assert "Target 0.9: reached by none of 1 training." in summarise(workspace).notes
    later = run.info.end_time + 1000
    again = [Metric("val/accuracy", 0.99, later, 2), Metric("best/val_accuracy", 0.99, later, 3)]
    workspace.client.log_batch(run.info.run_id, again)
    assert (
        f"Target 0.9: reached by 1 of 1 training: {run.info.run_name} at epoch 2."
        in summarise(workspace).notes
    )


@pytest.mark.thorough
def test_a_killed_study_goes_on_with_the_training_it_was_at(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    raw = yaml.safe_load(quick.read_text())
    study = quick.with_name("study.yaml")
    study.write_text(
        yaml.safe_dump(
            {**raw, "configs": [{"optimizer": {"lr": 1e-3}}, {"optimizer": {"lr": 3e-3}}]}
        )
    )
    options = [*LONG[2:], "--training.epochs", "120"]
    kill_in_epoch(["tune", "--config", str(study), *options], quick.parent, 3)
    (killed,) = trainings(workspace)
    done = cli("tune", "--config", study, *options)
    assert done.code == 0, done.err
    assert "goes on after epoch" in done.out
    runs = trainings(workspace)
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    assert runs[0].info.run_id == killed.info.run_id
    for run in runs:
        assert [step for step, _ in history(workspace, run.info.run_id, "val/accuracy")] == list(
            range(1, 121)
        )


def test_reconcile_ends_what_died_and_nothing_else(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    kill_in_epoch(["train", "--config", str(quick), *LONG], quick.parent, 1)
    (killed,) = trainings(workspace)
    alive = workspace.client.create_run(
        workspace.experiment_id, tags={names.HEARTBEAT: str(Beat.now()), names.STATE: "running"}
    )
    foreign = workspace.client.create_run(workspace.experiment_id)
    done = cli("reconcile")
    assert (done.code, done.out.splitlines()[-1]) == (0, "1 run ended as interrupted")
    assert f"go on with: train --run_id {killed.info.run_id}" in done.out
    ended = workspace.client.get_run(killed.info.run_id)
    assert (ended.info.status, ended.data.tags[names.STATE]) == ("KILLED", "interrupted")
    assert {workspace.client.get_run(run.info.run_id).info.status for run in (alive, foreign)} == {
        "RUNNING"
    }
    assert cli("reconcile").out == "0 runs ended as interrupted\n"
    # As mlflow run makes one for a mistyped name.
    workspace.client.create_run(
        workspace.experiment_id, tags={names.STEP: "reconcile", names.EXPERIMENT: "quik"}
    )
    mistyped = cli("reconcile", "--experiment", "quik")
    assert mistyped.code == 2 and "unknown experiment 'quik'; nearest: quick" in mistyped.err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_within_five_seconds_and_it_can_go_on(
    cli: Cli, quick: Path, workspace: Workspace, number: signal.Signals
) -> None:
    started = time.monotonic()
    assert kill_in_epoch(["train", "--config", str(quick), *LONG], quick.parent, 1, number) == 1
    (run,) = trainings(workspace)
    assert (run.info.status, run.data.tags[names.STATE]) == ("KILLED", "interrupted")
    assert run.data.tags[names.REASON] == f"stopped by {number.name}"
    assert workspace.client.list_artifacts(run.info.run_id, "tensorboard")
    last = workspace.client.get_metric_history(run.info.run_id, "val/loss")[0].timestamp
    assert run.info.end_time - last < 5000 < 1000 * (time.monotonic() - started) + 5000


@pytest.mark.thorough
def test_a_reader_that_goes_away_ends_the_run(cli: Cli, quick: Path, workspace: Workspace) -> None:
    command = (
        f"'{sys.executable}' -m pipeline train --config '{quick}' {' '.join(LONG)} | head -n 5"
    )
    told = start(["sh", "-c", command], quick.parent, OMP_NUM_THREADS="1").communicate()[0]
    assert (
        "stopped: its output was closed" in told
        and "Traceback" not in told
        and "Exception ignored" not in told
    )
    (run,) = trainings(workspace)
    assert (run.info.status, run.data.tags[names.REASON]) == ("KILLED", "its output was closed")


def test_what_cannot_go_on_is_said(cli: Cli, quick: Path, workspace: Workspace) -> None:
    assert cli("train", "--config", quick, "--training.epochs", "1").code == 0
    (complete,) = trainings(workspace)
    refused = cli("train", "--run_id", complete.info.run_id)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "is complete; there is nothing to go on with" in refused.err
    assert "there is no run 'nothing'" in cli("train", "--run_id", "nothing").err
    here = str(Beat.now())
    tags = {
        names.STEP: "train",
        names.STATE: "running",
        names.HEARTBEAT: here,
        names.EXPERIMENT: "quick",
    }
    alive = workspace.client.create_run(workspace.experiment_id, tags=tags)
    both = cli("train", "--run_id", alive.info.run_id, "--optimizer.lr", "0.1", "--config", quick)
    assert "takes no other option; got optimizer.lr, config" in both.err
    refused = cli("train", "--run_id", alive.info.run_id)
    assert f"is being trained by process {os.getpid()} on {socket.gethostname()}" in refused.err


@pytest.mark.parametrize("changed", ["network", "neighbour", "weights", "normalisation"])
def test_changed_network_or_weights_are_no_continuation(
    cli: Cli, quick: Path, workspace: Workspace, tmp_path: Path, changed: str
) -> None:
    network, weights = tmp_path / "net.py", tmp_path / "weights.safetensors"
    network.write_text("from blocks import SmallCNN as build\n")
    (tmp_path / "blocks.py").write_text("from pipeline.models import SmallCNN\n")
    save_file(SmallCNN(3).state_dict(), weights)
    (tmp_path / "preprocessing.json").write_text(
        '{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}'
    )
    own = ["--model.name", f"file:{network}:build", "--model.weights", f"file:{weights}"]
    interrupt(cli, "train", "--config", str(quick), *own, *LONG)
    (killed,) = trainings(workspace)
    if changed == "network":
        network.write_text(f"{network.read_text()}# edited\n")
    elif changed == "neighbour":
        (tmp_path / "blocks.py").write_text("from pipeline.models import SmallCNN\n# edited\n")
    elif changed == "normalisation":
        (tmp_path / "preprocessing.json").write_text(
            '{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.6]}'
        )
    else:
        save_file(SmallCNN(3).state_dict(), weights)
    refused = cli("train", "--run_id", killed.info.run_id)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert (
        killed.data.tags[names.CONFIG_HASH] in refused.err
        and "has changed; train anew, or put it back" in refused.err
    )


def test_one_process_at_a_time_takes_a_run_up(cli: Cli, quick: Path, workspace: Workspace) -> None:
    quick.write_text(quick.read_text() + "configs: [{}]\n")
    interrupt(cli, "tune", "--config", str(quick), *LONG)
    (run,) = trainings(workspace)

    def is_refused() -> bool:
        told = [cli("train", "--run_id", run.info.run_id), cli("tune", "--config", quick, *LONG)]
        assert all(
            f"run {run.info.run_id} is being trained by" in one.err and one.err.count("\n") == 1
            for one in told
        )
        return {one.code for one in told} == {2}

    with lock_run(workspace, run.info.run_id):
        assert is_refused()
    assert trainings(workspace)[0].data.tags[names.STATE] == names.INTERRUPTED
    # One that has begun to train, on whatever machine.
    with TrackedRun(workspace, "train", "", run_id=run.info.run_id), pytest.raises(Interrupted):
        assert is_refused()
        raise Interrupted("stopped by SIGTERM")
    RunLog(workspace, run.info.run_id).tag({names.STATE: names.INTERRUPTED})
    interrupt(cli, "tune", "--config", str(quick), *LONG)
    # The study has gone on in the same run.
    assert len(trainings(workspace)) == 1


def test_a_deleted_run_is_not_taken_up(cli: Cli, quick: Path, workspace: Workspace) -> None:
    interrupt(cli, "train", "--config", str(quick), *LONG)
    (killed,) = trainings(workspace)
    workspace.client.delete_run(killed.info.run_id)
    refused = cli("train", "--run_id", killed.info.run_id)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert (
        f"is deleted; `mlflow runs restore --run-id {killed.info.run_id}` brings it back"
        in refused.err
    )


def test_a_deleted_run_that_nobody_has_ended_stays_as_it_is(workspace: Workspace) -> None:
    beat = Beat.now()._replace(started=0.0)
    run = workspace.client.create_run(
        workspace.experiment_id, tags={names.HEARTBEAT: str(beat), names.STATE: names.RUNNING}
    )
    workspace.client.delete_run(run.info.run_id)
    assert not end_abandoned(workspace, run.info.run_id)


def test_changed_images_are_no_continuation(cli: Cli, quick: Path, workspace: Workspace) -> None:
    interrupt(cli, "train", "--config", str(quick), *LONG)
    (killed,) = trainings(workspace)
    (quick.parent / "digits" / "digit 0" / "000.png").unlink()
    refused = cli("train", "--run_id", killed.info.run_id)
    assert refused.code == 2 and "was trained on data" in refused.err


def test_a_run_whose_start_was_cut_off_gets_what_it_lacks(
    cli: Cli, quick: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = TrackedRun.text

    def interrupted(run: TrackedRun, name: str, content: str) -> None:
        if name == names.CONFIG:
            raise Interrupted("stopped by SIGTERM")
        text(run, name, content)

    quick.write_text(quick.read_text() + "configs: [{}]\n")
    with monkeypatch.context() as patched:
        patched.setattr(TrackedRun, "text", interrupted)
        assert cli("tune", "--config", quick).code != 0
    (cut_off,) = trainings(workspace)
    assert cut_off.info.status == "KILLED"
    # By itself it tells not even what it was to train.
    assert cli("train", "--run_id", cut_off.info.run_id).code == 2
    assert cli("tune", "--config", quick).code == 0
    (run,) = trainings(workspace)
    assert (run.info.run_id, run.info.status) == (cut_off.info.run_id, "FINISHED")
    assert {"config.yaml", "classes.json", "preprocessing.json"} <= {
        file.path for file in workspace.client.list_artifacts(run.info.run_id)
    }


def test_a_signal_ends_the_run_also_where_the_store_is_away(
    cli: Cli, quick: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = TrackedRun.metrics

    def fail_and_stop(run: TrackedRun, values: dict[str, float], step: int | None = None) -> None:
        metrics(run, values, step)
        if step == 2:
            run._write(lambda: (_ for _ in ()).throw(OSError("the store is away")))
            time.sleep(0.5)
            raise Interrupted("stopped by SIGTERM")

    monkeypatch.setattr(TrackedRun, "metrics", fail_and_stop)
    done = cli("train", "--config", quick, *LONG)
    assert (done.code, done.err) == (1, "stopped: stopped by SIGTERM\n")
    (run,) = trainings(workspace)
    assert (run.info.status, run.data.tags[names.REASON]) == ("KILLED", "stopped by SIGTERM")


def test_begun_anew_without_its_checkpoints_it_has_each_event_once(
    cli: Cli, quick: Path, workspace: Workspace, tmp_path: Path
) -> None:
    interrupt(cli, "train", "--config", str(quick), "--training.epochs", "3")
    (run,) = trainings(workspace)
    assert workspace.client.list_artifacts(run.info.run_id, "tensorboard")
    shutil.rmtree(workspace.checkpoints)
    assert cli("train", "--run_id", run.info.run_id).code == 0
    events = EventAccumulator(
        str(artifacts.download_artifact(workspace, run.info.run_id, "tensorboard", tmp_path))
    ).Reload()
    assert [one.step for one in events.Scalars("val/accuracy")] == [1, 2, 3]


def test_checkpoints_are_kept_until_the_run_has_ended(
    cli: Cli, quick: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[bool] = []
    end = TrackedRun.end

    def ended(run: TrackedRun, state: str, reason: str = "") -> None:
        kept.append((workspace.checkpoints / run.uid).is_dir())
        end(run, state, reason)

    monkeypatch.setattr(TrackedRun, "end", ended)
    assert cli("train", "--config", quick).code == 0
    assert kept[-1]
    assert not [folder for folder in workspace.checkpoints.iterdir() if folder.is_dir()]


def test_checkpoints_are_kept_if_the_store_has_not_noted_the_end(
    cli: Cli, quick: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(run: TrackedRun, state: str, reason: str = "") -> None:
        raise StoreAway("it does not answer")

    monkeypatch.setattr(TrackedRun, "end", end)
    assert cli("train", "--config", quick, *LONG[2:]).code == 1
    assert list(workspace.checkpoints.glob("*/resume-*.pt"))


def test_a_flag_of_an_earlier_life_is_withdrawn(workspace: Workspace) -> None:
    with TrackedRun(workspace, "train", "r") as run:
        run.tag({names.FLAG + "collapse": "predicts 1 of 10 classes"})
    with TrackedRun(workspace, "train", "r", run_id=run.id) as run:
        log = FlagsLog(run, Diagnostics(10, 0.1))
        log.on_start(3, 1)
        log.on_resume(
            1, [{"train/loss": 2.0, "train/accuracy": 0.1, "val/loss": 2.0, "val/accuracy": 0.1}]
        )
        sound = np.arange(100) % 10
        log.on_validation(2, sound, np.eye(10, dtype=np.float32)[sound])
        log.on_epoch(
            2,
            {"train/loss": 0.1, "train/accuracy": 1.0, "val/loss": 0.1, "val/accuracy": 1.0},
            True,
        )
    assert names.FLAG + "collapse" not in workspace.client.get_run(run.id).data.tags


def test_a_complete_run_names_the_way_to_train_on(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    assert cli("train", "--config", quick, "--training.epochs", "1").code == 0
    (complete,) = trainings(workspace)
    refused = cli("train", "--run_id", complete.info.run_id, "--training.epochs", "2")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    way = f"train --model.weights runs:/{complete.info.run_id}/model --training.epochs 2"
    assert "is complete" in refused.err and way in refused.err
    further = cli(*way.split(), "--config", quick)
    assert further.code == 0, further.err
    assert len(trainings(workspace)) == 2


def test_a_process_whose_start_the_system_does_not_tell_is_no_launcher(
    cli: Cli, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = psutil.process_iter

    def with_unknown(attributes: list[str]) -> Iterator[psutil.Process]:
        for process in processes(attributes):
            process.info = dict.fromkeys(attributes)
            yield process

    monkeypatch.setattr(psutil, "process_iter", with_unknown)
    run = workspace.client.create_run(
        workspace.experiment_id, tags={"mlflow.project.entryPoint": "tune"}
    )
    for name in ("config", "experiment", "fast"):
        workspace.client.log_param(run.info.run_id, name, "x")
    assert cli("reconcile").out.endswith("1 run ended as interrupted\n")


def test_reconcile_ends_what_mlflow_run_has_never_begun(cli: Cli, workspace: Workspace) -> None:
    entry = {"mlflow.project.entryPoint": "tune"}
    never_begun, foreign, taken = (
        workspace.client.create_run(workspace.experiment_id, tags=tags)
        for tags in (entry, entry, {**entry, names.STEP: "tune"})
    )
    for run in (never_begun, taken):
        for name in ("config", "experiment", "fast"):
            workspace.client.log_param(run.info.run_id, name, "x")
    assert cli("reconcile").out.endswith("1 run ended as interrupted\n")
    ended = workspace.client.get_run(never_begun.info.run_id)
    assert (ended.info.status, ended.data.tags[names.STATE]) == ("KILLED", names.INTERRUPTED)
    assert "mlflow run has ended without starting it" in ended.data.tags[names.REASON]
    assert {workspace.client.get_run(run.info.run_id).info.status for run in (foreign, taken)} == {
        "RUNNING"
    }
    assert cli("reconcile").out == "0 runs ended as interrupted\n"
