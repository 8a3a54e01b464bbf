"""A study by three workers meets a killed worker, a restarted server and a database that blinks."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import optuna
import pandas as pd
import pytest
import yaml
from optuna.trial import TrialState

from pipeline.search.claims import LOST
from pipeline.tracking import names
from tests.conftest import start, wait_for
from tests.search.test_study import LIST, SPACE, runs, study_file
from tests.search.test_workers import epochs_of, rest_of, worker_of
from tests.servers import MLflowServer, PostgreSQL, mlflow_server

NUM_TRIALS = 12
EPOCHS = 20
BLINK = 30
"""Seconds for which the database is away."""


@pytest.fixture
def server(tmp_path: Path, empty_store: Path, postgres: PostgreSQL) -> Iterator[MLflowServer]:
    """A tracking server on PostgreSQL, which the test kills and starts again."""
    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    store = ["--backend-store-uri", postgres.url("tracking")]
    with mlflow_server(folder / "mlflow.db", store) as running:
        yield running


@pytest.mark.thorough
def test_a_study_survives_killed_workers_a_restarted_server_and_a_database_that_blinks(
    quick: Path, postgres: PostgreSQL, server: MLflowServer
) -> None:
    mlflow.set_tracking_uri(server.uri)
    storage = postgres.url("faults")
    base = yaml.safe_load(quick.read_text())["base"]
    base["training"] |= {"epochs": EPOCHS, "checkpoint_seconds": 0}
    study = {"trials": NUM_TRIALS, "workers": 3, "heartbeat": 2, "pruner": "none"}
    study |= {"storage": storage, "name": "hard"}
    file = study_file(quick, base=base, configs=LIST, space=SPACE, study=study)
    tuned = start(
        [sys.executable, "-m", "pipeline", "tune", "--config", str(file)],
        quick.parent,
        MLFLOW_TRACKING_URI=server.uri,
    )
    killed = int(wait_for(tuned, "epoch 4/").splitlines()[-1][1])
    worker_of(tuned, killed).kill()
    wait_for(tuned, "is taken over from process")
    wait_for(tuned, "epoch 2/")
    server.kill()
    wait_for(tuned, "the work goes on, and what it logs is sent later")
    wait_for(tuned, "epoch 2/")
    server.start()
    wait_for(tuned, "epoch 2/")
    postgres.stop()
    time.sleep(BLINK)
    postgres.start()
    said = rest_of(tuned)
    assert tuned.returncode == 0, said

    trials = optuna.load_study(study_name="hard", storage=storage).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * NUM_TRIALS
    assert sum(trial.user_attrs.get(LOST, 0) for trial in trials) == 1
    trained = runs("train")
    assert sorted(int(run.data.tags[names.TRIAL]) for run in trained) == list(range(NUM_TRIALS))
    for run in trained:
        assert (run.info.status, run.data.tags[names.STATE]) == ("FINISHED", names.COMPLETE)
        assert epochs_of(run.info.run_id) == list(range(1, EPOCHS + 1))
    (parent,) = runs("tune")
    assert parent.data.tags[names.STATE] == names.COMPLETE
    table = pd.read_csv(quick.parent / "outputs" / "quick" / "comparison.csv")
    assert sorted(table["run_id"]) == sorted(run.info.run_id for run in trained)
    assert not list((quick.parent / "journal").rglob("entries.jsonl"))
