"""Several workers train one study: on this machine, and from other folders that join in."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import mlflow
import optuna
import psutil
import pytest
import yaml

from pipeline.errors import UserError
from pipeline.experiment import load_experiment
from pipeline.files import lock
from pipeline.search.claims import LOST
from pipeline.search.shared_state import forget_agenda, read_agenda, write_agenda
from pipeline.search.worker_processes import find_file_system
from pipeline.tracking import find_runs, names
from pipeline.tracking.workspace import Workspace, open_workspace
from tests.conftest import Cli, start, wait_for
from tests.search.test_study import LIST, SPACE, runs, study_file
from tests.servers import MLflowServer, PostgreSQL

TUNE = [sys.executable, "-m", "pipeline", "tune", "--config"]
MANY = 40
"""Epochs that leave time to disturb a training."""


def long_study(quick: Path, **study: Any) -> str:
    base = yaml.safe_load(quick.read_text())["base"]
    base["training"] |= {"epochs": MANY, "checkpoint_seconds": 0}
    return str(study_file(quick, base=base, configs=LIST, study=study))


def rest_of(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=240)
    return str(said)


def worker_of(process: subprocess.Popen[str], number: int) -> psutil.Process:
    """Return the process of a worker."""
    for child in psutil.Process(process.pid).children():
        place = child.environ().get("PIPELINE_WORKER")
        if place and json.loads(place)["number"] == number:
            return child
    raise AssertionError(f"there is no worker {number}")


def suspend_between_writes(worker: psutil.Process, files: list[str]) -> None:
    """Suspend a process while it holds no lock of these databases: others would wait for it."""
    while True:
        worker.suspend()
        try:
            for file in files:
                with contextlib.closing(sqlite3.connect(file, timeout=0)) as database:
                    database.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError:
            worker.resume()
            time.sleep(0.02)


def optuna_trials(storage: str = "sqlite:///optuna.db") -> list[optuna.trial.FrozenTrial]:
    (study,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=study, storage=storage).trials


def epochs_of(run_id: str) -> list[int]:
    """Return the epochs that a run has logged, each as often as it was logged."""
    history = open_workspace("quick").client.get_metric_history(run_id, "val/accuracy")
    return [point.step for point in history]


def test_workers_train_every_place_once(cli: Cli, quick: Path) -> None:
    file = study_file(
        quick, configs=LIST, space=SPACE, study={"trials": 4, "workers": 2, "pruner": "none"}
    )
    done = cli("tune", "--config", file)
    assert done.code == 0, done.err
    trained = runs("train")
    assert sorted(run.data.tags[names.TRIAL] for run in trained) == list("0123")
    assert {run.data.tags[names.STATE] for run in trained} == {names.COMPLETE}
    (parent,) = runs("tune")
    assert {run.data.tags[names.PARENT] for run in trained} == {parent.info.run_id}
    # Each says which worker it is, and none says again what is known of the images.
    assert re.search(r"^\[[12]\] trial 1 of 4: small_cnn", done.out, re.MULTILINE)
    assert "] always answering" not in done.out
    # The searched ones are not the same point.
    assert len({run.data.params["optimizer.lr"] for run in trained}) == 4
    again = cli("tune", "--config", file)
    assert again.code == 0 and "4 of 4 trainings are there" in again.out
    assert len(runs("train")) == 4


@pytest.mark.thorough
def test_another_worker_goes_on_with_the_training_of_one_that_was_killed(quick: Path) -> None:
    tuned = start([*TUNE, long_study(quick, workers=2, heartbeat=1)], quick.parent)
    seen = wait_for(tuned, "epoch 4/")
    number = int(seen.splitlines()[-1][1])
    worker_of(tuned, number).kill()
    said = rest_of(tuned)
    assert tuned.returncode == 0, said
    assert f"worker {number} was killed by SIGKILL; another process takes its place" in said
    assert said.count("is taken over from process") == 1 and "goes on after epoch" in said
    trained = runs("train")
    assert len(trained) == 2
    for run in trained:
        assert run.data.tags[names.STATE] == names.COMPLETE
        assert sorted(epochs_of(run.info.run_id)) == list(range(1, MANY + 1))
    lost = [trial.user_attrs.get(LOST, 0) for trial in optuna_trials()]
    assert sorted(lost) == [0, 1]


@pytest.mark.thorough
def test_a_worker_that_wakes_writes_nothing_more_to_a_training_that_was_taken_over(
    quick: Path,
) -> None:
    tuned = start([*TUNE, long_study(quick, workers=2, heartbeat=1)], quick.parent)
    seen = wait_for(tuned, "epoch 4/")
    number = int(seen.splitlines()[-1][1])
    sleeping = worker_of(tuned, number)
    suspend_between_writes(sleeping, ["mlflow.db", "optuna.db"])
    taken = wait_for(tuned, "is taken over from process")
    assert f"process {sleeping.pid} on" in taken.splitlines()[-1]
    wait_for(tuned, "goes on after epoch")
    sleeping.resume()
    said = rest_of(tuned)
    assert tuned.returncode == 0, said
    assert re.search(rf"^\[{number}\]   trial \d was taken over by another worker", said, re.M)
    for run in runs("train"):
        assert run.data.tags[names.STATE] == names.COMPLETE
        assert sorted(epochs_of(run.info.run_id)) == list(range(1, MANY + 1))


@pytest.mark.thorough
def test_a_trial_in_which_workers_die_again_and_again_fails(quick: Path) -> None:
    tuned = start([*TUNE, long_study(quick, workers=2, heartbeat=1)], quick.parent)
    said = wait_for(tuned, "epoch 2/")
    number = int(said.splitlines()[-1][1])
    killed = said.splitlines()[-1].split("small_cnn")[0].split()[-1]
    for _ in range(3):
        worker_of(tuned, number).kill()
        said = wait_for(tuned, "is taken over from")
        number = int(said.splitlines()[-1][1])
        if "workers have died" in (said := said + wait_for_any(tuned, ["epoch", "have died"])):
            break
    said += rest_of(tuned)
    assert "failed: 3 workers have died while they trained it" in said
    states = Counter(run.data.tags[names.STATE] for run in runs("train"))
    assert states[names.COMPLETE] == 1, killed


def wait_for_any(process: subprocess.Popen[str], texts: list[str]) -> str:
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if any(text in line for text in texts):
            return seen
    raise AssertionError(seen)


@pytest.mark.thorough
def test_a_trial_whose_run_somebody_trains_by_hand_is_waited_for(quick: Path) -> None:
    file = long_study(quick, workers=2)
    first = start([*TUNE, file], quick.parent)
    wait_for(first, "epoch 3/")
    first.send_signal(signal.SIGINT)
    rest_of(first)
    begun = runs("train")
    with ExitStack() as held:
        for run in begun:
            folder = quick.parent / "checkpoints" / "quick"
            held.enter_context(lock(folder / run.data.tags[names.UID]))
        tuned = start([*TUNE, file], quick.parent)
        wait_for(tuned, "the trial goes on when that one has ended")
    said = rest_of(tuned)
    assert tuned.returncode == 0, said
    assert [run.data.tags[names.STATE] for run in runs("train")] == [names.COMPLETE] * 2
    assert {run.info.run_id for run in begun} <= {run.info.run_id for run in runs("train")}


@pytest.mark.thorough
def test_a_study_that_is_asked_to_stop_ends_its_running_trials(cli: Cli, quick: Path) -> None:
    file = long_study(quick, workers=2, repeats=4)
    tuned = start([*TUNE, file], quick.parent)
    seen = ""
    while not {"[1]   ", "[2]   "} <= {line[:6] for line in seen.splitlines()}:
        seen += wait_for(tuned, "epoch ")
    asked = cli("tune", "--config", file, "--stop", "true")
    assert asked.code == 0, asked.err
    assert "begins no further trial; 2 running trials will end first" in asked.out
    said = rest_of(tuned)
    assert tuned.returncode == 0, said
    assert "no further trial begins: tune --stop asks for it" in said
    states = [run.data.tags[names.STATE] for run in runs("train")]
    assert states == [names.COMPLETE] * 2
    refused = cli("tune", "--config", file, "--stop", "true")
    assert refused.code == 2 and "no trial of study" in refused.err


@pytest.mark.parametrize(
    ("study", "trained", "why"),
    [
        ({"trials": 8, "stop_at_target": True, "target": 0.01}, 1, "study.target 0.01 is reached"),
        ({"trials": 8, "hours": 1e-5}, 1, "study.hours 1e-05 have passed"),
        ({"trials": 8, "patience": 1, "target": 0.0}, 8, "none of the last 1 trials was better"),
    ],
)
def test_a_study_ends_when_it_has_what_it_looks_for(
    cli: Cli, quick: Path, study: dict[str, Any], trained: int, why: str
) -> None:
    base = {"training": {"epochs": 1, "precision": "fp32", "memory_format": "contiguous"}}
    file = study_file(quick, configs=LIST, study={**study, "repeats": 4})
    done = cli("tune", "--config", file, "--training.epochs", str(base["training"]["epochs"]))
    assert done.code == 0, done.err
    number = len(runs("train"))
    assert number == trained if trained == 1 else number < trained
    assert f"no further trial begins: {why}" in done.out


def test_what_fails_all_trials_is_said_once(cli: Cli, quick: Path) -> None:
    file = study_file(quick, configs=LIST, study={"repeats": 2})
    done = cli("tune", "--config", file, "--optimizer.lr", "1e30")
    assert done.code == 1
    assert done.out.count("the loss is not finite") == 1
    assert done.out.count("failed for the reason of trial 1") == 3
    assert done.err.count("none of the 4 trainings of study") == 1


def join_in(quick: Path, folder: Path, **study: Any) -> str:
    """Write the same study for another folder, with the same images."""
    folder.mkdir()
    shutil.copytree(quick.parent / "digits", folder / "digits")
    file = folder / "quick.yaml"
    file.write_text(quick.read_text().replace(str(quick.parent), str(folder)))
    return str(study_file(file, configs=LIST, space=SPACE, study=study))


@pytest.mark.thorough
def test_a_process_of_another_folder_joins_a_study_on_a_server(
    quick: Path, postgres: PostgreSQL, tracking_server: MLflowServer, tmp_path: Path
) -> None:
    study = {
        "trials": 6,
        "name": "shared",
        "storage": postgres.url("joined"),
        "heartbeat": 1,
        "repeats": 2,
        "pruner": "none",
    }
    environment = {"MLFLOW_TRACKING_URI": tracking_server.uri}
    mlflow.set_tracking_uri(tracking_server.uri)
    own = study_file(quick, configs=LIST, space=SPACE, study=study)
    other = join_in(quick, tmp_path / "second machine", **study)
    # The first must not have trained all of them before the second has started.
    first = start([*TUNE, str(own), "--training.epochs", "100"], quick.parent, **environment)
    wait_for(first, "trial 1 of 6")
    second = start(
        [*TUNE, other, "--training.epochs", "100", "--study.workers", "2"],
        Path(other).parent,
        **environment,
    )
    said = [rest_of(first), rest_of(second)]
    assert (first.returncode, second.returncode) == (0, 0), said
    assert "this process joins in" in said[1] and re.search(r"\[[12]\] trial", said[1])
    trained = runs("train")
    assert sorted(int(run.data.tags[names.TRIAL]) for run in trained) == list(range(6))
    assert {run.data.tags[names.STATE] for run in trained} == {names.COMPLETE}
    assert len({run.data.tags[names.PARENT] for run in trained}) == 1
    (parent,) = runs("tune")
    assert parent.data.tags[names.STATE] == names.COMPLETE
    # Only who leads a study concludes it.
    assert "Comparison of shared" in said[0] and "Comparison of" not in said[1]


@pytest.mark.thorough
def test_who_joins_a_study_that_is_taken_up_again_has_part_in_it(
    quick: Path, postgres: PostgreSQL, tracking_server: MLflowServer, tmp_path: Path
) -> None:
    study = {"name": "grown", "storage": postgres.url("growing"), "heartbeat": 1, "pruner": "none"}
    environment = {"MLFLOW_TRACKING_URI": tracking_server.uri}
    mlflow.set_tracking_uri(tracking_server.uri)
    own = study_file(quick, configs=LIST, space=SPACE, study={**study, "trials": 2})
    other = join_in(quick, tmp_path / "second", **study, trials=8)
    # Others are not to find equal trainings on the server.
    longer = ("--training.epochs", "35")
    ended = start([*TUNE, str(own), *longer], quick.parent, **environment)
    rest_of(ended)
    options = ("--study.trials", "8", *longer)
    first = start([*TUNE, str(own), *options], quick.parent, **environment)
    # While the first one takes the study up, it still has what its earlier life decided.
    second = start([*TUNE, other, *options], Path(other).parent, **environment)
    said = [rest_of(first), rest_of(second)]
    assert (first.returncode, second.returncode) == (0, 0), said
    joined = [one for one in said if "this process joins in" in one]
    assert len(joined) == 1 and "trial " in joined[0].partition("joins in")[2], said
    trained = [run for run in runs("train") if run.data.tags.get(names.STUDY) == "grown"]
    assert [run.data.tags[names.STATE] for run in trained] == [names.COMPLETE] * 8


@pytest.mark.thorough
def test_another_machine_goes_on_from_the_checkpoint_that_the_server_has(
    quick: Path, postgres: PostgreSQL, tracking_server: MLflowServer, tmp_path: Path
) -> None:
    study = {"trials": 2, "name": "moved", "storage": postgres.url("moving"), "heartbeat": 1}
    environment = {"MLFLOW_TRACKING_URI": tracking_server.uri}
    mlflow.set_tracking_uri(tracking_server.uri)
    own = study_file(quick, configs=LIST, space=SPACE, study=study)
    other = join_in(quick, tmp_path / "second", **study)
    options = ("--training.epochs", "300", "--training.checkpoint_seconds", "0")
    first = start([*TUNE, str(own), *options], quick.parent, **environment)
    wait_for(first, "trial 1 of 2")
    second = start([*TUNE, other, *options], Path(other).parent, **environment)
    wait_for(second, "trial 2 of 2")
    wait_for(first, "epoch 100/")
    first.kill()
    said = rest_of(second)
    assert second.returncode == 0, said
    (went_on,) = re.findall(r"goes on after epoch (\d+)", said)
    assert int(went_on) >= 10
    trained = [run for run in runs("train") if run.data.tags.get(names.STUDY) == "moved"]
    assert len(trained) == 2
    for run in trained:
        assert run.data.tags[names.STATE] == names.COMPLETE
        assert sorted(epochs_of(run.info.run_id)) == list(range(1, 301))
        # Nobody needs it any more.
        assert not mlflow.MlflowClient().list_artifacts(run.info.run_id, "resume")


@pytest.mark.thorough
def test_who_joins_concludes_a_study_whose_first_process_has_died(
    quick: Path, postgres: PostgreSQL, tracking_server: MLflowServer, tmp_path: Path
) -> None:
    study = {
        "trials": 4,
        "name": "left",
        "storage": postgres.url("leaving"),
        "heartbeat": 1,
        "pruner": "none",
    }
    environment = {"MLFLOW_TRACKING_URI": tracking_server.uri}
    mlflow.set_tracking_uri(tracking_server.uri)
    own = study_file(quick, configs=LIST, space=SPACE, study=study)
    other = join_in(quick, tmp_path / "second", **study)
    first = start([*TUNE, str(own), "--training.epochs", "60"], quick.parent, **environment)
    wait_for(first, "trial 1 of 4")
    second = start([*TUNE, other, "--training.epochs", "60"], Path(other).parent, **environment)
    wait_for(second, "this process joins in")
    wait_for(first, "epoch 2/")
    first.kill()
    said = rest_of(second)
    assert second.returncode == 0, said
    assert "Comparison of left" in said
    states = Counter(
        run.data.tags[names.STATE]
        for run in runs("train")
        if run.data.tags.get(names.STUDY) == "left"
    )
    assert states == {names.COMPLETE: 4}


def test_another_release_or_other_images_may_not_join(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    file = study_file(quick, configs=LIST[:1], study={"name": "mine"})
    assert cli("tune", "--config", file).code == 0
    digest = find_runs.find_trainings(workspace, "mine")[0]["data_digest"]
    first = next((quick.parent / "digits").rglob("*.png"))
    first.unlink()
    refused = cli("tune", "--config", file)
    assert refused.code == 2
    assert f"study 'mine' is of images with digest {digest}, and these have " in refused.err


def test_another_release_may_not_work_on_a_study_beside_this_one(tmp_path: Path) -> None:
    study = optuna.create_study(storage=f"sqlite:///{tmp_path / 'optuna.db'}", study_name="mine")
    assert read_agenda(study) is None
    file = tmp_path / "study.yaml"
    file.write_text("configs: [{}]")
    write_agenda(study, load_experiment(str(file), {}), [])
    assert read_agenda(study) is not None
    # It may have decided things that this release knows nothing of.
    study.set_user_attr("agenda", {**study.user_attrs["agenda"], "release": "9.9", "more": 1})
    with pytest.raises(UserError, match=r"study mine is worked on by release 9\.9, and this is"):
        read_agenda(study)
    forget_agenda(study)
    assert read_agenda(study) is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--study.workers", "0"], "workers: '0' given; must be a whole number from 1"),
        (["--study.workers", "two"], "must be a whole number from 1, or auto"),
        (["--study.workers", "2", "--study.heartbeat", "0"], "heartbeat: '0' given"),
        (["--study.stop_at_target", "true"], "no target is given"),
        (["--study.target", "75"], "study.target 75 given; val/accuracy is from 0 to 1 (0.75 for"),
        (["--stop", "true"], "there is no study of"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_any_training(
    cli: Cli, quick: Path, options: list[str], said: str
) -> None:
    refused = cli("tune", "--config", study_file(quick, configs=LIST), *options)
    assert refused.code == 2 and said in refused.err, refused.err
    assert len(refused.err.splitlines()) == 1 and not runs()


def test_the_file_system_of_a_database_is_that_of_its_nearest_folder(tmp_path: Path) -> None:
    kinds = {"/": "ext4", str(tmp_path): "nfs4", str(tmp_path / "local"): "tmpfs"}
    assert find_file_system(tmp_path / "deep" / "optuna.db", kinds) == "nfs4"
    assert find_file_system(tmp_path / "local" / "optuna.db", kinds) == "tmpfs"
    assert find_file_system(Path("/optuna.db"), kinds) == "ext4"
    assert find_file_system(Path("/optuna.db"), {}) == ""


def test_workers_of_a_study_in_which_several_processes_train_one_network_are_refused(
    cli: Cli, quick: Path
) -> None:
    refused = cli(
        "tune",
        "--config",
        study_file(quick, configs=LIST, study={"workers": 2}),
        "--training.processes",
        "2",
    )
    assert refused.code == 2 and "study.workers 2 and training.processes 2 given" in refused.err
