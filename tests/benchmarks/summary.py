"""Benchmark of a comparison of a thousand runs: ``python -m tests.benchmarks.summary``.

A comparison fetches every run of the study once, then makes tables, pages and a figure of them. It
is timed in turns with MLflow's own search for the same runs, which nobody can do without. The
benchmark takes about ten minutes, most of them for making the runs; it prints a table and exits 0
if the bound holds.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

import mlflow
from mlflow.entities import Metric, Param

from pipeline import models
from pipeline.config import Configuration, nest
from pipeline.identity import config_hash
from pipeline.jobs.summary import summarise_and_write
from pipeline.tracking import names
from pipeline.tracking.find_runs import as_param
from pipeline.tracking.workspace import Workspace, open_workspace
from tests.benchmarks.measure import Results, interleaved

STUDY = "big-12345678"
MOST = 3.0
"""How many times MLflow's search a comparison may take."""


def make_runs(workspace: Workspace, count: int) -> None:
    """Log a study of so many complete trainings, no two of the same configuration.

    They have the params, metrics and tags that ours have.
    """
    client, drawn = workspace.client, random.Random(0)
    shared = {
        names.EXPERIMENT: workspace.experiment,
        names.STUDY: STUDY,
        names.DATA_DIGEST: "a" * 32,
        names.STATE: names.COMPLETE,
    }
    parent = client.create_run(
        workspace.experiment_id, tags={**shared, names.STEP: "tune", names.TARGET: "0.9"}
    ).info.run_id
    client.log_param(parent, "data.source", "digits")
    for number in range(count):
        chosen = {
            "data.source": "digits",
            "data.image_size": 32,
            "model.name": drawn.choice(["resnet18", "resnet34", "densenet121", "small_cnn"]),
            "optimizer.lr": 10 ** drawn.uniform(-5, -2),
            "schedule.name": drawn.choice(["none", "cosine", "exponential"]),
        }
        configuration = Configuration.model_validate(nest(chosen))
        tags = {
            **shared,
            names.STEP: "train",
            names.CONFIG_HASH: config_hash(configuration, models.origin(configuration.model)),
            names.TRIAL: str(number),
            names.PARENT: parent,
            names.UID: f"{number:032x}",
        }
        run_id = client.create_run(
            workspace.experiment_id, tags=tags, run_name=f"{number:02d} {configuration.model.name}"
        ).info.run_id
        accuracy = drawn.uniform(0.5, 0.99)
        metrics = {
            **{
                "best/val_accuracy": accuracy,
                "best/val_loss": drawn.uniform(0.1, 2),
                "best/epoch": 4,
                "parameters": 1e7,
                "seconds": 40,
            },
            **{
                "majority_rate": 0.1,
                "test/accuracy": accuracy,
                "test/accuracy_low": accuracy - 0.01,
                "test/accuracy_high": accuracy + 0.01,
            },
            **{
                "val/accuracy": accuracy,
                "val/loss": 0.3,
                "train/loss": 0.2,
                "train/accuracy": 0.9,
                "lr": 1e-3,
            },
        }
        now = int(time.time() * 1000)
        params = [Param(name, as_param(value)) for name, value in configuration.flat().items()]
        client.log_batch(
            run_id,
            metrics=[Metric(name, value, now, 4) for name, value in metrics.items()],
            params=params,
        )
        client.set_terminated(run_id)
    client.set_terminated(parent)


def main() -> int:
    """Print the table; return the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    results = Results("A comparison of many runs, against MLflow's own search for them")
    with tempfile.TemporaryDirectory() as folder:
        mlflow.set_tracking_uri(f"sqlite:///{Path(folder) / 'mlflow.db'}")
        workspace = open_workspace("big")
        make_runs(workspace, given.runs)
        wanted = f"tags.`{names.EXPERIMENT}` = 'big'"

        def search() -> object:
            return workspace.client.search_runs(
                [workspace.experiment_id], wanted, max_results=50_000
            )

        # The first call of each imports what it needs.
        search(), summarise_and_write(workspace, STUDY)
        ours, peer, ratio = interleaved(
            lambda: summarise_and_write(workspace, STUDY), search, given.rounds
        )
    results.add(
        f"summary of {given.runs:,} runs",
        f"{ours:.2f} s",
        f"{peer:.2f} s",
        f"{1 / ratio:.2f} times, at most {MOST:g}",
        1 / ratio <= MOST,
    )
    return results.conclude()


if __name__ == "__main__":
    sys.exit(main())
