"""A tracking server that goes away while a run logs to it, answers late, or refuses."""

from __future__ import annotations

import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run, ViewType

from pipeline.errors import Interrupted, StoreAway, TakenOver, UserError
from pipeline.tracking import names
from pipeline.tracking.heartbeat import Beat
from pipeline.tracking.leftover import send_left
from pipeline.tracking.sending import finish_sending, sender_of, stop_sending
from pipeline.tracking.tracked_run import TrackedRun
from pipeline.tracking.workspace import Workspace, open_workspace
from tests.servers import MLflowServer, Proxy, mlflow_server

pytestmark = pytest.mark.slow
EPOCHS = 20
Open = Callable[[str], Workspace]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[MLflowServer]:
    database = tmp_path_factory.mktemp("server") / "mlflow.db"
    shutil.copy(empty_store, database)
    with mlflow_server(database) as server:
        yield server


@pytest.fixture
def server(running: MLflowServer) -> Iterator[MLflowServer]:
    """A server that a test may kill or stop."""
    yield running
    stop_sending(0)
    if not running.is_alive:
        running.start()


@pytest.fixture
def open_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Open the store at an address, with an experiment of the test's own."""
    monkeypatch.chdir(tmp_path)
    experiment = tmp_path.name

    def open_at(uri: str) -> Workspace:
        mlflow.set_tracking_uri(uri)
        return open_workspace(experiment)

    yield open_at
    stop_sending(0)


def log_epochs(run: TrackedRun, first: int, last: int) -> None:
    for epoch in range(first, last + 1):
        run.metrics({"val/loss": 1 / epoch, "lr": math.nan if epoch == 3 else 0.1}, epoch)
        run.tag({"epoch": str(epoch)})


def log_rest(run: TrackedRun, folder: Path) -> None:
    """Log all other kinds of what a training logs."""
    run.params({"lr": 0.1, "model": "small_cnn"})
    run.text("classes.json", "[]")
    events = folder / "events"
    events.mkdir(exist_ok=True)
    (events / "one").write_text("first")
    run.files(events, "tensorboard")
    run.flush()
    (events / "one").write_text("changed")
    run.figure("curves/lr.png", lambda file: file.write_bytes(b"a figure") and None)
    run.dataset("digits", "digits", "d" * 32, ["training"])
    run.tag({"flag": "collapse"})
    run.delete_tag("flag")


def only_run(workspace: Workspace) -> Run:
    experiment = workspace.client.get_experiment_by_name(workspace.experiment)
    (run,) = workspace.client.search_runs([experiment.experiment_id])
    return run


def need_whole(workspace: Workspace, tmp_path: Path, state: str = names.COMPLETE) -> Run:
    """Check that the one run has all that was logged, and once."""
    run = only_run(workspace)
    assert run.info.status == names.STATUS_OF_STATE[state]
    assert run.data.tags[names.STATE] == state
    assert run.data.tags["epoch"] == str(EPOCHS) and "flag" not in run.data.tags
    assert run.data.params == {"lr": "0.1", "model": "small_cnn"}
    for name in ("val/loss", "lr"):
        history = workspace.client.get_metric_history(run.info.run_id, name)
        assert sorted(one.step for one in history) == list(range(1, EPOCHS + 1)), name
        times = [one.timestamp for one in sorted(history, key=lambda one: one.step)]
        assert times == sorted(times)
        # They were measured before the run ended, however late they were sent.
        assert run.info.start_time <= times[0] and times[-1] <= run.info.end_time
    assert len(run.inputs.dataset_inputs) == 1
    got = workspace.client.download_artifacts(run.info.run_id, "", str(tmp_path))
    files = {file.relative_to(got).as_posix(): file for file in Path(got).rglob("*")}
    texts = {name: file.read_text() for name, file in files.items() if file.is_file()}
    assert texts["tensorboard/one"] == "first"
    assert texts["curves/lr.png"] == "a figure" and texts["classes.json"] == "[]"
    assert not [folder for folder in workspace.journals.iterdir() if folder.is_dir()]
    return run


def arrived(tmp_path: Path) -> Path:
    folder = tmp_path / "arrived"
    folder.mkdir(exist_ok=True)
    return folder


