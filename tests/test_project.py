"""The promises of the project's own files, and real launches by ``mlflow run``."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.projects.utils import load_project
from mlflow.utils.environment import _PythonEnv

from pipeline.__main__ import STEPS
from pipeline.experiment import load_experiment
from pipeline.steps.options import fields_of, parse_options
from pipeline.tracking import names
from tests.conftest import PROJECT, place_store, start, wait_for, write_digits

pytestmark = pytest.mark.slow

MLFLOW = str(Path(sys.executable).with_name("mlflow"))


def options_of(step: str) -> Any:
    import importlib

    return importlib.import_module(f"pipeline.steps.{step}").OPTIONS


def test_conda_yaml_has_the_dependencies_of_pyproject() -> None:
    environment = _PythonEnv.from_conda_yaml(str(PROJECT / "conda.yaml"))
    declared = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert environment.dependencies == declared["dependencies"]
    assert environment.python == "3.11"


def test_every_step_is_an_entry_point_whose_parameters_are_options() -> None:
    project = load_project(str(PROJECT))
    assert set(project._entry_points) == set(STEPS)
    for step in STEPS:
        known = {name for name, _ in fields_of(options_of(step))}
        entry = project.get_entry_point(step)
        assert set(entry.parameters) <= known
        assert [
            name for name in entry.parameters if f"--{name} {{{name}}}" not in entry.command
        ] == []


@pytest.mark.parametrize(
    "file", sorted((PROJECT / "experiments").glob("*.yaml")), ids=lambda file: file.name
)
def test_every_experiment_file_can_be_read_and_says_how_to_run_it(file: Path) -> None:
    experiment = load_experiment(str(file), {})
    assert experiment.trials > 0
    header = file.read_text().split("\nbase:")[0]
    assert header.startswith("# ")
    assert "mlflow run . -e main" in header
    # Two studies of one folder would share tables and champion; the default file is for any data,
    # whose name it takes.
    assert experiment.name == file.stem
    assert experiment.entries


def readme_commands() -> list[str]:
    text = re.sub(r"\\\n +", "", (PROJECT / "README.md").read_text())
    return re.findall(r"^    (?:srun )?(python -m pipeline .*)$", text, re.MULTILINE)


@pytest.mark.parametrize("command", readme_commands())
def test_every_command_of_the_readme_is_understood(command: str) -> None:
    step, *arguments = shlex.split(command)[3:]
    assert step in STEPS
    own, sections = parse_options(options_of(step), arguments)
    assert own is not None
    if step not in ("predict", "init", "reconcile"):
        file = PROJECT / own.config
        # The reader's own file stands for any.
        assert (
            load_experiment(
                str(file if file.exists() else PROJECT / "experiments" / "photos.yaml"), sections
            ).base
            is not None
        )


def test_the_readme_names_every_step() -> None:
    text = (PROJECT / "README.md").read_text()
    assert [step for step in STEPS if f"python -m pipeline {step}" not in text] == []
    assert text.count("python3 -m venv .venv") == 2


def launch(cwd: Path, *arguments: str, uri: Path | str = PROJECT) -> subprocess.Popen[str]:
    return start([MLFLOW, "run", str(uri), "--env-manager", "local", *arguments], cwd)


def all_runs(folder: Path) -> list[Any]:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    ids = [one.experiment_id for one in client.search_experiments()]
    return client.search_runs(ids, order_by=["attributes.start_time"])


@pytest.fixture
def elsewhere(tmp_path: Path, empty_store: Path) -> Path:
    """A folder that is not the project's, with an empty store in it."""
    path = tmp_path / "some where"
    mlflow.set_tracking_uri(place_store(empty_store, path))
    return path


def test_ctrl_c_ends_study_and_trial_killed(elsewhere: Path) -> None:
    smoke = f"config={PROJECT / 'experiments' / 'smoke.yaml'}"
    options = ("-P", smoke, "-P", "model.name=small_cnn", "-P", "training.epochs=60")
    first = launch(elsewhere, "-e", "tune", "--experiment-name", "digits study", *options)
    wait_for(first, "epoch 2/60")
    first.send_signal(signal.SIGINT)
    first.wait(timeout=60)
    for _ in range(60):
        stopped = all_runs(elsewhere)
        if stopped[0].info.status == "KILLED":
            break
        # MLflow's launcher writes FAILED over it, which is put right a few seconds later.
        time.sleep(0.5)
    assert [run.info.status for run in stopped] == ["KILLED", "KILLED"]
    assert [run.data.tags[names.STATE] for run in stopped] == ["interrupted", "interrupted"]


