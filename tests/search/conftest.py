"""Real servers for studies that several folders share: MLflow's, and PostgreSQL."""

from __future__ import annotations

import importlib.util
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
from pathlib import Path
from typing import NamedTuple

import pytest


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class TrackingServer(NamedTuple):
    """A real MLflow server: its address, and the folder of the artifacts that it takes."""

    uri: str
    artifacts: Path


@pytest.fixture(scope="session")
def tracking_server(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[TrackingServer]:
    """A real MLflow server with a store of its own."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_store, folder / "mlflow.db")
    address = f"127.0.0.1:{free_port()}"
    store = ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder / "artifacts")]
    command = [sys.executable, "-m", "mlflow", "server", *store, "--port", address.rpartition(":")[2], "--workers", "1"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://{address}/health", timeout=2)
                break
            except OSError:
                time.sleep(0.5)
        yield TrackingServer(f"http://{address}", folder / "artifacts")
    finally:
        # Its workers too; a gentle end waits for connections that clients keep open.
        os.killpg(process.pid, signal.SIGKILL)
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
        command = [*user, str(self._binaries / program), "--pgdata", str(self._folder / "data"), *arguments]
        subprocess.run(command, check=check, stdout=subprocess.DEVNULL, cwd=self._folder)

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        options = f"-p {self.port} -k '{self._folder}' -c listen_addresses=127.0.0.1 -c fsync=off"
        self._run("pg_ctl", "--wait", "--options", options, "--log", str(self._folder / "log"), "start")

    def stop(self) -> None:
        """Stop the server at once; who is connected loses the connection."""
        self._run("pg_ctl", "--wait", "--mode", "fast", "stop")

    def url(self, database: str) -> str:
        """Make an empty database, and return its URL, with a password that nobody checks."""
        import psycopg

        with psycopg.connect(host="127.0.0.1", port=self.port, user="postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {database}")
        return f"postgresql+psycopg://postgres:secret@127.0.0.1:{self.port}/{database}"

    def remove(self) -> None:
        """Stop the server, and remove its folder."""
        self._run("pg_ctl", "--mode", "immediate", "stop", check=False)
        shutil.rmtree(self._folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgreSQL]:
    """A real PostgreSQL server; in CI, where one must be installed, its lack is a failure."""
    on_path = shutil.which("pg_ctl")
    installed = [Path(on_path).parent] if on_path else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    missing = [] if installed else ["PostgreSQL's server"]
    missing += [] if importlib.util.find_spec("psycopg") else ["psycopg"]
    if missing:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"needs {' and '.join(missing)}")
    server = PostgreSQL(installed[-1])
    try:
        yield server
    finally:
        server.remove()
