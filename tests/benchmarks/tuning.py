"""Benchmark of studies by several workers: ``python -m tests.benchmarks.tuning``.

It has these parts, each of which ``--part`` runs alone:

- ``trials``: 1,000 trials of nothing by four workers on PostgreSQL, one of which is killed. Each
  trial must end once.
- ``rate``: how many trials of densenet121 at 32 pixels two workers end in an hour, against one that
  has all cores; eight minutes.
- ``trial``: how long a trial takes beyond its training in a warm process, against the same training
  through ``mlflow run``.
- ``pruners``: what the default pruner loses and saves (see `tests.benchmarks.pruners`).
- ``away``: how fast a training is while the tracking server is away (see
  `tests.benchmarks.tracking`).
- ``main``: `main` of ``experiments/digits.yaml`` with ``study.workers auto``, against one worker
  before and after it; 25 minutes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import fmean

import optuna
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import TrialState

from pipeline.search.claims import Claims
from pipeline.search.study_storage import Database
from pipeline.search.worker_processes import num_cores
from pipeline.tracking import names
from tests.benchmarks.measure import Results, seconds
from tests.benchmarks.pruners import compare_pruners
from tests.benchmarks.tracking import compare_away
from tests.servers import PostgreSQL

PROJECT = Path(__file__).resolve().parents[2]
NUM_TRIALS = 1000
NUM_WORKERS = 4
MOST_BESIDE = 2.0
"""Seconds that a trial may take beyond its training."""
LEAST_GAIN = 1.3
"""How much more two workers of densenet121 get done than one."""
MOST_OF_MAIN = 0.9
"""Part of one worker's time in which `main` ends with ``study.workers auto``."""


def train_nothing(url: str) -> None:
    """Be a worker whose trials only draw a number and note it."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    database = Database(url, Path(tempfile.gettempdir()))
    study = optuna.load_study(study_name="many", storage=database.storage)
    study.sampler = optuna.samplers.RandomSampler(seed=os.getpid())
    claims = Claims(database, study, interval=2)
    while True:
        claim = claims.take(lambda trial: trial.number >= 0)
        if claim is None:
            if not claims.busy():
                return
            time.sleep(0.2)
            continue
        with claim as trial:
            value = trial.suggest_float("x", 0.0, 1.0)
            trial.set_user_attr("ended_by", os.getpid())
            claim.confirm()
            study.tell(trial, value)


def compare_trials(results: Results) -> None:
    """Let four workers end 1,000 trials, one of which is killed."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not binaries:
        sys.exit("needs PostgreSQL's server")
    server = PostgreSQL(binaries[-1])
    try:
        url = server.url("many")
        storage = Database(url, Path(tempfile.gettempdir())).storage
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(study_name="many", storage=storage, direction="maximize")
        for _ in range(NUM_TRIALS):
            study.enqueue_trial({})
        context = multiprocessing.get_context("spawn")
        workers = [context.Process(target=train_nothing, args=(url,)) for _ in range(NUM_WORKERS)]
        began = time.monotonic()
        for worker in workers:
            worker.start()
        while not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            time.sleep(0.1)
        workers[0].kill()
        for worker in workers:
            worker.join()
        taken = time.monotonic() - began
        trials = study.get_trials(deepcopy=False)
    finally:
        server.remove()
    states = Counter(trial.state.name for trial in trials)
    results.add(
        f"{NUM_TRIALS} trials by {NUM_WORKERS} workers on PostgreSQL, one killed",
        f"{taken:.0f} s",
        "",
        f"{dict(states)}; {NUM_TRIALS / taken:.0f} trials a second",
        states == {"COMPLETE": NUM_TRIALS},
    )


def run(folder: Path, *arguments: str) -> float:
    """Run a command in a folder; return its seconds.

    What it prints goes to stderr: it shows how far the benchmark is, and where the time went.
    """
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    environment.pop("MLFLOW_TRACKING_URI", None)

    def call() -> None:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env=environment,
            stdout=sys.stderr,
            check=False,
        )
        if done.returncode:
            sys.exit(f"{arguments} ended with {done.returncode}")

    return seconds(call)


def compare_rate(results: Results) -> None:
    """Compare two workers with one that has all cores, in turns."""
    hourly: dict[int, list[float]] = {1: [], 2: []}
    # The speed of a shared machine changes by a fifth within a minute.
    for workers in (1, 2, 2, 1):
        hourly[workers].append(count_trials_an_hour(workers))
    one, two = fmean(hourly[1]), fmean(hourly[2])
    results.add(
        f"densenet121, 32 pixels: two workers, {num_cores()} cores",
        f"{two:.0f} trials an hour",
        f"{one:.0f} by one worker",
        f"{two / one:.2f} times, at least {LEAST_GAIN}",
        two / one >= LEAST_GAIN,
    )
    print(f"trials an hour, in turns: {hourly}", file=sys.stderr)


