"""Workers of a study on a real Ray cluster of two nodes on this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from filelock import FileLock

from pipeline.tracking import names
from tests.conftest import Cli, start, wait_for
from tests.search.test_study import LIST, runs, study_file
from tests.search.test_workers import TUNE, epochs_of, rest_of
from tests.servers import free_port

MANY = 30
"""Epochs that leave time to stop a node."""


class Cluster:
    """A Ray cluster whose nodes are processes of this machine, with one core each."""

    def __init__(self, folder: Path) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        port = self.address.partition(":")[2]
        self._log = (folder / "ray.log").open("w")
        head = ("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}")
        head += (f"--ray-client-server-port={free_port()}",)
        self.nodes = [self._start(*head)]
        try:
            self._wait_for_nodes(1)
            self.nodes.append(self._start(f"--address={self.address}"))
            self._wait_for_nodes(2)
        except BaseException:
            self.close()
            raise

    def _start(self, *options: str) -> subprocess.Popen[bytes]:
        program = Path(sys.executable).with_name("ray")
        command = [str(program), "start", "--block", "--num-cpus=1", "--disable-usage-stats"]
        return subprocess.Popen([*command, *options], stdout=self._log, stderr=self._log)

    def _wait_for_nodes(self, count: int) -> None:
        """Wait for the nodes in a process of its own, since Ray is for good in one that has it."""
        script = f"""
import time
import ray
ray.init(address={self.address!r}, log_to_driver=False, logging_level="ERROR")
while sum(node["Alive"] for node in ray.nodes()) != {count}:
    time.sleep(0.2)
"""
        ends = time.monotonic() + 90
        while time.monotonic() < ends:
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                socket.create_connection(("127.0.0.1", int(self.address.partition(":")[2]))).close()
                subprocess.run(
                    [sys.executable, "-c", script],
                    check=True,
                    capture_output=True,
                    timeout=ends - time.monotonic(),
                )
                return
            time.sleep(0.5)
        raise AssertionError(f"the Ray cluster has no {count} nodes")

    def stop_node(self, number: int) -> None:
        """Kill all processes of a node."""
        node = psutil.Process(self.nodes[number].pid)
        for process in [*node.children(recursive=True), node]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.nodes[number].wait()

    def close(self) -> None:
        """Kill all nodes."""
        for number in reversed(range(len(self.nodes))):
            if self.nodes[number].poll() is None:
                self.stop_node(number)
        self._log.close()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    # Whoever has used Ray before may have a token, which `ray start` then asks all others for.
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    # Ray's sockets need a short path. Of two clusters that start on a machine one may not come up.
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    with FileLock(Path(tempfile.gettempdir()) / "ray-of-tests.lock"):
        cluster = Cluster(folder)
        try:
            yield cluster
        finally:
            cluster.close()
            shutil.rmtree(folder, ignore_errors=True)


def file_of(quick: Path, epochs: int, **study: Any) -> str:
    base = yaml.safe_load(quick.read_text())["base"]
    base["training"] |= {"epochs": epochs, "checkpoint_seconds": 0}
    study = {"launcher": "ray", "heartbeat": 1, **study}
    return str(study_file(quick, base=base, configs=LIST, study=study))


def test_a_cluster_that_is_not_there_is_refused_before_any_training(
    cli: Cli, quick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    refused = cli("tune", "--config", file_of(quick, 1))
    assert refused.code == 2
    assert f"no Ray cluster answers at RAY_ADDRESS '{os.environ['RAY_ADDRESS']}'" in refused.err
    assert refused.err.count("\n") == 1
    assert not runs("train") and not runs("tune")


@pytest.mark.parametrize(
    ("study", "reason"),
    [
        ({"launcher": "rey"}, "nearest: ray"),
        ({"launcher": "local", "gpus": 1}, "gpus is given, and only launcher ray"),
        ({"gpus": 1.5}, "gpus 1.5 given; a part of one GPU, or whole ones"),
        ({"cpus": 0}, "cpus: 0 given; must be greater"),
        ({"gpus": -1}, "gpus: -1 given; must be greater"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    cli: Cli, quick: Path, study: dict[str, Any], reason: str
) -> None:
    refused = cli("tune", "--config", file_of(quick, 1, **study))
    assert refused.code == 2 and reason in refused.err


@pytest.mark.thorough
def test_a_study_begun_here_goes_on_on_a_cluster_that_loses_a_node(
    cluster: Cluster, quick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    file = file_of(quick, MANY, workers=2, repeats=2)
    for wanted in ("--study.gpus", "--study.cpus"):
        refused = start([*TUNE, file, wanted, "2"], quick.parent)
        said = rest_of(refused)
        assert refused.returncode == 2
        assert f"{wanted[2:]}: 2 given, and no node of the Ray cluster has more than" in said
    here = start([*TUNE, file, "--study.launcher", "local"], quick.parent)
    wait_for(here, "epoch 3/")
    here.send_signal(signal.SIGINT)
    rest_of(here)
    # One repeat of each of two networks is still to begin.
    tuned = start([*TUNE, file], quick.parent)
    seen = wait_for(tuned, "2 workers on the Ray cluster, 1 core each")
    seen += wait_for(tuned, "[1]   ") + wait_for(tuned, "[2]   ")
    cluster.stop_node(1)
    seen += rest_of(tuned)
    assert tuned.returncode == 0, seen
    assert "is taken over from process" in seen or "goes on after epoch" in seen
    trained = runs("train")
    assert len(trained) == 4
    for run in trained:
        assert run.data.tags[names.STATE] == names.COMPLETE
        assert sorted(epochs_of(run.info.run_id)) == list(range(1, MANY + 1))


@pytest.mark.thorough
def test_workers_on_a_cluster_end_with_the_process_that_has_begun_them(
    cluster: Cluster, quick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    tuned = start([*TUNE, file_of(quick, MANY, workers="auto", repeats=2)], quick.parent)
    wait_for(tuned, "[1]   ")
    tuned.send_signal(signal.SIGINT)
    said = rest_of(tuned)
    assert tuned.returncode == 1 and "stopped by SIGINT" in said
    ends = time.monotonic() + 30
    while workers_of(quick.parent) and time.monotonic() < ends:
        time.sleep(0.5)
    assert not workers_of(quick.parent)
    states = {run.data.tags[names.STATE] for run in runs("train")}
    assert states <= {names.INTERRUPTED, names.COMPLETE}


def workers_of(folder: Path) -> list[int]:
    """Return the ids of the processes that train in a folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.cwd() == str(folder) and "tune" in process.cmdline():
                found.append(process.pid)
    return found
