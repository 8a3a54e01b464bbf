"""CONTRIBUTING.md's ways to add something.

They are done in a copy of the project as they are told, and used.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.conftest import PROJECT, QUICK, write_digits

pytestmark = pytest.mark.thorough

Add = Callable[..., Path]


def told(heading: str) -> str:
    """Return what CONTRIBUTING.md says below a heading."""
    text = (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = re.search(rf"^### {re.escape(heading)}\n(.*?)(?=^##|\Z)", text, re.M | re.S)
    assert found is not None, heading
    return found[1]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project."""
    copy = tmp_path / "project"
    shutil.copytree(PROJECT / "pipeline", copy / "pipeline")
    shutil.copy(PROJECT / "MLproject", copy)
    return copy


def extend(project: Path, heading: str) -> None:
    """Do what CONTRIBUTING.md tells below a heading: write new files, and put lines behind others.

    A block begins with a comment: the file, and for a file that is there the line that the rest
    comes behind.
    """
    blocks = re.findall(r"```(?:python|yaml)\n(.*?)```", told(heading), re.S)
    assert blocks
    for block in blocks:
        first, _, lines = block.partition("\n")
        place = re.fullmatch(r"# (\S+)(?:, below `(.*)`)?", first)
        assert place is not None, first
        file = project / place[1]
        if place[2] is None:
            assert not file.exists()
            file.write_text(lines)
            continue
        text = file.read_text(encoding="utf-8")
        assert text.count(f"{place[2]}\n") == 1, f"{place[2]!r} in {place[1]}"
        file.write_text(text.replace(f"{place[2]}\n", f"{place[2]}\n{lines}"), encoding="utf-8")


def run(project: Path, *arguments: str) -> str:
    """Run a step of the copy in its folder; return what it prints."""
    store = f"sqlite:///{project / 'mlflow.db'}"
    environment = {**os.environ, "PYTHONPATH": str(project), "MLFLOW_TRACKING_URI": store}
    command = [sys.executable, "-P", "-m", "pipeline", *arguments]
    done = subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def quick_copy(project: Path) -> Path:
    """An experiment file in the copy that trains in a second."""
    source = write_digits(project / "digits", 30)
    file = project / "quick.yaml"
    file.write_text(QUICK.replace("SOURCE", str(source)))
    return file


def test_a_network(project: Path, quick_copy: Path) -> None:
    extend(project, "A network")
    assert "linear" in run(project, "train", "--config", "quick.yaml", "--model.name", "linear")


def test_a_source(project: Path, quick_copy: Path) -> None:
    extend(project, "A source of images")
    out = run(project, "prepare", "--config", "quick.yaml", "--data.source", "stripes")
    assert "200 images of 2 classes" in out


def test_an_optimizer(project: Path, quick_copy: Path) -> None:
    extend(project, "An optimizer")
    run(project, "train", "--config", "quick.yaml", "--optimizer.name", "nadam")
    assert "nadam" in run(project, "train", "--help")


def test_a_metric(project: Path, quick_copy: Path) -> None:
    extend(project, "A metric")
    out = run(project, "train", "--config", "quick.yaml", "--training.best_metric", "val/top2")
    assert "validation top-2 accuracy" in out


def test_a_step(project: Path, quick_copy: Path) -> None:
    extend(project, "A step")
    run(project, "train", "--config", "quick.yaml")
    assert "1 trainings" in run(project, "count", "--config", "quick.yaml")
    assert "count" in yaml.safe_load((project / "MLproject").read_text())["entry_points"]