def test_a_run_on_a_server_has_all_once_and_leaves_no_journal(
    server: MLflowServer, open_on: Open, tmp_path: Path
) -> None:
    workspace = open_on(server.uri)
    with TrackedRun(workspace, "train", "r") as run:
        log_rest(run, tmp_path)
        log_epochs(run, 1, EPOCHS)
    finish_sending()
    assert need_whole(workspace, arrived(tmp_path)).info.run_id == run.id


@pytest.mark.parametrize("is_made_before", [True, False])
def test_a_server_that_is_killed_and_comes_back_has_all_once(
    server: MLflowServer, open_on: Open, tmp_path: Path, is_made_before: bool
) -> None:
    workspace = open_on(server.uri)
    told: list[str] = []
    if not is_made_before:
        server.kill()
    with TrackedRun(workspace, "train", "r") as run:
        run.tell_id(told.append)
        log_epochs(run, 1, 5)
        if is_made_before:
            sender_of(workspace).wait(60)
            server.kill()
        else:
            assert run.id == "" and names.is_uid(run.uid)
        log_epochs(run, 6, 10)
        log_rest(run, tmp_path)
        log_epochs(run, 11, EPOCHS)
    with pytest.raises(StoreAway, match="python -m pipeline reconcile"):
        sender_of(workspace).wait(1)
    server.start()
    finish_sending()
    assert need_whole(workspace, arrived(tmp_path)).info.run_id == run.id
    assert told == [run.id]


