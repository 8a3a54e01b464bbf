"""Real servers that tests work with: MLflow's, and PostgreSQL."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class MLflowServer:
    """A running MLflow server.

    Args:
        uri: Its address.
        artifacts: The folder of the artifacts that it takes.
        process: The first of its processes, which leads their group.
    """

    def __init__(self, uri: str, artifacts: Path, process: subprocess.Popen[bytes]) -> None:
        self.uri, self.artifacts, self._process = uri, artifacts, process

    def send_signal(self, which: signal.Signals) -> None:
        """Send a signal to all of its processes."""
        os.killpg(self._process.pid, which)


@contextmanager
def mlflow_server(database: Path) -> Iterator[MLflowServer]:
    """Start a real MLflow server on a database, and wait until it answers.

    Its artifacts are beside the database.
    """
    port, artifacts = free_port(), database.with_name("artifacts")
    store = [
        "--backend-store-uri",
        f"sqlite:///{database}",
        "--artifacts-destination",
        str(artifacts),
    ]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        *store,
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    # Of its processes, seven run jobs of language models, and take most of the time to start.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with database.with_name("server.log").open("w") as log:
        # In a group of its own, so that all of it can be stopped.
        process = subprocess.Popen(
            command,
            cwd=database.parent,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = MLflowServer(f"http://127.0.0.1:{port}", artifacts, process)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{server.uri}/health", timeout=2)
                break
            except OSError:
                assert process.poll() is None, database.with_name("server.log").read_text()
                time.sleep(0.2)
        else:
            raise AssertionError(
                f"{server.uri} does not answer: " + database.with_name("server.log").read_text()
            )
        yield server
    finally:
        # A gentle end waits for connections that clients keep open; one that is stopped hears of
        # none.
        server.send_signal(signal.SIGKILL)
        process.wait()


class PostgreSQL:
    """A PostgreSQL server in a temporary folder, started by a user that is not root."""

    def __init__(self, binaries: Path) -> None:
        self._binaries, self.port = binaries, free_port()
        # Not below pytest's folder, which other users cannot enter.
        self._folder = Path(tempfile.mkdtemp(prefix="pg-"))
        if os.geteuid() == 0:
            shutil.chown(self._folder, "postgres")
        self._run("initdb", "--auth", "trust", "--username", "postgres", "--no-sync")
        self.start()

    def _run(self, program: str, *arguments: str, check: bool = True) -> None:
        user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        command = [
            *user,
            str(self._binaries / program),
            "--pgdata",
            str(self._folder / "data"),
            *arguments,
        ]
        subprocess.run(command, check=check, stdout=subprocess.DEVNULL, cwd=self._folder)

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        options = f"-p {self.port} -k '{self._folder}' -c listen_addresses=127.0.0.1 -c fsync=off"
        self._run(
            "pg_ctl", "--wait", "--options", options, "--log", str(self._folder / "log"), "start"
        )

    def stop(self) -> None:
        """Stop the server at once; who is connected loses the connection."""
        self._run("pg_ctl", "--wait", "--mode", "fast", "stop")

    def url(self, database: str) -> str:
        """Make an empty database, and return its URL, with a password that nobody checks."""
        import psycopg

        with psycopg.connect(
            host="127.0.0.1", port=self.port, user="postgres", autocommit=True
        ) as connection:
            connection.execute(f"CREATE DATABASE {database}")
        return f"postgresql+psycopg://postgres:secret@127.0.0.1:{self.port}/{database}"

    def remove(self) -> None:
        """Stop the server, and remove its folder."""
        self._run("pg_ctl", "--mode", "immediate", "stop", check=False)
        shutil.rmtree(self._folder, ignore_errors=True)
