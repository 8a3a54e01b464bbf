"""A tracking server that goes away, refuses, or is none.

What a person is told, and how fast a signal ends what runs.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline.tracking import names
from tests.conftest import Cli, start, wait_for
from tests.servers import MLflowServer, free_port, mlflow_server

STEPS = ["summary", "evaluate", "register", "train", "tune", "reconcile"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[MLflowServer]:
    """A real tracking server, which tests stop for a while."""
    database = tmp_path_factory.mktemp("server") / "mlflow.db"
    shutil.copy(empty_store, database)
    with mlflow_server(database) as running:
        yield running


@pytest.fixture
def short_lived(tmp_path: Path, empty_store: Path) -> Iterator[MLflowServer]:
    """A real tracking server of one test's own."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    with mlflow_server(tmp_path / "mlflow.db") as running:
        yield running


def training(quick: Path, uri: str, experiment: str, step: str = "tune") -> subprocess.Popen[str]:
    """Start a long study, or training, and return it in its second epoch."""
    quick.write_text(quick.read_text() + "configs: [{}]\n")
    options = ["--training.epochs", "2000", "--config", str(quick), "--experiment", experiment]
    process = start(
        [sys.executable, "-m", "pipeline", step, *options],
        quick.parent,
        MLFLOW_TRACKING_URI=uri,
        OMP_NUM_THREADS="1",
    )
    wait_for(process, "epoch 2/")
    return process


def runs_of(uri: str, experiment: str) -> list[Run]:
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return list(client.search_runs([found.experiment_id]))


def told_of_a_study_without_server(study: subprocess.Popen[str]) -> None:
    """Send Ctrl-C to a study whose server is away, and look at what it says, and when."""
    # Until something waits for the store.
    time.sleep(3)
    study.send_signal(signal.SIGINT)
    began = time.monotonic()
    told = study.communicate(timeout=60)[0]
    assert time.monotonic() - began < 10
    assert study.returncode == 1 and "Traceback" not in told
    assert "python -m pipeline reconcile" in told


@pytest.mark.thorough
def test_a_signal_ends_a_study_within_ten_seconds_though_the_server_does_not_answer(
    cli: Cli, quick: Path, server: MLflowServer
) -> None:
    study = training(quick, server.uri, "silent")
    server.send_signal(signal.SIGSTOP)
    try:
        told_of_a_study_without_server(study)
    finally:
        server.send_signal(signal.SIGCONT)
    mlflow.set_tracking_uri(server.uri)
    assert cli("reconcile").code == 0
    assert [run.info.status for run in runs_of(server.uri, "silent")] == ["KILLED"] * 2


@pytest.mark.thorough
def test_a_signal_ends_a_study_within_ten_seconds_though_the_server_is_gone(
    quick: Path, short_lived: MLflowServer
) -> None:
    study = training(quick, short_lived.uri, "gone")
    short_lived.send_signal(signal.SIGKILL)
    told_of_a_study_without_server(study)


@pytest.mark.thorough
def test_a_second_signal_ends_at_once_and_the_same_ctrl_c_twice_does_not(
    quick: Path, server: MLflowServer
) -> None:
    run = training(quick, server.uri, "twice", "train")
    server.send_signal(signal.SIGSTOP)
    try:
        time.sleep(3)
        run.send_signal(signal.SIGINT)
        time.sleep(0.5)
        run.send_signal(signal.SIGINT)
        time.sleep(2)
        assert run.poll() is None
        run.send_signal(signal.SIGTERM)
        began = time.monotonic()
        told = run.communicate(timeout=30)[0]
        assert time.monotonic() - began < 1
        assert run.returncode == 1 and "ended at once; `python -m pipeline reconcile`" in told
    finally:
        server.send_signal(signal.SIGCONT)


@pytest.mark.thorough
def test_with_the_server_there_a_signal_leaves_nothing_to_reconcile(
    quick: Path, server: MLflowServer
) -> None:
    study = training(quick, server.uri, "there")
    study.send_signal(signal.SIGTERM)
    told = study.communicate(timeout=60)[0]
    assert "reconcile" not in told
    ended = [(run.info.status, run.data.tags[names.STATE]) for run in runs_of(server.uri, "there")]
    assert ended == [("KILLED", "interrupted")] * 2


@pytest.mark.parametrize("step", STEPS)
def test_a_server_that_is_not_there_is_one_true_line(cli: Cli, quick: Path, step: str) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    mlflow.set_tracking_uri(uri)
    done = cli(step, *([] if step == "reconcile" else ["--config", quick]))
    assert (done.code, done.err) == (
        1,
        f"error: the tracking server {uri} does not answer: Connection refused\n",
    )


class Answer(BaseHTTPRequestHandler):
    """Answers everything with one status."""

    status = 401

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"oops\n")

    do_POST = do_GET  # noqa: N815 - the base class calls it so

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def answering() -> Iterator[type[Answer]]:
    """A web server whose status can be set; its address is the tracking URI."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answering", (Answer,), {}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    mlflow.set_tracking_uri(f"http://127.0.0.1:{server.server_port}")
    yield server.RequestHandlerClass  # type: ignore[misc]
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (
            401,
            2,
            (
                "refuses this user (401); MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
                "or MLFLOW_TRACKING_TOKEN"
            ),
        ),
        (403, 2, "refuses this user (403)"),
        (404, 2, "is no MLflow server"),
        (200, 2, "is no MLflow server"),
        (503, 1, "does not answer: too many 503 error responses"),
    ],
)
def test_a_server_that_refuses_is_one_true_line(
    cli: Cli, quick: Path, answering: type[Answer], step: str, status: int, code: int, message: str
) -> None:
    answering.status = status
    done = cli(step, *([] if step == "reconcile" else ["--config", quick]))
    assert (done.code, done.err.count("\n")) == (code, 1), done.err
    assert message in done.err
