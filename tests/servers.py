"""Real servers that tests work with: MLflow's, and PostgreSQL."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class MLflowServer:
    """An MLflow server on a database, which can be killed and started again on its port.

    Its artifacts are beside the database.

    Args:
        database: The database's file.
        options: Further options of ``mlflow server``.
        environment: Variables that are set for it.
    """

    def __init__(
        self, database: Path, options: Sequence[str] = (), environment: Mapping[str, str] = {}
    ) -> None:
        port = free_port()
        self.uri = f"http://127.0.0.1:{port}"
        self.artifacts = database.with_name("artifacts")
        self._log = database.with_name("server.log")
        self._command = [sys.executable, "-m", "mlflow", "server", "--port", str(port)]
        self._command += ["--backend-store-uri", f"sqlite:///{database}", "--workers", "1"]
        self._command += ["--artifacts-destination", str(self.artifacts), *options]
        # Of its processes, seven run jobs of language models, and take most of the time to start.
        self._environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **environment}
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with self._log.open("w") as log:
            # In a group of its own, so that all of it can be stopped.
            self._process = subprocess.Popen(
                self._command,
                cwd=self._log.parent,
                env={**os.environ, **self._environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=2)
                return
            except OSError:
                assert self._process.poll() is None, self._log.read_text()
                time.sleep(0.2)
        self.kill()
        raise AssertionError(f"{self.uri} does not answer: {self._log.read_text()}")

    @property
    def is_alive(self) -> bool:
        """Whether its first process runs."""
        return self._process.poll() is None

    def send_signal(self, which: signal.Signals) -> None:
        """Send a signal to all of its processes."""
        os.killpg(self._process.pid, which)

    def kill(self) -> None:
        """Kill it.

        A gentle end waits for connections that clients keep open; one that is stopped hears of
        none.
        """
        if self.is_alive:
            self.send_signal(signal.SIGKILL)
        self._process.wait()


@contextmanager
def mlflow_server(
    database: Path, options: Sequence[str] = (), environment: Mapping[str, str] = {}
) -> Iterator[MLflowServer]:
    """Start a real MLflow server on a database, and wait until it answers."""
    server = MLflowServer(database, options, environment)
    try:
        yield server
    finally:
        server.kill()


class Proxy:
    """A TCP proxy before a server, which can lose answers: the server has done what was asked.

    Args:
        port: The server's port.

    Attributes:
        uri: Address of the proxy.
        lose: Text of a request line, such as ``runs/create``: answers to these requests are lost,
            each request's first time. Empty loses none.
        lost: The request lines whose answers were lost.
    """

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self.lose = ""
        self.lost: list[str] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept no more connections."""
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        """Forward one connection."""
        line = ""
        with client, socket.create_connection(self._target) as server, suppress(OSError):
            while True:
                for ready in select.select([client, server], [], [])[0]:
                    data = ready.recv(65536)
                    if not data:
                        return
                    if ready is client:
                        # Of a request in several parts the first one has the line.
                        line = line or data.split(b"\r\n", 1)[0].decode()
                        server.sendall(data)
                    elif self.lose and self.lose in line and line not in self.lost:
                        self.lost.append(line)
                        return
                    else:
                        line = ""
                        client.sendall(data)


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
