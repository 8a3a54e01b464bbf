"""The kit for machines with a GPU, tried as far as a processor goes."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.conftest import PROJECT

KIT = PROJECT / "tests" / "gpu" / "run.sh"


def run(python: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHON": python, **environment}
    for name in ("WHEELS", "PYTHONPATH", "GPU_KIT_DEVICE"):
        if name not in environment:
            variables.pop(name, None)
    return subprocess.run(
        ["bash", str(KIT), *arguments], capture_output=True, text=True, env=variables, check=False
    )


@pytest.mark.timeout(1800)
@pytest.mark.thorough
def test_it_runs_without_mlflow_and_optuna_and_without_the_other_tests_settings(
    tmp_path: Path,
) -> None:
    done = run(sys.executable, GPU_KIT_DEVICE="cpu", OMP_NUM_THREADS="1", PYTEST_ADDOPTS="")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "24 passed" in done.stdout and "numprocesses" not in done.stdout
    assert "small_cnn" in done.stdout and "tests: exit code 0, speed: exit code 0" in done.stdout


def test_which_wheels_are_missing_is_said_in_one_line_with_the_command_that_fetches_them(
    tmp_path: Path,
) -> None:
    # A bare environment: nothing is installed in it, pytest and torch neither.
    venv.create(tmp_path / "bare", with_pip=False)
    done = run(str(tmp_path / "bare" / "bin" / "python"), str(tmp_path / "nothing"))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"missing here and in {tmp_path / 'nothing'}: pydantic pydantic-core" in done.stderr
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert (
        f"pip download --only-binary=:all: --python-version {version} --platform "
        "manylinux_2_28_x86_64"
    ) in done.stderr
