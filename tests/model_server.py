"""A model as MLflow serves it, and what strangers send it."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from pipeline.__main__ import main
from pipeline.tracking import find_runs
from pipeline.tracking.workspace import open_workspace
from tests.conftest import PROJECT, QUICK, use_folder, write_digits
from tests.servers import free_port

Answers = list[dict[str, Any]]


def encoded(kind: str, image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def request(*images: Any) -> str:
    """Return the body of a request about images in base64."""
    return json.dumps({"dataframe_records": [{"image": image} for image in images]})


GOOD = encoded("PNG", Image.new("L", (16, 16), 200))


def small_and_large(width: int = 8000, height: int = 8000) -> bytes:
    """Return a GIF of some dozens of bytes whose first frame claims 64 million pixels."""
    content = bytearray(encoded("GIF", Image.new("L", (8, 8))))
    place = content.index(b"\x2c" + bytes(4) + b"\x08\0\x08\0")
    content[6:10] = width.to_bytes(2, "little") + height.to_bytes(2, "little")
    content[place + 5 : place + 9] = width.to_bytes(2, "little") + height.to_bytes(2, "little")
    return bytes(content)


def hostile() -> list[str]:
    """Return requests, each of which would take a server without limits hundreds of megabytes."""
    cut_off = encoded("PNG", Image.new("L", (7900, 7900)), compress_level=1)[:90_000]
    return [
        request(*[text(small_and_large())] * 30),
        request(*[text(cut_off)] * 20),
        request(*[text(encoded("PNG", Image.new("1", (8000, 8000))))] * 20),
        request(*["A" * 130_000] * 30),
        request(*[text(GOOD)] * 2000),
    ]


def train_model(folder: Path) -> Path:
    """Train a small network in a folder; return that of the exported model."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_folder(folder, monkeypatch)
        raw = yaml.safe_load(QUICK.replace("SOURCE", str(write_digits(folder / "digits", 30))))
        raw["base"]["training"]["epochs"] = 1
        (folder / "quick.yaml").write_text(yaml.safe_dump(raw))
        assert main(["train", "--config", str(folder / "quick.yaml")]) == 0
        workspace = open_workspace("quick")
        (row,) = find_runs.find_trainings(workspace)
        (loaded,) = workspace.client.search_logged_models([workspace.experiment_id])
        assert loaded.source_run_id == row["run_id"]
        return Path(str(loaded.artifact_location).removeprefix("file://"))


class ScoringServer:
    """A running scoring server of MLflow's.

    Args:
        uri: Its address.
        log: The file that it prints to.
        process: The first of its processes.
    """

    def __init__(self, uri: str, log: Path, process: subprocess.Popen[bytes]) -> None:
        self.uri, self.log, self._process = uri, log, process

    def ask(self, *images: Any) -> Answers:
        return self.strictly(self.post(request(*images)))

    def post(self, body: str, kind: str = "application/json") -> str:
        sent = urllib.request.Request(
            f"{self.uri}/invocations", body.encode(), {"Content-Type": kind}
        )
        with urllib.request.urlopen(sent, timeout=120) as answer:
            return str(answer.read().decode())

    @staticmethod
    def strictly(body: str) -> Answers:
        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is not of JSON")

        answers: Answers = json.loads(body, parse_constant=refuse)["predictions"]
        return answers

    def memory(self) -> int:
        """Return the resident bytes of all its processes."""
        of = str(self._process.pid)
        listed = subprocess.run(
            ["ps", "-o", "rss=", "--ppid", of, "-p", of], capture_output=True, text=True, check=True
        )
        return sum(map(int, listed.stdout.split())) * 1024


@contextmanager
def scoring_server(model: Path, limits: Mapping[str, str]) -> Iterator[ScoringServer]:
    """Serve a model from its folder, and wait until it answers."""
    port, log = free_port(), model.parent / "server.log"
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "-m",
        str(model),
        "-p",
        str(port),
        "--env-manager",
        "local",
    ]
    variables = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", **limits}
    # Not to a pipe: full of lines that nobody reads, it would stop the server.
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=model.parent, env=variables, stdout=output, stderr=subprocess.STDOUT
        )
    server = ScoringServer(f"http://127.0.0.1:{port}", log, process)
    try:
        for _ in range(400):
            try:
                urllib.request.urlopen(f"{server.uri}/ping", timeout=5).read()
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                time.sleep(0.3)
        else:
            raise AssertionError(f"{server.uri} does not answer: {log.read_text()}")
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
