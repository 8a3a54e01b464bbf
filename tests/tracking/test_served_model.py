"""A registered model as it answers strangers over HTTP."""

from __future__ import annotations

import json
import os
import re
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.tracking.export import requirement
from tests.conftest import PROJECT
from tests.data.test_decoding_limits import jpeg_of_scans
from tests.fuzz.inputs import changed, fuzz
from tests.model_server import (
    GOOD,
    ScoringServer,
    encoded,
    hostile,
    request,
    scoring_server,
    small_and_large,
    text,
    train_model,
)

pytestmark = pytest.mark.slow

LIMITS = {
    "PIPELINE_MAX_ROWS": "30",
    "PIPELINE_MAX_IMAGE_BYTES": "100000",
    "PIPELINE_MAX_REQUEST_PIXELS": "70000000",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an exported model."""
    return train_model(tmp_path_factory.mktemp("served model"))


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[ScoringServer]:
    with scoring_server(model, LIMITS) as server:
        yield server


def test_good_images_are_answered(server: ScoringServer) -> None:
    answers = server.ask(text(GOOD), text(GOOD))
    assert answers[0] == answers[1] and set(answers[0]) == {"label", "confidence", "probabilities"}
    assert answers[0]["label"].startswith("digit ") and sum(
        answers[0]["probabilities"]
    ) == pytest.approx(1)


@pytest.mark.parametrize("width", [60, 64, 76])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_base64_may_have_line_breaks(server: ScoringServer, width: int, end: str) -> None:
    whole = text(GOOD)
    broken = end.join(whole[start : start + width] for start in range(0, len(whole), width)) + end
    assert server.ask(broken) == server.ask(whole)


NOT_IMAGES: dict[str, tuple[Any, str]] = {
    "no base64": ("no base64!", "not a base64 image"),
    "empty": ("", "not an image, or a damaged one"),
    "text": (text(b"no picture"), "not an image, or a damaged one"),
    "a path": ("/etc/passwd", "not a base64 image"),
    "cut off": (
        text(encoded("JPEG", Image.new("RGB", (64, 64)))[:300]),
        "not an image, or a damaged one",
    ),
    "many scans": (text(jpeg_of_scans(101)), "a JPEG of 101 scans, more than 100"),
    "a bomb": (text(small_and_large(40_000, 40_000)), "more than 64000000 pixels"),
    "many bytes": (text(os.urandom(120_000)), "more than 100000 bytes"),
    "far too many bytes": ("A" * 1_000_000, "more than 100000 bytes"),
}


@pytest.mark.parametrize("case", NOT_IMAGES)
def test_what_is_no_image_is_an_error_beside_good_ones_in_strict_json(
    server: ScoringServer, case: str
) -> None:
    given, why = NOT_IMAGES[case]
    first, bad, last = server.ask(text(GOOD), given, text(GOOD))
    assert bad == {"label": None, "confidence": None, "probabilities": None, "error": why}
    (alone,) = server.ask(text(GOOD))
    assert first == last and first["error"] is None and first["label"] == alone["label"]
    # In a batch of another size the last digits are others.
    assert first["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)


def test_rows_beyond_the_limit_are_errors(server: ScoringServer) -> None:
    answers = server.ask(*[text(GOOD)] * 40)
    assert [answer["error"] for answer in answers] == [None] * 30 + [
        "beyond the 30 images of a request"
    ] * 10


def test_pixels_beyond_those_of_a_request_are_errors(server: ScoringServer) -> None:
    large = text(encoded("PNG", Image.new("L", (6000, 6000))))
    answers = server.ask(large, text(GOOD), large, text(GOOD))
    assert [answer["error"] for answer in answers] == [
        None,
        None,
        "more than the 70000000 pixels of a request",
        None,
    ]


def test_pixels_of_what_is_damaged_count_too(server: ScoringServer) -> None:
    whole = encoded("PNG", Image.new("1", (6000, 6000)))
    # As many bytes, with one in the middle of the pixels another.
    damaged = whole[:-40] + bytes([whole[-40] ^ 255]) + whole[-39:]
    answers = server.ask(text(damaged), text(whole), text(GOOD))
    assert [answer["error"] for answer in answers] == [
        "not an image, or a damaged one",
        "more than the 70000000 pixels of a request",
        "more than the 70000000 pixels of a request",
    ]


def test_no_answer_tells_of_this_machine(server: ScoringServer, model: Path) -> None:
    for given, _ in NOT_IMAGES.values():
        body = server.post(request(given))
        assert not re.search(r"Traceback|File \"|/[a-z]+/[a-z]+/", body), body
        assert str(model) not in body and str(PROJECT) not in body


@pytest.mark.timeout(4000)
def test_requests(server: ScoringServer) -> None:
    good = json.dumps(
        {"dataframe_records": [{"image": text(GOOD)}, {"image": "no image"}]}
    ).encode()
    split = json.dumps(
        {"dataframe_split": {"columns": ["image"], "data": [[text(small_and_large())]]}}
    ).encode()
    inputs = json.dumps({"inputs": {"image": [text(GOOD), None, 3]}, "params": {"a": 1}}).encode()

    def check(content: bytes) -> None:
        try:
            body = server.post(content.decode(errors="replace"))
        except urllib.error.HTTPError as error:
            # What MLflow answers before the model is asked; lists nested some thousand times it
            # cannot read.
            assert error.code in (400, 413, 415, 422) or (
                error.code == 500 and content.count(b"[") > 900
            ), error.code
            return
        for answer in server.strictly(body):
            assert (answer["label"] is None) == bool(answer.get("error"))

    assert (
        fuzz(
            "requests",
            changed(
                [good, split, inputs], [b"[[", b"null", b'"image"', b"NaN", b"1e999", b"\\u0000"]
            ),
            check,
        )
        > 40
    )
    assert server.ask(text(GOOD))[0]["label"]


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(),
    reason="the memory of processes is read as Linux tells it",
)
@pytest.mark.timeout(900)
@pytest.mark.thorough
def test_hostile_requests_leave_no_memory(server: ScoringServer) -> None:
    requests = hostile()

    def ask(count: int) -> int:
        for number in range(count):
            server.post(requests[number % len(requests)])
        return server.memory()

    after_ten = ask(10)
    # In the first fifty, what the C library keeps grew by a tenth;
    # `python -m tests.benchmarks.serving` sends a thousand.
    assert ask(50) <= 1.1 * after_ten
    assert server.ask(text(GOOD))[0]["label"]


@pytest.mark.parametrize("package", ["torch", "torchvision", "numpy"])
def test_requirements_name_versions_that_registries_have(package: str) -> None:
    assert re.fullmatch(rf"{package}==[0-9.]+", requirement(package))


def test_a_models_requirements_have_no_local_versions(model: Path) -> None:
    listed = (model / "requirements.txt").read_text()
    assert "torch==" in listed and "+" not in listed
    assert np.all([re.fullmatch(r"[a-z0-9-]+==[0-9.]+", line) for line in listed.splitlines()])
