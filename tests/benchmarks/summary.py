"""Benchmark of a comparison of ten thousand runs: ``python -m tests.benchmarks.summary``.

A comparison fetches every run of the study once, and makes tables, a figure and a page of them. Its
two tables for programs are timed in turns with MLflow's own search for the same runs, which nobody
can do without; the whole comparison, with its page, is a process of its own, whose memory is
measured. The benchmark takes about four minutes, prints a table, and exits 0 if the bounds hold.
"""

from __future__ import annotations

import argparse
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import mlflow
from mlflow.entities import Metric, Param

from pipeline import models
from pipeline.config import Configuration, nest
from pipeline.identity import config_hash
from pipeline.jobs.summary import summarise, with_verdicts
from pipeline.report import tables
from pipeline.tracking import find_runs, names
from pipeline.tracking.find_runs import as_param
from pipeline.tracking.workspace import Workspace, open_workspace
from tests.benchmarks.measure import Results, anonymous_bytes, interleaved

STUDY = "big-12345678"
MOST = 1.5
"""How many times MLflow's search both tables may take."""
MOST_BYTES = 1e9
TEMPLATES = 100
"""Runs that are logged by MLflow; the others are copies of their rows, which takes less long."""


def make_runs(workspace: Workspace, count: int) -> None:
    """Log a study of so many complete trainings, no two of the same configuration."""
    log_runs(workspace, min(count, TEMPLATES))
    templates = [row["run_id"] for row in find_runs.find_trainings(workspace, STUDY)]
    drawn = random.Random(1)
    with closing(sqlite3.connect(workspace.uri.removeprefix("sqlite:///"))) as database, database:
        for number in range(len(templates), count):
            copy_run(database, templates[number % len(templates)], number, drawn)


def copy_run(
    database: sqlite3.Connection, template: str, number: int, drawn: random.Random
) -> None:
    """Copy a run in MLflow's database; learning rate, scores and identity become others."""
    run_id = drawn.randbytes(16).hex()
    accuracy = drawn.uniform(0.5, 0.99)
    changed = {
        "optimizer.lr": as_param(10 ** drawn.uniform(-5, -2)),
        names.CONFIG_HASH: drawn.randbytes(6).hex(),
        names.TRIAL: str(number),
        names.UID: f"{number:032x}",
        "mlflow.runName": f"{number:02d} copy",
        "best/val_accuracy": accuracy,
        "val/accuracy": accuracy,
        "test/accuracy": accuracy,
        "test/accuracy_low": accuracy - 0.01,
        "test/accuracy_high": accuracy + 0.01,
    }
    for table in ("runs", "params", "tags", "metrics", "latest_metrics"):
        rows = database.execute(f"SELECT * FROM {table} WHERE run_uuid = ?", (template,))
        columns = [column[0] for column in rows.description]
        copies = []
        for row in rows.fetchall():
            copy = dict(zip(columns, row, strict=True))
            copy["run_uuid"] = run_id
            if table == "runs":
                copy["name"] = changed["mlflow.runName"]
                copy["artifact_uri"] = copy["artifact_uri"].replace(template, run_id)
            elif copy["key"] in changed:
                copy["value"] = changed[copy["key"]]
            copies.append(tuple(copy.values()))
        places = ", ".join("?" * len(columns))
        database.executemany(f"INSERT INTO {table} VALUES ({places})", copies)


def log_runs(workspace: Workspace, count: int) -> None:
    """Log a study of so many complete trainings, with the params, metrics and tags of ours."""
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


def write_tables(workspace: Workspace, folder: Path) -> None:
    """Write the two tables for programs."""
    compared = with_verdicts(workspace, summarise(workspace, STUDY))
    tables.comparison_table(compared.rows).to_csv(folder / "comparison.csv")
    whole = tables.configurations_table(compared.rows, compared.verdicts)
    whole.to_csv(folder / "configurations.csv")


def run_summary(folder: Path) -> tuple[float, int]:
    """Run the step in a process of its own; return its seconds and its most anonymous bytes."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "pipeline", "summary", "--experiment", "big"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()}
    peak = 0
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL
    ) as process:
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"the summary ended with {process.returncode}")
    return time.perf_counter() - started, peak


def measure(results: Results, count: int, rounds: int) -> None:
    """Add the rows of a study of so many runs."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        workspace = open_workspace("big")
        make_runs(workspace, count)
        wanted = f"tags.`{names.EXPERIMENT}` = 'big'"

        def search() -> object:
            experiments = [workspace.experiment_id]
            return workspace.client.search_runs(experiments, wanted, max_results=50_000)

        # The first call of each imports what it needs.
        search(), write_tables(workspace, folder)
        ours, peer, ratio = interleaved(lambda: write_tables(workspace, folder), search, rounds)
        duration, memory = run_summary(folder)
        page = folder / "outputs" / "big" / "comparison.html"
        size = page.stat().st_size
    what = f"of {count:,} runs"
    results.add(
        f"both tables {what}",
        f"{ours:.2f} s",
        f"{peer:.2f} s",
        f"{1 / ratio:.2f} times, at most {MOST:g}",
        1 / ratio <= MOST,
    )
    results.add(
        f"whole step {what}: memory",
        f"{memory / 1e6:.0f} MB",
        "",
        f"{memory / 1e6:.0f} MB, at most {MOST_BYTES / 1e6:.0f}",
        memory <= MOST_BYTES,
    )
    results.add(
        f"whole step {what}: time, with figure and page of {size / 1e6:.1f} MB",
        f"{duration:.1f} s",
        "",
        f"{duration:.1f} s, no bound",
        True,
    )


def main() -> int:
    """Print the table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    results = Results("A comparison of many runs, against MLflow's own search for them")
    measure(results, given.runs, given.rounds)
    return results.conclude()


if __name__ == "__main__":
    sys.exit(main())
