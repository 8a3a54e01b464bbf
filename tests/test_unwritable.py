"""Folders that cannot be written to, and disks that are full.

A person gets one line, at once, and nothing is half written.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.tracking.workspace import Workspace
from tests.conftest import Cli, Finished, run_unprivileged
from tests.jobs.test_prepare import write_study

pytestmark = pytest.mark.slow

resource = pytest.importorskip("resource")

SEVERAL = """
import contextlib, io, json, os, sys, time
from pipeline.__main__ import main
for step in json.loads(sys.argv[1]):
    os.chdir(step["cwd"])
    out, err, started = io.StringIO(), io.StringIO(), time.monotonic()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(step["arguments"])
    print("\\n" + json.dumps([code, out.getvalue(), err.getvalue(), time.monotonic() - started]))
"""
"""One process for several steps: to load torch and MLflow takes longer than all of them."""


def run_all(cwd: Path, *steps: list[str]) -> list[tuple[Finished, float]]:
    """Run steps in one process that permissions hold for.

    Return what each left behind, and its seconds.
    """
    given = [{"cwd": str(cwd), "arguments": [str(argument) for argument in step]} for step in steps]
    done = run_unprivileged([sys.executable, "-c", SEVERAL, json.dumps(given)], cwd)
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(lines) == len(steps), done.stderr
    assert done.stderr == ""
    return [
        (Finished(code, out, err), seconds) for code, out, err, seconds in map(json.loads, lines)
    ]


def is_one_line(done: Finished, *texts: str) -> bool:
    return (
        done.code == 2
        and done.err.startswith("error: ")
        and len(done.err.splitlines()) == 1
        and [text for text in texts if text not in done.err] == []
    )


@pytest.fixture
def read_only(quick: Path, cli: Cli) -> Iterator[Path]:
    """A folder that nobody may write to.

    It has a study, its champion, and what they were made of.
    """
    study = write_study(quick)
    assert cli("main", "--config", study, "--training.epochs", "1").code == 0
    folder = study.parent
    paths = [path for path in folder.rglob("*") if not path.is_symlink()]
    for path in [*paths, folder]:
        path.chmod(path.stat().st_mode & ~0o222)
    yield folder
    for path in [folder, *paths]:
        path.chmod(path.stat().st_mode | 0o200)


def test_in_an_empty_folder_that_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    empty = tmp_path / "empty"
    empty.mkdir(mode=0o555)
    steps = [
        ["prepare"],
        ["train"],
        ["main"],
        ["summary"],
        ["evaluate"],
        ["register"],
        ["reconcile"],
    ]
    for done, seconds in run_all(empty, *steps):
        assert is_one_line(done, str(empty), "Permission denied", "MLFLOW_TRACKING_URI=")
        assert seconds < 30
    assert list(empty.iterdir()) == []


def test_in_a_folder_of_results_that_cannot_be_written_to(read_only: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in read_only.rglob("*")}
    file, images, out = (
        str(read_only / "study.yaml"),
        str(read_only / "digits" / "digit 0"),
        tmp_path / "predictions.csv",
    )
    predict = ["predict", "--model_uri", "models:/quick@champion", "--images", images]
    (compared, _), (evaluated, _), (registered, _), (tuned, _), (predicted, _), (refused, _) = (
        run_all(
            read_only,
            ["summary", "--config", file],
            ["evaluate", "--config", file],
            ["register", "--config", file],
            ["tune", "--config", file],
            [*predict, "--out", str(out)],
            predict,
        )
    )
    # What only reads is done.
    assert "00 small_cnn" in compared.out and is_one_line(
        compared, "nothing is written: ", "mlflow.db", "it is read-only"
    )
    assert predicted.code == 0 and len(out.read_text().splitlines()) == 31
    for done in (evaluated, registered, tuned):
        assert is_one_line(
            done, str(read_only / "mlflow.db"), "it is read-only", "MLFLOW_TRACKING_URI="
        )
    assert is_one_line(refused, "out: 'predictions.csv' cannot be written: Permission denied")
    assert {path: path.stat().st_mtime_ns for path in read_only.rglob("*")} == before


PARTS = {
    "outputs": [["prepare"], ["train"], ["tune"], ["main"]],
    "prepared": [["prepare"], ["train"], ["tune"]],
    "checkpoints": [["train"], ["tune"]],
    "mlruns": [["train"], ["tune"]],
    "optuna.db": [["tune"]],
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_cannot_be_written_to_is_found_out_before_anything_is_done(
    quick: Path, cli: Cli, store: Path, part: str
) -> None:
    study = write_study(quick)
    # A file in the place of a folder, and the other way round: nobody, not even root, can write
    # there.
    if part == "optuna.db":
        (store / part).mkdir()
        (store / part / "file").touch()
    else:
        (store / part).touch()
    for step in PARTS[part]:
        done = cli(*step, "--config", study)
        assert done.code == 2 and len(done.err.splitlines()) == 1, (step, done.err)
        assert str(store / part) in done.err
        assert "trial 1" not in done.out


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 12 kB: what is written then fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_comparison_that_cannot_be_written_leaves_the_former_one(
    cli: Cli, quick: Path, workspace: Workspace, request: pytest.FixtureRequest
) -> None:
    study = write_study(quick)
    assert cli("tune", "--config", study, "--training.epochs", "1").code == 0
    before = {
        file.name: file.read_bytes() for file in workspace.outputs.iterdir() if file.is_file()
    }
    (workspace.outputs / "comparison.md").write_text("of yesterday")
    request.getfixturevalue("small_files")
    done = cli("summary", "--config", study)
    assert is_one_line(done, "File too large")
    after = {file.name: file.read_bytes() for file in workspace.outputs.iterdir() if file.is_file()}
    assert after == {**before, "comparison.md": b"of yesterday"}


def test_images_that_cannot_be_stored_are_one_line(
    cli: Cli, quick: Path, store: Path, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue("small_files")
    done = cli("prepare", "--config", quick, "--data.image_size", "64")
    assert is_one_line(done, "images cannot be stored in", str(store / "prepared"))
    assert not list((store / "prepared").glob("*/manifest.csv"))


@pytest.mark.skipif(os.name != "posix", reason="another system's permissions")
def test_a_file_that_may_not_be_read_is_one_line(quick: Path) -> None:
    quick.chmod(0o000)
    ((done, _),) = run_all(quick.parent, ["prepare", "--config", str(quick)])
    quick.chmod(0o644)
    assert is_one_line(done, str(quick), "Permission denied")