@pytest.mark.thorough
def test_a_study_is_continued_under_mlflow_run_with_one_parent(elsewhere: Path) -> None:
    file = elsewhere / "study.yaml"
    study = yaml.safe_load((PROJECT / "experiments" / "smoke.yaml").read_text())
    study["base"]["model"] = {"name": "small_cnn"}
    study["configs"] = [{"optimizer": {"lr": 1e-3}}, {"optimizer": {"lr": 2e-3}}]
    study |= {"space": {}, "study": {}}
    file.write_text(yaml.safe_dump(study))
    arguments = ("-e", "tune", "--experiment-name", "again", "-P", f"config={file}")
    outputs = [launch(elsewhere, *arguments).communicate(timeout=200)[0] for _ in range(2)]
    # Results stand where it was called.
    left = {path.name for path in elsewhere.iterdir()} - {"study.yaml"}
    assert left == {"mlflow.db", "mlruns", "optuna.db", "outputs", "prepared", "checkpoints"}
    assert "2 of 2 trainings are there" in outputs[1], outputs
    runs = all_runs(elsewhere)
    steps = [(run.data.tags[names.STEP], names.JOINS in run.data.tags) for run in runs]
    assert steps == [("tune", False), ("train", False), ("train", False), ("tune", True)]
    assert runs[3].data.tags[names.JOINS] == runs[0].info.run_id
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.tags["mlflow.project.entryPoint"] for run in (runs[0], runs[3])} == {"tune"}
    assert all(Path(run.info.artifact_uri).is_relative_to(elsewhere) for run in runs)


@pytest.mark.thorough
def test_from_a_git_url_relative_paths_are_those_of_the_caller(elsewhere: Path) -> None:
    write_digits(elsewhere / "mine", 10)
    # As one finds it who begins.
    (elsewhere / "mlflow.db").unlink()
    done = launch(
        elsewhere, "-e", "prepare", "-P", "data.source=folder:mine", uri=f"file://{PROJECT}"
    )
    out = done.communicate(timeout=200)[0]
    assert done.returncode == 0, out
    assert "30 images of 3 classes" in out
    (run,) = all_runs(elsewhere)
    assert run.info.status == "FINISHED"
    assert (elsewhere / "prepared").is_dir()


def test_wrong_input_ends_the_launched_run_with_the_reason(elsewhere: Path) -> None:
    done = launch(elsewhere, "-e", "train", "-P", "model.name=resnet19")
    out = done.communicate(timeout=200)[0]
    assert done.returncode == 1
    assert "unknown model.name 'resnet19'" in out
    (run,) = all_runs(elsewhere)
    assert run.info.status == "FAILED"
    assert "unknown model.name 'resnet19'" in run.data.tags[names.REASON]


@pytest.mark.thorough
def test_a_launcher_that_dies_takes_the_run_with_it(elsewhere: Path) -> None:
    process = launch(
        elsewhere, "-e", "train", "-P", "training.epochs=200", "-P", "model.name=small_cnn"
    )
    wait_for(process, "epoch 2/200")
    process.kill()
    killed = time.time()
    out = process.communicate(timeout=30)[0]
    assert "stopped by SIGTERM" in out
    (run,) = all_runs(elsewhere)
    assert run.data.params["model.name"] == "small_cnn"
    assert run.info.status == "KILLED"
    assert run.info.end_time / 1000 - killed < 5


@pytest.mark.thorough
def test_in_the_project_itself_paths_are_those_of_the_project_wherever_the_database_is(
    tmp_path: Path,
) -> None:
    project = tmp_path / "project"
    shutil.copytree(
        PROJECT / "pipeline", project / "pipeline", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("MLproject", "conda.yaml", "pyproject.toml", "experiments"):
        source = PROJECT / name
        shutil.copytree(source, project / name) if source.is_dir() else shutil.copy(
            source, project / name
        )
    write_digits(project / "images", 24, classes=(0, 1))
    # Beside the database lies another folder of that name.
    write_digits(tmp_path / "elsewhere" / "images", 24, classes=(2, 3))
    uri = f"sqlite:///{tmp_path / 'elsewhere' / 'mlflow.db'}"
    arguments = [
        MLFLOW,
        "run",
        ".",
        "--env-manager",
        "local",
        "-e",
        "prepare",
        "-P",
        "data.source=folder:images",
        "-P",
        "data.image_size=16",
    ]
    process = start(arguments, project, MLFLOW_TRACKING_URI=uri, PYTHONPATH="")
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert f"from {project / 'images'}:" in output
