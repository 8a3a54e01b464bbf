"""Whose a study is, and who works on it.

There is one storage under several MLflow stores, and several folders on one server.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import optuna
import psutil
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipeline.errors import Interrupted, InUse
from pipeline.files import lock
from pipeline.search.trial_runner import _note_unused
from pipeline.search.trials import UID, UNUSED
from pipeline.tracking import find_runs, heartbeat, names, study_runs
from pipeline.tracking.heartbeat import Beat
from pipeline.tracking.study_parent import parent_run, refuse_if_tuned, wait_for_leader
from pipeline.tracking.tracked_run import TrackedRun
from pipeline.tracking.workspace import Workspace, open_workspace
from tests.conftest import Cli, interrupt, place_store, start, thorough_of, wait_for
from tests.search.test_lists import contents
from tests.search.test_study import LIST, SPACE, runs, study_file
from tests.servers import MLflowServer

STUDY = {"trials": 2, "pruner": "none"}


@pytest.mark.parametrize("storage", thorough_of(["sqlite", "postgresql"], ["sqlite"]))
def test_with_another_tracking_uri_the_study_of_the_first_is_untouched(
    cli: Cli, quick: Path, empty_store: Path, request: pytest.FixtureRequest, storage: str
) -> None:
    shared = quick.parent / "shared.db"
    url = (
        f"sqlite:///{shared}"
        if storage == "sqlite"
        else request.getfixturevalue("postgres").url("stores")
    )
    tune = [
        "tune",
        "--config",
        study_file(quick, configs=LIST[:1], space=SPACE, study={**STUDY, "storage": url}),
    ]
    first, second = mlflow.get_tracking_uri(), place_store(empty_store, quick.parent / "other")
    assert cli(*tune).code == 0
    (parent,) = runs("tune")
    study = parent.data.tags[names.STUDY]

    def recorded() -> list[Any]:
        if storage == "sqlite":
            return contents(shared, study)
        loaded = optuna.load_study(study_name=study, storage=url)
        return [
            loaded.user_attrs,
            *[
                (trial.state, trial.params, trial.user_attrs, trial.values)
                for trial in loaded.trials
            ],
        ]

    before = recorded()
    mlflow.set_tracking_uri(second)
    for _ in range(2):
        done = cli(*tune)
        assert done.code == 0, done.err
        said = f"study {study} belongs to another MLflow store; study {study}~2 is used"
        assert done.out.splitlines().count(said) == 1 and "anew" not in done.out
    assert "2 of 2 trainings are there" in done.out
    assert [run.data.tags[names.STUDY] for run in runs("tune")] == [f"{study}~2"]
    assert {run.data.tags[names.STUDY] for run in runs("train")} == {f"{study}~2"} and len(
        runs("train")
    ) == 2
    assert recorded() == before
    mlflow.set_tracking_uri(first)
    done = cli(*tune)
    assert "2 of 2 trainings are there" in done.out and "is used" not in done.out
    assert [run.info.run_id for run in runs("tune")] == [parent.info.run_id] and len(
        runs("train")
    ) == 2


@pytest.mark.thorough
def test_a_third_store_has_a_third_study(cli: Cli, quick: Path, empty_store: Path) -> None:
    url = f"sqlite:///{quick.parent / 'shared.db'}"
    stores = [place_store(empty_store, quick.parent / store) for store in "abc"]
    for number, store in enumerate([*stores, stores[0], stores[2]]):
        mlflow.set_tracking_uri(store)
        done = cli(
            "tune",
            "--config",
            study_file(quick, configs=LIST[:1], study={"name": "mine", "storage": url}),
        )
        assert done.code == 0, done.err
        assert ("1 of 1 trainings are there" in done.out) == (number > 2)
    assert sorted(optuna.get_all_study_names(url)) == ["mine", "mine~2", "mine~3"]
    refused = cli(
        "tune",
        "--config",
        study_file(quick, configs=LIST[:1], space=SPACE, study={"name": "mine", "storage": url}),
    )
    assert (
        refused.code == 2 and "study 'mine~3' has another base, space, data or fold" in refused.err
    )


@pytest.mark.thorough
def test_a_study_whose_runs_are_deleted_stays_and_is_found_when_they_are_restored(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    file = study_file(quick, configs=LIST)
    assert cli("tune", "--config", file).code == 0
    first = [run.info.run_id for run in runs()]
    (study,) = (one.name for one in study_runs.find_studies(workspace))
    before = contents(quick.parent / "optuna.db", study)
    for run_id in first:
        workspace.client.delete_run(run_id)
    done = cli("tune", "--config", file)
    assert done.code == 0, done.err
    assert re.search(
        rf"study {study} has its runs deleted from MLflow .*; study {study}~2 is used", done.out
    )
    assert contents(quick.parent / "optuna.db", study) == before
    assert [one.name for one in study_runs.find_studies(workspace)] == [f"{study}~2"]
    for run_id in first:
        workspace.client.restore_run(run_id)
    assert "2 of 2 trainings are there" in cli("tune", "--config", file).out
    assert len(optuna.get_all_study_names(f"sqlite:///{quick.parent / 'optuna.db'}")) == 2


def test_a_study_that_was_killed_before_its_parent_was_recorded_is_ours(
    cli: Cli, quick: Path
) -> None:
    optuna.create_study(
        storage=f"sqlite:///{quick.parent / 'optuna.db'}", study_name="mine", direction="maximize"
    )
    assert (
        cli("tune", "--config", study_file(quick, configs=LIST, study={"name": "mine"})).code == 0
    )
    assert [run.data.tags[names.STUDY] for run in runs("tune")] == ["mine"]


@pytest.mark.slow
def test_a_store_that_does_not_answer_says_nothing_about_a_run(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = make_parent(workspace, "mine", beat_of(os.getpid()))
    assert find_runs.get_lifecycle(workspace, run_id) == "active"
    workspace.client.delete_run(run_id)
    assert [
        find_runs.get_lifecycle(workspace, other) for other in (run_id, "f" * 32, "no id at all")
    ] == [
        "deleted",
        "",
        "",
    ]
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(MlflowException):
        find_runs.get_lifecycle(
            replace(workspace, client=MlflowClient("http://127.0.0.1:1")), run_id
        )


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """Another process of this machine, which lives."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


