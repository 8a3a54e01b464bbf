"""Benchmark of training while the tracking server is away: ``python -m tests.benchmarks.tracking``.

The same training, with everything logged to a real server, is run with the server up and with one
that is killed as the training begins. Both alternate every half second, each in a process of its
own. The benchmark exits 0 if the speed without a server is at least 0.98 of that with one, and the
losses are equal. It takes about two minutes on two cores.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlflow

from pipeline import models
from pipeline.config import Configuration, merge
from pipeline.data.prepare_data import prepare
from pipeline.data.prepared import Prepared
from pipeline.jobs.train import Placement, TrackedTraining
from pipeline.jobs.training_job import Job
from pipeline.tracking.sending import finish_sending
from pipeline.tracking.workspace import Workspace, open_workspace
from pipeline.training.callback import Callback
from tests.benchmarks.measure import Results, sliced
from tests.servers import MLflowServer, mlflow_server

BOUND = 0.98
TRAINING: dict[str, Any] = {
    "data": {"source": "digits", "image_size": 32, "batch_size": 64},
    "model": {"name": "resnet18"},
    "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
    "training": {"epochs": 2, "precision": "fp32", "memory_format": "contiguous", "device": "cpu"},
}


def prepare_digits(folder: Path) -> Prepared:
    """Prepare the images; they are there from the second call on."""
    return prepare(Configuration.model_validate(TRAINING).data, folder / "prepared")


class Losses(Callback):
    """Keeps the training loss of each epoch."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_epoch(self, epoch: int, values: dict[str, float], is_best: bool) -> None:
        self.losses.append(values["train/loss"])


def train(workspace: Workspace, raw: dict[str, Any], prepared: Prepared) -> list[float]:
    """Train as a trial of a study does; return the training losses."""
    configuration = Configuration.model_validate(raw)
    job = Job(configuration, models.origin(configuration.model), prepared)
    kept = Losses()
    TrackedTraining(workspace, job, Placement("training"), [kept]).run()
    return kept.losses


def make_training(folder: Path, name: str, uri: str) -> Callable[[], list[float]]:
    """Return a training that logs to the server at an address.

    If the address is empty, it has a server of its own, which is killed as the training begins.
    """
    own = folder / f"{name}-{os.getpid()}"
    own.mkdir()
    os.chdir(own)
    server = None if uri else MLflowServer(own / "mlflow.db")
    mlflow.set_tracking_uri(uri or server.uri)
    workspace = open_workspace(name)
    prepared = prepare_digits(folder)
    warm = merge(TRAINING, {"training": {"epochs": 1}, "data": {"batch_size": 640}})
    train(workspace, warm, prepared)
    finish_sending()

    def run() -> list[float]:
        if server is not None:
            server.kill()
        return train(workspace, TRAINING, prepared)

    return run


def compare_away(results: Results) -> None:
    """Compare a training whose server is away with one whose server is up."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare_digits(folder)
        (folder / "server").mkdir()
        with mlflow_server(folder / "server" / "mlflow.db") as server:
            away, up, ratio, losses = sliced(
                partial(make_training, folder, "away", ""),
                partial(make_training, folder, "up", server.uri),
                rounds=3,
            )
    assert losses[0] == losses[1], "the loss curves differ: not the same work"
    results.add(
        f"resnet18 on the digits, {TRAINING['training']['epochs']} epochs, server away",
        f"{away:.1f} s",
        f"server up {up:.1f} s",
        f"{ratio:.3f} times as fast, at least {BOUND}",
        ratio >= BOUND,
    )


def main() -> int:
    """Print the table; return the exit code."""
    results = Results("Training while the tracking server is away")
    compare_away(results)
    return results.conclude()


if __name__ == "__main__":
    sys.exit(main())
