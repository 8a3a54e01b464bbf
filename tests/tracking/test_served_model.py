"""A registered model as it answers strangers over HTTP."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.__main__ import main
from pipeline.tracking import find
from pipeline.tracking.registry import requirement
from pipeline.tracking.store import open_workspace
from tests.conftest import PROJECT, QUICK, use_folder, write_digits

Answers = list[dict[str, Any]]
LIMITS = {"PIPELINE_MAX_ROWS": "30", "PIPELINE_MAX_IMAGE_BYTES": "100000", "PIPELINE_MAX_REQUEST_PIXELS": "70000000"}


def encoded(kind: str, image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def text(content: bytes) -> str:
    return base64.b64encode(content).decode()


GOOD = encoded("PNG", Image.new("L", (16, 16), 200))


def small_and_large(width: int = 8000, height: int = 8000) -> bytes:
    """Return a GIF of some dozens of bytes with so many pixels, as its first frame claims: 64 million."""
    content = bytearray(encoded("GIF", Image.new("L", (8, 8))))
    place = content.index(b"\x2c" + bytes(4) + b"\x08\0\x08\0")
    content[6:10] = width.to_bytes(2, "little") + height.to_bytes(2, "little")
    content[place + 5 : place + 9] = width.to_bytes(2, "little") + height.to_bytes(2, "little")
    return bytes(content)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an exported model."""
    folder = tmp_path_factory.mktemp("served model")
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_folder(folder, monkeypatch)
        raw = yaml.safe_load(QUICK.replace("SOURCE", str(write_digits(folder / "digits", 30))))
        raw["base"]["training"]["epochs"] = 1
        (folder / "quick.yaml").write_text(yaml.safe_dump(raw))
        assert main(["train", "--config", str(folder / "quick.yaml")]) == 0
        workspace = open_workspace("quick")
        (row,) = find.trainings(workspace)
        (loaded,) = workspace.client.search_logged_models([workspace.experiment_id])
        assert loaded.source_run_id == row["run_id"]
        return Path(str(loaded.artifact_location).removeprefix("file://"))


class Server:
    """A real scoring server.

    Attributes:
        process: MLflow's.
        url: Where it takes requests.
        log: What it has printed.
    """

    def __init__(self, model: Path, port: int) -> None:
        command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model), "-p", str(port), "--env-manager", "local"]
        # Not to a pipe: full of lines that nobody reads, it would stop the server.
        self.log = model.parent / "server.log"
        variables = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", **LIMITS}
        self.process = subprocess.Popen(command, cwd=model.parent, env=variables, stdout=self.log.open("w"), stderr=subprocess.STDOUT)
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, *images: Any) -> Answers:
        return self.strictly(self.post(json.dumps({"dataframe_records": [{"image": image} for image in images]})))

    def post(self, body: str, kind: str = "application/json") -> str:
        request = urllib.request.Request(f"{self.url}/invocations", body.encode(), {"Content-Type": kind})
        with urllib.request.urlopen(request, timeout=120) as answer:
            return str(answer.read().decode())

    @staticmethod
    def strictly(body: str) -> Answers:
        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is not of JSON")

        answers: Answers = json.loads(body, parse_constant=refuse)["predictions"]
        return answers

    def memory(self) -> int:
        """Return the resident bytes of all its processes."""
        of = str(self.process.pid)
        listed = subprocess.run(["ps", "-o", "rss=", "--ppid", of, "-p", of], capture_output=True, text=True, check=True)
        return sum(map(int, listed.stdout.split())) * 1024


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    served = Server(model, port)
    until = time.monotonic() + 120
    while time.monotonic() < until:
        try:
            urllib.request.urlopen(f"{served.url}/ping", timeout=5).read()
            break
        except OSError:
            assert served.process.poll() is None, served.log.read_text()
            time.sleep(0.3)
    else:
        raise AssertionError(f"{served.url} does not answer: {served.log.read_text()}")
    yield served
    os.kill(served.process.pid, signal.SIGTERM)
    served.process.wait(timeout=30)


def test_good_images_are_answered(server: Server) -> None:
    answers = server.ask(text(GOOD), text(GOOD))
    assert answers[0] == answers[1] and set(answers[0]) == {"label", "confidence", "probabilities"}
    assert answers[0]["label"].startswith("digit ") and sum(answers[0]["probabilities"]) == pytest.approx(1)


