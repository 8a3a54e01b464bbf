"""The newest checkpoint goes to the run's artifacts, and comes from there to other machines."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
import torch

from pipeline.jobs.shared_checkpoints import SharedCheckpoints, fetch_checkpoint
from pipeline.tracking import names
from pipeline.tracking.sending import wait_until_sent
from pipeline.tracking.tracked_run import Pruned, TrackedRun
from pipeline.tracking.workspace import open_workspace
from pipeline.training.checkpoint import Checkpoints
from tests.servers import MLflowServer


def steps_in(folder: Path) -> list[int]:
    return sorted(int(file.stem.removeprefix("resume-")) for file in folder.glob("resume-*.pt"))


def artifacts_of(run_id: str) -> list[str]:
    return [file.path for file in mlflow.MlflowClient().list_artifacts(run_id, "resume")]


@pytest.mark.parametrize(
    ("tag", "content"), [("7" * 5000, b""), ("999999999", b"junk"), ("", b""), ("-1", b"")]
)
def test_what_is_no_checkpoint_is_not_taken(
    folder: Path,
    tracking_server: MLflowServer,
    monkeypatch: pytest.MonkeyPatch,
    tag: str,
    content: bytes,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_server.uri)
    mlflow.set_tracking_uri(tracking_server.uri)
    workspace = open_workspace("shared")
    with pytest.raises(Pruned), TrackedRun(workspace, "train", "one") as run:
        raise Pruned("as if another machine had gone on from here")
    wait_until_sent(workspace)
    junk = folder / Path(names.RESUME).name
    junk.write_bytes(content)
    client = mlflow.MlflowClient()
    client.log_artifact(run.id, str(junk), str(Path(names.RESUME).parent))
    client.set_tag(run.id, names.RESUME_STEPS, tag)
    here = folder / "here"
    here.mkdir()
    with TrackedRun(workspace, "train", "", run_id=run.id) as again:
        fetch_checkpoint(again, here)
    assert steps_in(here) == []


@pytest.mark.parametrize(("local", "then"), [([], [7]), ([3], [3, 7]), ([7], [7]), ([9], [9])])
def test_the_newer_of_a_local_and_an_uploaded_checkpoint_is_gone_on_with(
    folder: Path,
    tracking_server: MLflowServer,
    monkeypatch: pytest.MonkeyPatch,
    local: list[int],
    then: list[int],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_server.uri)
    mlflow.set_tracking_uri(tracking_server.uri)
    workspace = open_workspace("shared")
    there, here = folder / "there", folder / "here"
    here.mkdir()
    with pytest.raises(Pruned), TrackedRun(workspace, "train", "one") as run:
        wait_until_sent(workspace)
        checkpoints = SharedCheckpoints(there, run, seconds=1000)
        checkpoints.save({"weights": torch.arange(7)}, 7)
        assert artifacts_of(run.id) == []
        checkpoints.settle(30)
        assert artifacts_of(run.id) == [names.RESUME]
        raise Pruned("as if another machine had gone on from here")
    wait_until_sent(workspace)
    for steps in local:
        Checkpoints(here).save({"weights": torch.arange(steps)}, steps)
    with TrackedRun(workspace, "train", "", run_id=run.id) as again:
        fetch_checkpoint(again, here)
        assert steps_in(here) == then
        state = Checkpoints(here).load()
        assert state is not None and len(state["weights"]) == then[-1]
        # Also what an earlier life has uploaded is removed.
        SharedCheckpoints(here, again, seconds=1000).remove()
        assert artifacts_of(run.id) == []
