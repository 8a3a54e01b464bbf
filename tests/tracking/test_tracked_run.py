from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline import signals
from pipeline.errors import Interrupted, TrainingFailed, UserError
from pipeline.tracking import names
from pipeline.tracking.abandoned_runs import end_abandoned
from pipeline.tracking.heartbeat import STALE, Beat
from pipeline.tracking.run_log import RunLog
from pipeline.tracking.tracked_run import Pruned, TrackedRun, adopt_training
from pipeline.tracking.workspace import Workspace
from tests.conftest import start

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("error", "status", "state"),
    [
        (None, "FINISHED", "complete"),
        (Pruned("hopeless"), "FINISHED", "pruned"),
        (Interrupted("stopped by SIGTERM"), "KILLED", "interrupted"),
        (KeyboardInterrupt(), "KILLED", "interrupted"),
        (SystemExit(0), "KILLED", "interrupted"),
        (TrainingFailed("the loss is not finite at step 3"), "FAILED", "failed"),
        (UserError("wrong"), "FAILED", "failed"),
        (ZeroDivisionError("division by zero"), "FAILED", "failed"),
    ],
)
def test_a_run_ends_with_the_status_that_is_true(
    workspace: Workspace, error: BaseException | None, status: str, state: str
) -> None:
    run = TrackedRun(workspace, "train", "r")
    try:
        with run:
            if error is not None:
                raise error
    except BaseException as raised:
        assert raised is error
    ended = workspace.client.get_run(run.id)
    assert (ended.info.status, ended.data.tags[names.STATE]) == (status, state)
    if str(error or ""):
        assert str(error) in ended.data.tags[names.REASON]


def test_an_error_keeps_its_traceback(workspace: Workspace, tmp_path: Path) -> None:
    run = TrackedRun(workspace, "train", "r")
    with pytest.raises(ZeroDivisionError), run:
        _ = 1 / 0
    file = workspace.client.download_artifacts(run.id, "traceback.txt", str(tmp_path))
    assert "_ = 1 / 0" in Path(file).read_text()


def test_params_of_the_launcher_stay_as_they_are(workspace: Workspace) -> None:
    with TrackedRun(workspace, "train", "r") as run:
        workspace.client.log_param(run.id, "optimizer.lr", "3e-4")
        run.params(
            {
                "optimizer.lr": 0.0003,
                "model.name": "resnet18",
                "data.augment": [{"RandomRotation": 10}],
            }
        )
    params = workspace.client.get_run(run.id).data.params
    assert params == {
        "optimizer.lr": "3e-4",
        "model.name": "resnet18",
        "data.augment": '[{"RandomRotation": 10}]',
    }


def test_many_and_long_values_fit(workspace: Workspace) -> None:
    with TrackedRun(workspace, "train", "r") as run:
        run.params({f"p{i}": "x" * 7000 for i in range(150)})
        run.metrics({f"m{i}": float(i) for i in range(1200)}, step=2)
        run.tag({"long": "y" * 9000})
    data = workspace.client.get_run(run.id).data
    assert len(data.params) == 150
    # Beside what the machine did meanwhile, where it took some seconds.
    assert len([name for name in data.metrics if name.startswith("m")]) == 1200
    assert len(data.tags["long"]) == 8000


def test_a_run_taken_up_again_keeps_its_identity(workspace: Workspace) -> None:
    with pytest.raises(Interrupted), TrackedRun(workspace, "tune", "first") as run:
        raise Interrupted("stopped")
    before = workspace.client.get_run(run.id).data.tags
    with TrackedRun(workspace, "main", "second", run_id=run.id) as again:
        assert workspace.client.get_run(run.id).info.status == "RUNNING"
    ended = workspace.client.get_run(again.id)
    assert again.id == run.id
    assert (ended.info.status, ended.info.run_name) == ("FINISHED", "first")
    assert (ended.data.tags[names.UID], ended.data.tags[names.STEP]) == (before[names.UID], "tune")


def test_writing_to_an_ended_run_leaves_its_status(workspace: Workspace) -> None:
    with TrackedRun(workspace, "train", "r") as run:
        pass
    RunLog(workspace, run.id).metrics({"test/accuracy": 0.5})
    assert workspace.client.get_run(run.id).info.status == "FINISHED"


def test_an_abandoned_run_is_ended_and_an_ended_one_left_alone(workspace: Workspace) -> None:
    run = TrackedRun(workspace, "train", "r").__enter__()
    assert not end_abandoned(workspace, run.id)
    assert workspace.client.get_run(run.id).info.status == "RUNNING"
    with start([sys.executable, "-c", "pass"], Path.cwd()) as process:
        process.wait()
    workspace.client.set_tag(
        run.id,
        names.HEARTBEAT,
        str(Beat.now()._replace(process_id=process.pid, time=1_700_000_000)),
    )
    assert end_abandoned(workspace, run.id)
    ended = workspace.client.get_run(run.id)
    assert (ended.info.status, ended.info.end_time) == ("KILLED", 1_700_000_000_000)
    assert ended.data.tags[names.REASON].startswith(f"its process died (process {process.pid} on ")
    run.__exit__(None, None, None)
    with TrackedRun(workspace, "train", "other") as other:
        pass
    end_abandoned(workspace, other.id)
    assert workspace.client.get_run(other.id).info.status == "FINISHED"


def test_a_training_can_belong_to_two_studies(workspace: Workspace) -> None:
    with TrackedRun(workspace, "train", "r", tags={names.STUDY: "one"}) as run:
        pass
    adopt_training(workspace, run.id, "two")
    adopt_training(workspace, run.id, "two")
    assert workspace.client.get_run(run.id).data.tags[names.STUDY] == "one,two"


