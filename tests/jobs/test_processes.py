"""Trainings in which two processes take part, over gloo."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipeline import metrics
from pipeline.__main__ import main
from pipeline.data.loader import Images, Loader
from pipeline.jobs.prepare import prepare_images
from pipeline.jobs.recorded_run import restore_network
from pipeline.tracking import names
from pipeline.tracking.heartbeat import Beat
from pipeline.tracking.workspace import Workspace
from pipeline.training.inference import predict_logits
from tests.conftest import PROJECT, Cli, start, wait_for

pytestmark = pytest.mark.slow

TWO = ("--training.processes", "2")


def trainings(workspace: Workspace, experiment: str) -> dict[str, Any]:
    found = workspace.client.get_experiment_by_name(experiment)
    runs = workspace.client.search_runs([found.experiment_id])
    return {
        run.info.run_name.partition(",")[0]: run
        for run in runs
        if run.data.tags[names.STEP] == "train"
    }


def curve(workspace: Workspace, run: Any, metric: str) -> list[tuple[int, float]]:
    return [
        (entry.step, entry.value)
        for entry in workspace.client.get_metric_history(run.info.run_id, metric)
    ]


FAULT = """
import errno, os
if os.environ.get("RANK") == "0":
    from tensorboard.summary.writer import record_writer
    write, written = record_writer.RecordWriter.write, []
    def fail(self, data):
        written.append(data)
        if len(written) > 40:
            raise OSError(errno.EIO, "Input/output error")
        return write(self, data)
    record_writer.RecordWriter.write = fail