def test_a_server_that_is_stopped_makes_the_run_once(
    server: MLflowServer, open_on: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    workspace = open_on(server.uri)
    server.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    with TrackedRun(workspace, "train", "r") as run:
        log_rest(run, tmp_path)
        log_epochs(run, 1, EPOCHS)
    # Requests wait before the server, and it does them when it goes on, beside those sent again.
    time.sleep(max(4 - (time.monotonic() - began), 0))
    server.send_signal(signal.SIGCONT)
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT")
    finish_sending()
    need_whole(workspace, arrived(tmp_path))


@pytest.mark.parametrize(
    "lost", ["runs/create", "runs/log-batch", "mlflow-artifacts", "runs/log-inputs", "runs/update"]
)
def test_what_a_server_has_done_without_answering_is_done_once(
    server: MLflowServer, open_on: Open, tmp_path: Path, lost: str
) -> None:
    with closing(Proxy(int(server.uri.rpartition(":")[2]))) as proxy:
        workspace = open_on(proxy.uri)
        proxy.lose = lost
        with TrackedRun(workspace, "train", "r") as run:
            log_rest(run, tmp_path)
            log_epochs(run, 1, EPOCHS)
        finish_sending()
        assert proxy.lost
        need_whole(workspace, arrived(tmp_path))
        # Not even a deleted one.
        found = workspace.client.search_runs([workspace.experiment_id], run_view_type=ViewType.ALL)
        assert len(found) == 1


def test_a_late_double_of_a_run_is_deleted(
    server: MLflowServer, open_on: Open, tmp_path: Path
) -> None:
    workspace = open_on(server.uri)
    server.kill()
    with TrackedRun(workspace, "train", "r") as run:
        log_rest(run, tmp_path)
        log_epochs(run, 1, EPOCHS)
        time.sleep(0.5)
        delivery = sender_of(workspace)._runs[0].delivery
        server.start()
        sender_of(workspace).wait(60)
        # As if an earlier request, which was not answered, had been done only now.
        delivery.journal.sent.attempts = 2
        made = workspace.client.get_run(run.id).info.start_time
        tags = {names.UID: run.uid}
        workspace.client.create_run(workspace.experiment_id, made, tags)
        # Somebody else has copied the tag.
        other = workspace.client.create_run(workspace.experiment_id, made + 7, tags).info.run_id
    finish_sending()
    assert workspace.client.get_run(other).info.lifecycle_stage == "active"
    workspace.client.delete_run(other)
    need_whole(workspace, arrived(tmp_path))


def test_what_a_killed_process_has_left_is_sent_by_another(
    server: MLflowServer, open_on: Open, tmp_path: Path
) -> None:
    workspace = open_on(server.uri)
    run = TrackedRun(workspace, "train", "r")
    run.__enter__()
    log_rest(run, tmp_path)
    log_epochs(run, 1, EPOCHS)
    run.flush()
    assert send_left(workspace) == 0, "its process sends it"
    stop_sending(0)
    assert send_left(open_on(server.uri)) == 1
    ended = need_whole(workspace, arrived(tmp_path), names.INTERRUPTED)
    assert ended.data.tags[names.REASON].startswith("its process died (process ")
    assert send_left(workspace) == 0


def test_a_refused_item_is_put_aside_and_told_once_and_loses_nothing_behind_it(
    server: MLflowServer, open_on: Open, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = open_on(server.uri)
    with TrackedRun(workspace, "train", "r") as run:
        log_rest(run, tmp_path)
        log_epochs(run, 1, 10)
        run.metrics({"no: metric?": 1.0, "fine": 1.0}, 1)
        run.tag({"x" * 300: "too long a name"})
        log_epochs(run, 11, EPOCHS)
    with pytest.raises(Exception, match="has refused a part of run") as refused:
        finish_sending()
    assert "python -m pipeline reconcile" in str(refused.value)
    told = capsys.readouterr().out
    assert told.count("has refused a part") == 1 and "metric no: metric?" in told
    (journal,) = (folder for folder in workspace.journals.iterdir() if folder.is_dir())
    assert send_left(workspace) == 0
    told = capsys.readouterr().out
    assert "refuses metric no: metric?" in told and "refuses tag xxx" in told
    shutil.rmtree(journal)
    ended = need_whole(workspace, arrived(tmp_path))
    assert ended.data.metrics["fine"] == 1.0


def test_a_run_that_is_deleted_meanwhile_ends_nothing(
    server: MLflowServer, open_on: Open, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = open_on(server.uri)
    with TrackedRun(workspace, "train", "r") as run:
        sender_of(workspace).wait(60)
        workspace.client.delete_run(run.id)
        log_epochs(run, 1, EPOCHS)
    with pytest.raises(Exception, match="is deleted"):
        finish_sending()
    stop_sending(0)
    workspace.client.restore_run(run.id)
    assert send_left(workspace) == 1
    ended = only_run(workspace)
    assert (ended.info.status, ended.data.metrics["val/loss"]) == ("FINISHED", 1 / EPOCHS)


def test_logging_never_waits_for_a_server_that_is_stopped(
    server: MLflowServer, open_on: Open, tmp_path: Path
) -> None:
    workspace = open_on(server.uri)
    server.send_signal(signal.SIGSTOP)
    done = threading.Event()

    def log() -> None:
        with TrackedRun(workspace, "train", "r") as run:
            log_rest(run, tmp_path)
            log_epochs(run, 1, EPOCHS)
        done.set()

    threading.Thread(target=log, daemon=True).start()
    # The server goes on only when all is logged.
    is_done = done.wait(60)
    server.send_signal(signal.SIGCONT)
    assert is_done
    finish_sending()
    need_whole(workspace, arrived(tmp_path))


def test_a_signal_leaves_the_rest_to_reconcile(
    server: MLflowServer, open_on: Open, tmp_path: Path
) -> None:
    workspace = open_on(server.uri)
    server.kill()
    with pytest.raises(Interrupted), TrackedRun(workspace, "train", "r") as run:
        log_rest(run, tmp_path)
        log_epochs(run, 1, EPOCHS)
        run.flush()
        raise Interrupted("stopped by SIGTERM")
    assert not stop_sending(0.1)
    server.start()
    assert send_left(open_on(server.uri)) == 1
    ended = need_whole(workspace, arrived(tmp_path), names.INTERRUPTED)
    assert ended.data.tags[names.REASON] == "stopped by SIGTERM"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[MLflowServer]:
    """A server that asks for a password."""
    pytest.importorskip("flask_wtf", reason="mlflow[auth] is not installed")
    folder = tmp_path_factory.mktemp("guarded")
    shutil.copy(empty_store, folder / "mlflow.db")
    secrets = {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "secret",
    }
    (folder / "auth.ini").write_text(
        "[mlflow]\ndefault_permission = READ\n"
        f"database_uri = sqlite:///{folder / 'auth.db'}\n"
        "admin_username = admin\nadmin_password = a long password\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    with mlflow_server(folder / "mlflow.db", ["--app-name", "basic-auth"], secrets) as server:
        yield server


@pytest.mark.thorough
def test_a_password_that_becomes_wrong_is_told_once_and_all_is_sent_with_the_right_one(
    guarded: MLflowServer,
    open_on: Open,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a long password")
    workspace = open_on(guarded.uri)
    with TrackedRun(workspace, "train", "r") as run:
        log_epochs(run, 1, 10)
        sender_of(workspace).wait(60)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "another")
        log_rest(run, tmp_path)
        log_epochs(run, 11, EPOCHS)
    with pytest.raises(Exception, match=r"refuses this user \(401\).*reconcile"):
        finish_sending()
    stop_sending(0)
    assert capsys.readouterr().out.count("refuses this user (401)") == 1
    with pytest.raises(UserError, match="401"):
        open_on(guarded.uri)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a long password")
    assert send_left(open_on(guarded.uri)) == 1
    need_whole(workspace, arrived(tmp_path))


def test_a_process_whose_run_was_taken_over_sends_nothing_more(
    server: MLflowServer, open_on: Open
) -> None:
    workspace = open_on(server.uri)
    is_taken: list[str] = []

    def guard() -> None:
        if is_taken:
            raise TakenOver("it goes on elsewhere")

    run = TrackedRun(workspace, "train", "r")
    run.guard = guard
    with pytest.raises(TakenOver), run:
        log_epochs(run, 1, 3)
        run.flush()
        sender_of(workspace).wait(60)
        is_taken.append("by another")
        log_epochs(run, 4, 6)
        run.flush()
    found = only_run(workspace)
    assert (found.info.status, found.data.tags["epoch"]) == ("RUNNING", "3")
    (journal,) = (folder for folder in workspace.journals.iterdir() if folder.is_dir())
    entries = (journal / "entries.jsonl").read_text().splitlines()
    assert sum('"kind": "metrics"' in line for line in entries) == 3
    finish_sending()
    assert only_run(workspace).data.tags["epoch"] == "3"


@pytest.mark.parametrize("is_server", [True, False])
def test_a_process_that_has_lost_its_training_makes_no_run(
    server: MLflowServer, open_on: Open, tmp_path: Path, is_server: bool
) -> None:
    workspace = open_on(server.uri if is_server else f"sqlite:///{tmp_path / 'own.db'}")

    def guard() -> None:
        raise TakenOver("it goes on elsewhere")

    run = TrackedRun(workspace, "train", "r")
    run.guard = guard
    with pytest.raises(TakenOver), run:
        pass
    finish_sending()
    assert not workspace.client.search_runs([workspace.experiment_id])
    assert not list(workspace.journals.rglob("entries.jsonl"))


@pytest.mark.parametrize("is_elsewhere", [True, False])
def test_what_is_left_of_a_run_that_goes_on_elsewhere_is_not_sent(
    server: MLflowServer, open_on: Open, is_elsewhere: bool
) -> None:
    workspace = open_on(server.uri)
    run = TrackedRun(workspace, "train", "r").__enter__()
    log_epochs(run, 1, 3)
    run.flush()
    sender_of(workspace).wait(60)
    server.kill()
    log_epochs(run, 4, 6)
    run.flush()
    stop_sending(0)
    server.start()
    if is_elsewhere:
        later = Beat("elsewhere", 7, 1.0, time.time() + 60)
        tags = {names.HEARTBEAT: str(later), names.STATE: names.COMPLETE}
        for name, value in tags.items():
            workspace.client.set_tag(run.id, name, value)
        workspace.client.set_terminated(run.id)
    assert send_left(open_on(server.uri)) == (0 if is_elsewhere else 1)
    found = only_run(workspace)
    state = names.COMPLETE if is_elsewhere else names.INTERRUPTED
    assert found.data.tags[names.STATE] == state
    assert found.data.tags["epoch"] == ("3" if is_elsewhere else "6")
    assert not [folder for folder in workspace.journals.iterdir() if folder.is_dir()]