def test_a_signal_while_a_run_starts_ends_it_killed(workspace: Workspace) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    class Signalled(TrackedRun):
        def _start(self) -> None:
            super()._start()
            signal.raise_signal(signal.SIGTERM)

    signals.raise_on_signals()
    run = Signalled(workspace, "train", "r")
    try:
        with pytest.raises(Interrupted, match="SIGTERM"), run:
            raise AssertionError("the block is not entered")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert workspace.client.get_run(run.id).info.status == "KILLED"


@pytest.mark.parametrize(("error", "status"), [(None, "FINISHED"), (ValueError("wrong"), "FAILED")])
def test_a_signal_while_a_run_is_closed_does_not_leave_it_running(
    workspace: Workspace, error: BaseException | None, status: str
) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    run = TrackedRun(workspace, "train", "r")
    close = run._writing.close

    def signalled() -> None:
        signal.raise_signal(signal.SIGTERM)
        close()

    run._writing.close = signalled  # type: ignore[method-assign]
    signals.raise_on_signals()
    try:
        with pytest.raises(Interrupted, match="SIGTERM"), run:
            if error is not None:
                raise error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert workspace.client.get_run(run.id).info.status == status


@pytest.mark.parametrize("error", [None, Interrupted("stopped by SIGTERM"), ValueError("wrong")])
def test_figures_are_drawn_before_the_run_ends_but_not_after_a_signal(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, error: BaseException | None
) -> None:
    leaving, reached = threading.Event(), list[str]()

    def draw(file: Path) -> None:
        reached.append(file.name)
        file.write_bytes(b"figure")

    run = TrackedRun(workspace, "train", "r")
    close = run._writing.close

    def leave() -> None:
        leaving.set()
        close()

    monkeypatch.setattr(run._writing, "close", leave)
    with contextlib.suppress(Interrupted, ValueError), run:
        # The figure waits until the block is left.
        run._write(lambda: None if leaving.wait(60) else pytest.fail("the block was not left"))
        run.figure("curves/one.png", draw)
        run.text("note.txt", "what else was logged")
        if error is not None:
            raise error
    assert reached == ([] if isinstance(error, Interrupted) else ["one.png"])
    assert [file.path for file in workspace.client.list_artifacts(run.id, "curves")] == [
        "curves/one.png"
    ] * len(reached)
    assert "note.txt" in [file.path for file in workspace.client.list_artifacts(run.id)]


def test_a_traceback_that_cannot_be_kept_does_not_keep_the_run_running(
    workspace: Workspace,
) -> None:
    class FullDisk(TrackedRun):
        def _log_text(self, name: str, content: str) -> None:
            raise OSError(28, "No space left on device")

    run = FullDisk(workspace, "train", "r")
    with pytest.raises(OSError, match="No space left"), run:
        _ = 1 / 0
    assert workspace.client.get_run(run.id).info.status == "FAILED"


@pytest.mark.thorough
def test_processes_that_meet_a_fresh_store_at_once_all_open_it(folder: Path) -> None:
    code = (
        "from pipeline.tracking.workspace import open_workspace; "
        "print('opened', open_workspace('quick').experiment_id)"
    )
    processes = [
        start(
            [sys.executable, "-c", code],
            folder,
            MLFLOW_TRACKING_URI=f"sqlite:///{folder / 'mlflow.db'}",
        )
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert ["opened 1" in output for output in outputs] == [True] * 3, outputs


def test_a_process_lives_by_its_id_and_its_start() -> None:
    beat = Beat.now()
    assert beat.lives
    assert Beat.of({names.HEARTBEAT: str(beat)}) is not None
    # The same number, given to another process since.
    assert not beat._replace(started=beat.started - 100).lives
    assert Beat.of({}) is None


def test_on_another_machine_the_time_of_the_beat_tells() -> None:
    beat = Beat.now()._replace(host="another", process_id=1)
    assert beat.lives
    assert not beat._replace(time=beat.time - STALE - 1).lives


def test_what_cannot_be_written_fails_the_run(workspace: Workspace, tmp_path: Path) -> None:
    run = TrackedRun(workspace, "train", "r")
    with pytest.raises(OSError, match="gone"), run:
        run.file(tmp_path / "gone.png")
    assert workspace.client.get_run(run.id).info.status == "FAILED"


def test_all_is_written_in_order_before_the_run_ends(workspace: Workspace) -> None:
    with TrackedRun(workspace, "train", "r") as run:
        for step in range(200):
            run.metrics({"loss": float(step)}, step)
    history = workspace.client.get_metric_history(run.id, "loss")
    assert [metric.step for metric in history] == list(range(200))
    assert [metric.timestamp for metric in history] == sorted(
        metric.timestamp for metric in history
    )


def test_a_training_logs_what_the_machine_does(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1")
    with TrackedRun(workspace, "train", "r") as run:
        time.sleep(2.5)
    once = workspace.client.get_metric_history(run.id, "system/cpu_utilization_percentage")
    with TrackedRun(workspace, "train", "", run_id=run.id):
        time.sleep(1.5)
    twice = workspace.client.get_metric_history(run.id, "system/cpu_utilization_percentage")
    assert len(once) >= 2
    assert len(twice) > len(once)
    # A run that is taken up goes on counting.
    assert [metric.step for metric in twice] == list(range(len(twice)))
    assert (
        0
        < workspace.client.get_run(run.id).data.metrics["system/system_memory_usage_percentage"]
        <= 100
    )
    with TrackedRun(workspace, "evaluate", "e") as other:
        time.sleep(1.5)
    assert not workspace.client.get_run(other.id).data.metrics