"""
"""Code that a Python process runs at its start: the first of a group cannot write its events."""


@pytest.mark.thorough
def test_a_fault_that_also_keeps_the_end_from_being_logged_ends_the_study(
    quick: Path, tmp_path: Path
) -> None:
    raw = yaml.safe_load(quick.read_text())
    raw["configs"] = [{"training": {"epochs": 30}}, {"optimizer": {"lr": 1e-3}}]
    quick.write_text(yaml.safe_dump(raw))
    fault = tmp_path / "fault"
    fault.mkdir()
    (fault / "sitecustomize.py").write_text(FAULT)
    command = [sys.executable, "-m", "pipeline", "tune", "--config", str(quick), *TWO]
    path = os.pathsep.join((str(fault), str(PROJECT)))
    process = start(command, quick.parent, PYTHONPATH=path, OMP_NUM_THREADS="1")
    try:
        # The second trial would wait for a process that is still in the first one.
        out, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 1
    assert "Input/output error" in out and "trial 2 of 2" not in out


@pytest.mark.thorough
def test_two_processes_train_a_study_as_one_does(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    raw = yaml.safe_load(quick.read_text())
    # 65 training images: batches of 32, 32 and 1, which leaves one process nothing of the last.
    raw["base"]["data"] |= {"batch_size": 32, "image_size": 32}
    frozen = {"name": "resnet18", "freeze": "backbone"}
    raw["configs"] = [
        {
            "data": {"augment": [{"RandomRotation": 15}]},
            "training": {"class_weights": "balanced", "label_smoothing": 0.1},
        },
        {
            "data": {"batch_size": 13},
            "training": {"sampler": "balanced", "best_metric": "val/accuracy"},
        },
        {"optimizer": {"lr": 1e30}},
        {"model": frozen, "data": {"augment": ["RandomHorizontalFlip"]}},
        {"model": frozen},
        {"model": {"name": "resnet18"}},
    ]
    study = quick.with_name("study.yaml")
    study.write_text(yaml.safe_dump(raw))
    assert cli("tune", "--config", study, "--experiment", "two", *TWO).code == 0
    assert cli("tune", "--config", study, "--experiment", "one").code == 0
    one, two = trainings(workspace, "one"), trainings(workspace, "two")
    assert one.keys() == two.keys()
    assert len(one) == 6
    trained = two.pop("05 resnet18")
    for name, run in two.items():
        assert (
            run.data.tags[names.STATE]
            == one[name].data.tags[names.STATE]
            == ("failed" if name.startswith("02") else "complete")
        )
        assert run.data.tags[names.CONFIG_HASH] == one[name].data.tags[names.CONFIG_HASH]
        for metric in ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr"):
            alone = curve(workspace, one[name], metric)
            assert curve(workspace, run, metric) == [
                (step, pytest.approx(value, abs=1e-3)) for step, value in alone
            ]
    assert two["04 resnet18"].data.tags[names.FEATURES].startswith("1 per image, ")
    # BatchNorm's statistics are each process's own here; what was validated is the network that was
    # kept.
    restored = restore_network(workspace, trained.info.run_id)
    prepared = prepare_images(workspace, restored.configuration.data)
    images = Images(prepared.images, prepared.positions("val"), prepared.labels(), 32)
    labels, logits = predict_logits(
        restored.network, Loader(images, 32), restored.preprocessing, torch.device("cpu")
    )
    assert metrics.score(labels, logits)["loss"] == pytest.approx(
        trained.data.metrics["best/val_loss"], abs=1e-4
    )


@pytest.mark.thorough
def test_ended_by_a_signal_it_goes_on_in_two_processes(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    options = [
        "--config",
        str(quick),
        "--training.epochs",
        "20",
        "--training.checkpoint_seconds",
        "0",
        "--optimizer.lr",
        "3e-4",
    ]
    process = start(
        [sys.executable, "-m", "pipeline", "train", *options, "--experiment", "two", *TWO],
        quick.parent,
    )
    wait_for(process, "epoch 3/")
    process.send_signal(signal.SIGTERM)
    sent = time.time()
    out, _ = process.communicate()
    assert process.returncode == 1, out
    assert "Traceback" not in out
    (run,) = trainings(workspace, "two").values()
    assert (run.info.status, run.data.tags[names.STATE]) == ("KILLED", "interrupted")
    assert run.info.end_time / 1000 - sent < 5
    assert cli("train", "--run_id", run.info.run_id).code == 0
    (run,) = trainings(workspace, "two").values()
    assert run.data.tags[names.STATE] == names.COMPLETE
    assert cli("train", *options, "--experiment", "one").code == 0
    (alone,) = trainings(workspace, "one").values()
    for metric in ("train/loss", "val/loss"):
        assert curve(workspace, run, metric) == [
            (step, pytest.approx(value, abs=1e-3))
            for step, value in curve(workspace, alone, metric)
        ]


@pytest.mark.thorough
def test_a_process_that_is_killed_is_told_and_its_run_ended(
    quick: Path, workspace: Workspace
) -> None:
    options = ["--config", str(quick), "--training.epochs", "400", "--experiment", "two", *TWO]
    process = start([sys.executable, "-m", "pipeline", "train", *options], quick.parent)
    wait_for(process, "epoch 2/")
    (run,) = trainings(workspace, "two").values()
    beat = Beat.of(run.data.tags)
    assert beat is not None
    os.kill(beat.process_id, signal.SIGKILL)
    out, _ = process.communicate()
    assert process.returncode == 1
    assert "error: process 0 (of 0 to 1) was killed by SIGKILL" in out and "Traceback" not in out
    assert f"go on with: train --run_id {run.info.run_id}" in out
    (run,) = trainings(workspace, "two").values()
    assert (run.info.status, run.data.tags[names.STATE]) == ("KILLED", "interrupted")


@pytest.mark.thorough
def test_what_torchrun_has_trained_goes_on_in_as_many_processes(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "-m",
        "pipeline",
        "train",
    ]
    options = [
        "--config",
        str(quick),
        "--training.epochs",
        "30",
        "--training.checkpoint_seconds",
        "0",
        "--experiment",
        "two",
    ]
    process = start([*command, *options], quick.parent)
    wait_for(process, "epoch 3/")
    process.terminate()
    process.communicate()
    (run,) = trainings(workspace, "two").values()
    assert run.data.params["training.processes"] == "2"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pipeline.__main__._launch", lambda count, arguments: 100 + count)
        assert cli("train", "--run_id", run.info.run_id).code == 102


def test_wrong_input_is_told_once_with_its_exit_code(
    quick: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    too_few = ["--model.name", "resnet18", "--data.batch_size", "3"]
    assert main(["train", "--config", str(quick), *too_few, *TWO]) == 2
    told = capfd.readouterr().err
    assert told.count("error:") == 1 and "BatchNorm needs two" in told
    assert "Traceback" not in told