def beat_of(process_id: int, host: str = "") -> Beat:
    return Beat(
        host or socket.gethostname(),
        process_id,
        psutil.Process(process_id).create_time(),
        time.time(),
    )


def make_parent(workspace: Workspace, study: str, beat: Beat, start_time: int | None = None) -> str:
    """Make the running parent of a study, of a process elsewhere."""
    tags = {names.STEP: "tune", names.STUDY: study, names.EXPERIMENT: workspace.experiment}
    tags |= {names.STATE: names.RUNNING, names.HEARTBEAT: str(beat)}
    return str(
        workspace.client.create_run(
            workspace.experiment_id, start_time, tags, run_name=study
        ).info.run_id
    )


def test_a_study_that_another_machine_works_on_is_refused_and_untouched(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    study = {"name": "mine"}
    run_id = make_parent(workspace, "mine", Beat("elsewhere", 4711, 0.0, time.time()))
    before = workspace.client.get_run(run_id).to_dictionary()
    refused = cli("tune", "--config", study_file(quick, configs=LIST, study=study))
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert f"study 'mine' is being tuned by process 4711 on elsewhere (run {run_id})" in refused.err
    assert workspace.client.get_run(run_id).to_dictionary() == before and len(runs()) == 1
    # A minute without a beat.
    workspace.client.set_tag(
        run_id, names.HEARTBEAT, str(Beat("elsewhere", 4711, 0.0, time.time() - 61))
    )
    done = cli("tune", "--config", study_file(quick, configs=LIST, study=study))
    assert done.code == 0, done.err
    assert [run.info.run_id for run in runs("tune")] == [run_id]


def test_a_leader_on_another_machine_must_give_a_sign_of_life(
    workspace: Workspace, sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def beat() -> str:
        return str(Beat("elsewhere", 4711, 0.0, time.time()))

    monkeypatch.setattr(heartbeat, "STALE", 4.0)
    run_id = make_parent(workspace, "mine", Beat("elsewhere", 4711, 0.0, time.time()))
    # It has died a moment ago.
    assert not wait_for_leader(workspace, "mine")
    workspace.client.set_tag(run_id, names.HEARTBEAT, beat())
    renewal = threading.Timer(
        2.0, lambda: workspace.client.set_tag(run_id, names.HEARTBEAT, beat())
    )
    renewal.start()
    assert wait_for_leader(workspace, "mine")
    renewal.join()
    # Of a process of this machine it is known at once.
    make_parent(workspace, "other", beat_of(sleeper.pid))
    began = time.monotonic()
    assert wait_for_leader(workspace, "other") and time.monotonic() - began < 1


def test_of_two_that_begin_in_the_same_moment_the_later_gives_way(
    workspace: Workspace, sleeper: subprocess.Popen[bytes]
) -> None:
    now = int(time.time() * 1000)
    for earlier in (True, False):
        study = f"study {earlier}"
        # After both have looked.
        refuse_if_tuned(workspace, study)
        other = make_parent(
            workspace, study, beat_of(sleeper.pid), now - 1000 if earlier else now + 600_000
        )
        if not earlier:
            with parent_run(workspace, "tune", study, "") as run:
                assert workspace.client.get_run(run.id).info.status == "RUNNING"
            continue
        with (
            pytest.raises(InUse, match=f"process {sleeper.pid} on"),
            parent_run(workspace, "tune", study, ""),
        ):
            raise AssertionError("must not begin")
        # A run that was made for nothing does not stay.
        assert [run.info.run_id for run in runs("tune")] == [other]
        assert study_runs.find_study_parent(workspace, study) == other
        assert workspace.client.get_run(other).info.status == "RUNNING"


def test_a_parent_that_another_process_has_just_taken_up_is_left_to_it(
    workspace: Workspace, sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with parent_run(workspace, "tune", "study", "") as run:
        pass
    beat, begin = str(beat_of(sleeper.pid)), TrackedRun._start

    def begin_both(run: TrackedRun) -> None:
        begin(run)
        workspace.client.set_tag(run.id, names.HEARTBEAT, beat)

    monkeypatch.setattr(TrackedRun, "_start", begin_both)
    with (
        pytest.raises(InUse, match=f"process {sleeper.pid} on"),
        parent_run(workspace, "tune", "study", run.id),
    ):
        raise AssertionError("must not begin")
    left = workspace.client.get_run(run.id)
    assert (left.info.status, left.data.tags[names.STATE], left.data.tags[names.HEARTBEAT]) == (
        "RUNNING",
        "running",
        beat,
    )


def folders_on(server: MLflowServer, quick: Path, epochs: int) -> tuple[list[Path], list[str]]:
    """Return two folders with an experiment file, and the command that tunes it on the server."""
    folders = [quick.parent / "a", quick.parent / "b"]
    for folder in folders:
        folder.mkdir()
    tune = [
        sys.executable,
        "-m",
        "pipeline",
        "tune",
        "--config",
        str(study_file(quick, configs=LIST)),
        "--training.epochs",
        str(epochs),
    ]
    return folders, [*tune, "--experiment", f"folders{epochs}"]


@pytest.mark.thorough
def test_a_second_folder_on_a_server_is_refused_while_the_first_one_tunes(
    quick: Path, tracking_server: MLflowServer, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first, second), command = folders_on(tracking_server, quick, 40)
    running = start(command, first, MLFLOW_TRACKING_URI=tracking_server.uri, OMP_NUM_THREADS="1")
    wait_for(running, "epoch 2/")
    monkeypatch.chdir(second)
    mlflow.set_tracking_uri(tracking_server.uri)
    workspace = open_workspace("folders40")
    (study,) = (one.name for one in study_runs.find_studies(workspace))
    before = study_runs.find_study_parents(workspace, study)[0]
    refused = cli(*command[3:])
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert (
        f"study {study!r} is being tuned by process {running.pid} on {socket.gethostname()} "
        f"(run {before.info.run_id})"
    ) in refused.err
    after = workspace.client.get_run(before.info.run_id)
    assert (after.info.status, after.data.tags[names.STATE]) == ("RUNNING", "running")
    assert running.communicate()[0] and running.returncode == 0
    assert workspace.client.get_run(before.info.run_id).info.status == "FINISHED"
    # Then it is the same study there, and nothing is trained again.
    done = cli(*command[3:])
    assert done.code == 0, done.err
    assert done.out.count("trained before as run") == 2
    assert (
        len(study_runs.find_study_parents(workspace, study)) == 1
        and len(find_runs.find_trainings(workspace)) == 2
    )


@pytest.mark.thorough
def test_two_folders_on_a_server_that_start_at_once(
    quick: Path, tracking_server: MLflowServer
) -> None:
    folders, command = folders_on(tracking_server, quick, 30)
    processes = [
        start(command, folder, MLFLOW_TRACKING_URI=tracking_server.uri, OMP_NUM_THREADS="1")
        for folder in folders
    ]
    told = [process.communicate()[0] for process in processes]
    codes = [process.returncode for process in processes]
    assert sorted(codes) == [0, 2], told
    mlflow.set_tracking_uri(tracking_server.uri)
    workspace = open_workspace("folders30")
    (study,) = (one.name for one in study_runs.find_studies(workspace))
    assert "is being tuned by process" in told[codes.index(2)]
    assert [run.info.status for run in study_runs.find_study_parents(workspace, study)] == [
        "FINISHED"
    ]
    assert [row["state"] for row in find_runs.find_trainings(workspace)] == ["complete", "complete"]
    assert all(
        run.info.status != "RUNNING" for run in find_runs.find_running(workspace, "folders30")
    )


def test_what_was_trained_in_a_deleted_run_is_trained_again(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    file = study_file(quick, configs=LIST)
    assert cli("tune", "--config", file).code == 0
    first = [row["run_id"] for row in find_runs.find_trainings(workspace)]
    for deleted in (first[:1], first):
        for run_id in deleted:
            if find_runs.get_lifecycle(workspace, run_id) == "active":
                workspace.client.delete_run(run_id)
        done = cli("tune", "--config", file)
        assert done.code == 0, done.err
        there = {row["run_id"] for row in find_runs.find_trainings(workspace)}
        assert len(there) == 2 and not there & set(deleted)
        assert "1 whose run was deleted is trained again" in done.out


def test_a_run_that_was_removed_for_good_ends_no_study(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    file = str(study_file(quick, configs=LIST))
    interrupt(cli, "tune", "--config", file)
    (killed,) = (row["run_id"] for row in find_runs.find_trainings(workspace))
    study = optuna.load_study(
        storage=f"sqlite:///{quick.with_name('optuna.db')}",
        study_name=study_runs.find_studies(workspace)[0].name,
    )
    # As after a kill, and `mlflow gc`.
    (trial,) = (one for one in study.get_trials() if one.user_attrs.get("run_id") == killed)
    study._storage.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.RUNNING)
    with closing(sqlite3.connect(quick.with_name("mlflow.db"))) as database, database:
        database.execute("UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid = ?", [killed])
        for table in ("params", "metrics", "latest_metrics", "tags", "runs"):
            database.execute(f"DELETE FROM {table} WHERE run_uuid = ?", [killed])
    done = cli("tune", "--config", file)
    assert done.code == 0, done.err


@pytest.mark.thorough
def test_a_run_that_was_never_made_is_not_waited_for(
    cli: Cli, quick: Path, tracking_server: MLflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPELINE_SEND_SECONDS", "60")
    mlflow.set_tracking_uri(tracking_server.uri)
    options = ("--experiment", "never made")
    tune = ["tune", "--config", study_file(quick, configs=LIST), *options]

    begin = TrackedRun._start

    def stop(run: TrackedRun) -> None:
        if run._step == "train":
            raise Interrupted("stopped by SIGINT")
        begin(run)

    with monkeypatch.context() as patched:
        patched.setattr(TrackedRun, "_start", stop)
        assert cli(*tune).code == 1
    # Another worker may have trained it, and the server does not know of that yet.
    (study,) = optuna.get_all_study_names("sqlite:///optuna.db")
    trials = optuna.load_study(study_name=study, storage="sqlite:///optuna.db").trials
    (uid,) = {trial.user_attrs[UID] for trial in trials if UID in trial.user_attrs}
    journal = open_workspace("never made").journals / uid
    journal.mkdir(parents=True)
    with lock(journal):
        waits = cli(*tune)
    assert waits.code == 2 and f"what run {uid} has logged is being sent by another" in waits.err
    shutil.rmtree(journal)
    assert cli("train", "--config", quick, *options).code == 0
    done = cli(*tune)
    assert done.code == 0 and done.out.count("trained before as run") == 1, done.err
    assert "are not in the store yet" not in done.out


def test_a_trial_notes_the_uid_that_it_has_no_use_for() -> None:
    study = optuna.create_study()
    trial = study.ask()
    _note_unused(trial, {"of another study"})
    assert UNUSED not in trial.user_attrs
    trial.set_user_attr(UID, "own")
    _note_unused(trial, {"own"})
    assert UNUSED not in trial.user_attrs
    _note_unused(trial, {"of another study"})
    assert trial.user_attrs[UNUSED] == "own"
    # The other one is deleted, and its own is gone on with.
    _note_unused(trial, {"own"})
    assert trial.user_attrs[UNUSED] == ""