@pytest.mark.parametrize("width", [60, 64, 76])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_base64_may_have_line_breaks(server: Server, width: int, end: str) -> None:
    whole = text(GOOD)
    broken = end.join(whole[start : start + width] for start in range(0, len(whole), width)) + end
    assert server.ask(broken) == server.ask(whole)


NOT_IMAGES: dict[str, tuple[Any, str]] = {
    "no base64": ("no base64!", "not a base64 image"),
    "empty": ("", "not a base64 image"),
    "text": (text(b"no picture"), "not a base64 image"),
    "a path": ("/etc/passwd", "not a base64 image"),
    "cut off": (text(encoded("JPEG", Image.new("RGB", (64, 64)))[:300]), "not a base64 image"),
    "a bomb": (text(small_and_large(40_000, 40_000)), "more than 64000000 pixels"),
    "many bytes": (text(os.urandom(120_000)), "more than 100000 bytes"),
    "far too many bytes": ("A" * 1_000_000, "more than 100000 bytes"),
}


@pytest.mark.parametrize("case", NOT_IMAGES)
def test_what_is_no_image_is_an_error_beside_good_ones_in_strict_json(server: Server, case: str) -> None:
    given, why = NOT_IMAGES[case]
    first, bad, last = server.ask(text(GOOD), given, text(GOOD))
    assert bad == {"label": None, "confidence": None, "probabilities": None, "error": why}
    (alone,) = server.ask(text(GOOD))
    assert first == last and first["error"] is None and first["label"] == alone["label"]
    # In a batch of another size the last digits are others.
    assert first["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)


def test_rows_beyond_the_limit_are_errors(server: Server) -> None:
    answers = server.ask(*[text(GOOD)] * 40)
    assert [answer["error"] for answer in answers] == [None] * 30 + ["beyond the 30 images of a request"] * 10


def test_pixels_beyond_those_of_a_request_are_errors(server: Server) -> None:
    large = text(encoded("PNG", Image.new("L", (6000, 6000))))
    answers = server.ask(large, text(GOOD), large, text(GOOD))
    assert [answer["error"] for answer in answers] == [None, None, "more than the 70000000 pixels of a request", None]


def test_no_answer_tells_of_this_machine(server: Server, model: Path) -> None:
    for given, _ in NOT_IMAGES.values():
        body = server.post(json.dumps({"dataframe_records": [{"image": given}]}))
        assert not re.search(r"Traceback|File \"|/[a-z]+/[a-z]+/", body), body
        assert str(model) not in body and str(PROJECT) not in body


def hostile() -> Iterator[Callable[[Server], object]]:
    """Yield requests, each of which would take a server hundreds of megabytes."""
    yield lambda server: server.ask(*[text(small_and_large())] * 30)
    yield lambda server: server.ask(*[text(encoded("PNG", Image.new("L", (7900, 7900)), compress_level=1)[:90_000])] * 20)
    yield lambda server: server.ask(*[text(encoded("PNG", Image.new("1", (8000, 8000))))] * 20)
    yield lambda server: server.ask(*["A" * 130_000] * 30)
    yield lambda server: server.ask(*[text(GOOD)] * 2000)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory of processes is read as Linux tells it")
@pytest.mark.timeout(900)
@pytest.mark.thorough
def test_hostile_requests_leave_no_memory(server: Server) -> None:
    requests = list(hostile())

    def ask(count: int) -> int:
        for number in range(count):
            requests[number % len(requests)](server)
        return server.memory()

    after_ten = ask(10)
    assert ask(20) <= 1.1 * after_ten
    assert server.ask(text(GOOD))[0]["label"]


@pytest.mark.parametrize("package", ["torch", "torchvision", "numpy"])
def test_requirements_name_versions_that_registries_have(package: str) -> None:
    assert re.fullmatch(rf"{package}==[0-9.]+", requirement(package))


def test_a_models_requirements_have_no_local_versions(model: Path) -> None:
    listed = (model / "requirements.txt").read_text()
    assert "torch==" in listed and "+" not in listed
    assert np.all([re.fullmatch(r"[a-z0-9-]+==[0-9.]+", line) for line in listed.splitlines()])
