"""A tracking server that goes away, refuses, or is none: what a person is told, and how fast a signal ends what runs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow
import pytest
import requests
from mlflow import MlflowClient

from pipeline.tracking import names
from tests.conftest import Cli, start, wait_for

STEPS = ["summary", "evaluate", "register", "train", "tune", "reconcile"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def server(folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A real tracking server of one process, its address and that process."""
    port = free_port()
    store = ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}", "--artifacts-destination", str(folder / "artifacts")]
    # In a group of its own, so that all of it can be stopped.
    arguments = [str(Path(sys.executable).with_name("mlflow")), "server", *store, "--port", str(port), "--workers", "1"]
    process = subprocess.Popen(
        arguments, cwd=folder, text=True, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    uri = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                if requests.get(f"{uri}/health", timeout=2).ok:
                    break
            except requests.RequestException:
                time.sleep(0.5)
        yield uri, process
    finally:
        os.killpg(process.pid, signal.SIGCONT)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def training(quick: Path, uri: str, step: str = "tune") -> subprocess.Popen[str]:
    """Start a long study, or training, and return it in its second epoch."""
    quick.write_text(quick.read_text() + "configs: [{}]\n")
    options = ["--training.epochs", "2000", "--config", str(quick)]
    process = start([sys.executable, "-m", "pipeline", step, *options], quick.parent, MLFLOW_TRACKING_URI=uri, OMP_NUM_THREADS="1")
    wait_for(process, "epoch 2/")
    return process


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL], ids=["does not answer", "is gone"])
def test_a_signal_ends_a_study_within_ten_seconds_though_the_server_is_away(
    cli: Cli, quick: Path, server: tuple[str, subprocess.Popen[str]], how: signal.Signals
) -> None:
    uri, process = server
    study = training(quick, uri)
    os.killpg(process.pid, how)
    # Until something waits for the store.
    time.sleep(3)
    study.send_signal(signal.SIGINT)
    began = time.monotonic()
    told = study.communicate(timeout=60)[0]
    assert time.monotonic() - began < 10
    assert study.returncode == 1 and "Traceback" not in told
    assert "python -m pipeline reconcile" in told
    if how == signal.SIGSTOP:
        os.killpg(process.pid, signal.SIGCONT)
        client = MlflowClient(uri)
        mlflow.set_tracking_uri(uri)
        assert cli("reconcile").code == 0
        ids = [one.experiment_id for one in client.search_experiments()]
        assert {run.info.status for run in client.search_runs(ids)} == {"KILLED"}


def test_a_second_signal_ends_at_once_and_the_same_ctrl_c_twice_does_not(quick: Path, server: tuple[str, subprocess.Popen[str]]) -> None:
    uri, process = server
    run = training(quick, uri, "train")
    os.killpg(process.pid, signal.SIGSTOP)
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


def test_with_the_server_there_a_signal_leaves_nothing_to_reconcile(quick: Path, server: tuple[str, subprocess.Popen[str]]) -> None:
    uri, _ = server
    study = training(quick, uri)
    study.send_signal(signal.SIGTERM)
    told = study.communicate(timeout=60)[0]
    assert "reconcile" not in told
    client = MlflowClient(uri)
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert [(run.info.status, run.data.tags[names.STATE]) for run in runs] == [("KILLED", "interrupted")] * 2


@pytest.mark.parametrize("step", STEPS)
def test_a_server_that_is_not_there_is_one_true_line(cli: Cli, quick: Path, step: str) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    mlflow.set_tracking_uri(uri)
    done = cli(step, *([] if step == "reconcile" else ["--config", quick]))
    assert (done.code, done.err) == (1, f"error: the tracking server {uri} does not answer: Connection refused\n")


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
        (401, 2, "refuses this user (401); MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"),
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