def count_trials_an_hour(workers: int) -> float:
    """Return how many trials of densenet121 a study ends in an hour."""
    base = {
        "data": {"source": "digits", "image_size": 32},
        "model": {"name": "densenet121"},
        "training": {"epochs": 2, "precision": "fp32", "memory_format": "contiguous"},
    }
    study = {"evaluate": "none", "pruner": "none", "repeats": 6, "workers": workers}
    settings = {"experiment": "hourly", "base": base, "configs": [{}], "study": study}
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "hourly.yaml"
        file.write_text(yaml.safe_dump(settings))
        run(file.parent, "-m", "pipeline", "tune", "--config", str(file))
        trained = [one.info for one in find_trainings(file)]
    began = min(int(one.start_time) for one in trained)
    ended = max(int(one.end_time) for one in trained)
    return len(trained) * 3_600_000 / (ended - began)


def find_trainings(file: Path) -> list[Run]:
    """Return the training runs of an experiment that has the name of its file, in their order."""
    client = MlflowClient(f"sqlite:///{file.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(file.stem)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], f"tags.`{names.STEP}` = 'train'")
    return sorted(found, key=lambda one: int(one.info.start_time))


def compare_trial(results: Results) -> None:
    """Compare what a trial takes beyond its training, warm and through ``mlflow run``."""
    number = 8
    base = {
        "data": {"source": "digits", "image_size": 32},
        "model": {"name": "resnet18"},
        "training": {"epochs": 1, "precision": "fp32", "memory_format": "contiguous"},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "beside.yaml"
        space = {"optimizer.lr": {"low": 1.0e-4, "high": 1.0e-3, "log": True}}
        study = {"trials": number, "evaluate": "none"}
        file.write_text(
            yaml.safe_dump({"experiment": "beside", "base": base, "space": space, "study": study})
        )
        run(folder, "-m", "pipeline", "tune", "--config", str(file))
        trained = find_trainings(file)
        # From one trial's start to the next one's: all that the study does for it is in between.
        whole = (trained[-1].info.start_time - trained[1].info.start_time) / 1000
        training = sum(one.data.metrics["seconds"] for one in trained[1:-1])
        beside = (whole - training) / (number - 2)
        options = ["--env-manager", "local", "-e", "train", "-P", f"config={file}"]
        options += ["-P", "training.seed=77"]
        through = run(folder, "-m", "mlflow", "run", str(PROJECT), *options)
        through -= training / (number - 2)
    results.add(
        "a trial beyond its training",
        f"{beside:.2f} s",
        f"{through:.1f} s by mlflow run",
        f"{beside:.2f} s, at most {MOST_BESIDE}",
        beside <= MOST_BESIDE,
    )


def compare_main(results: Results) -> None:
    """Compare `main` of the digits with as many workers as get most done, and with one."""
    file = PROJECT / "experiments" / "digits.yaml"
    taken: dict[str, list[float]] = {"1": [], "auto": []}
    # The machine may become slower or faster meanwhile.
    for workers in ("1", "auto", "1"):
        with tempfile.TemporaryDirectory() as folder:
            taken[workers].append(
                run(
                    Path(folder),
                    *("-m", "pipeline", "main", "--config", str(file), "--study.workers", workers),
                )
            )
    ratio = fmean(taken["auto"]) / fmean(taken["1"])
    results.add(
        "main of experiments/digits.yaml, study.workers auto",
        f"{taken['auto'][0]:.0f} s",
        f"{taken['1'][0]:.0f} s before, {taken['1'][1]:.0f} s after",
        f"{ratio:.2f} times as long, at most {MOST_OF_MAIN}",
        ratio <= MOST_OF_MAIN,
    )


PARTS = {
    "trials": compare_trials,
    "rate": compare_rate,
    "trial": compare_trial,
    "pruners": compare_pruners,
    "away": compare_away,
    "main": compare_main,
}


def main() -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=PARTS, help="only this part")
    part = parser.parse_args().part
    results = Results("Studies by several workers")
    for compare in [PARTS[part]] if part else PARTS.values():
        compare(results)
    return results.conclude()


if __name__ == "__main__":
    sys.exit(main())
