"""Weights that `tracking.keep_weights` removes, and those that it keeps."""

from __future__ import annotations

import shutil
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import mlflow
import pytest
import yaml

from pipeline.experiment import load_experiment
from pipeline.jobs.keep_weights import remove_other_weights
from pipeline.jobs.predictions_table import OF_TEST, OF_VALIDATION
from pipeline.tracking import artifacts, names, study_runs
from pipeline.tracking.run_log import RunLog
from pipeline.tracking.workspace import Workspace, open_workspace
from tests.conftest import Cli, Finished
from tests.search.test_study import runs, study_file
from tests.servers import mlflow_server

pytestmark = pytest.mark.slow

LIST = [{"optimizer": {"lr": lr}} for lr in (3e-3, 2e-3, 1e-3, 1e-5)]


def file_of(quick: Path, keep: int, number: int = 3, evaluate: str = "all") -> Path:
    """Write a study of some trainings whose best ones keep their weights."""
    base = yaml.safe_load(quick.read_text())["base"]
    base["training"]["epochs"] = 1
    base["tracking"] = {"keep_weights": keep}
    return study_file(quick, base=base, configs=LIST[:number], study={"evaluate": evaluate})


def has_weights(run: Any) -> bool:
    """Whether a run has its weights; it says so if it has none any more."""
    has = artifacts.has_artifact(open_workspace("quick"), run.info.run_id, names.CHECKPOINT)
    assert has == (run.data.tags.get(names.WEIGHTS) != "removed")
    return has


def ranked(number: int) -> list[Any]:
    """Return the trainings, the best first, and check that there are so many."""
    found = sorted(
        runs("train"),
        key=lambda run: (
            -run.data.metrics["best/val_accuracy"],
            run.data.metrics["best/val_loss"],
        ),
    )
    assert len(found) == number
    return found


def with_weights(number: int) -> list[bool]:
    """Say of each training, the best first, whether it has its weights."""
    return [has_weights(run) for run in ranked(number)]


def is_one_line(done: Finished) -> bool:
    lines = done.err.splitlines()
    return (
        done.code == 2
        and len(lines) == 1
        and "has no weights any more: tracking.keep_weights" in lines[0]
        and "tune --study.only" in lines[0]
    )


def said(done: Finished) -> list[str]:
    assert done.code == 0, done.err
    return [line for line in done.out.splitlines() if line.startswith("tracking.keep_weights")]


@pytest.mark.thorough
def test_the_best_keep_their_weights_and_the_others_their_results(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    done = cli("tune", "--config", file_of(quick, 1))
    assert said(done) == ["tracking.keep_weights 1: weights of 2 trainings removed (under 1 MB)"]
    assert with_weights(3) == [True, False, False]
    removed = ranked(3)[-1]
    run_id = removed.info.run_id
    assert "test/accuracy" in removed.data.metrics
    for kept in (OF_TEST, OF_VALIDATION, names.CONFIG, "curves/learning.png"):
        assert artifacts.has_artifact(workspace, run_id, kept)
    assert is_one_line(cli("evaluate", "--run_id", run_id))
    assert is_one_line(cli("register", "--run_id", run_id))
    weights = f"runs:/{run_id}/model"
    assert is_one_line(cli("train", "--config", quick, "--model.weights", weights))
    assert cli("summary", "--config", file_of(quick, 1), "--evaluate", "all").code == 0
    # It goes on with a further training: what is removed stays removed, the rest stays as it is.
    assert said(cli("tune", "--config", file_of(quick, 4, 4))) == []
    assert sum(with_weights(4)) == 2
    # The run without weights has become the best one meanwhile.
    workspace.client.log_metric(run_id, "best/val_accuracy", 1.0, step=1000)
    workspace.client.log_metric(run_id, "best/val_loss", 0.0, step=1000)
    done = cli("tune", "--config", file_of(quick, 1, 4))
    assert done.code == 0 and f"the best run {run_id}" in done.out
    assert "is not exported: tracking.keep_weights has removed its weights" in done.out
    # Two others are left: one is exported.
    assert "weights of 1 training removed" in said(done)[0] and "1 exported" in said(done)[0]
    assert is_one_line(cli("main", "--config", file_of(quick, 1, 4)))


def test_weights_that_something_needs_are_kept(cli: Cli, quick: Path, workspace: Workspace) -> None:
    client = workspace.client
    assert cli("tune", "--config", file_of(quick, 0, 4)).code == 0
    best, adopted, named, registered = ranked(4)
    study = best.data.tags[names.STUDY]
    RunLog(workspace, adopted.info.run_id).tag({names.STUDY: f"{study},other"})
    further = client.create_run(workspace.experiment_id, tags={names.STEP: "other"})
    client.log_param(further.info.run_id, "model.weights", f"runs:/{named.info.run_id}/model")
    client.create_registered_model("shelf")
    source = f"{registered.info.artifact_uri}/checkpoint"
    client.create_model_version("shelf", source, registered.info.run_id)
    experiment = load_experiment(str(file_of(quick, 1, 4)), {})
    remove_other_weights(workspace, experiment, study)
    assert with_weights(4) == [True, True, True, True]
    # As soon as nothing needs it, and not before it is evaluated.
    RunLog(workspace, adopted.info.run_id).tag({names.STUDY: study})
    remove_other_weights(workspace, experiment, study)
    assert with_weights(4) == [True, False, True, True]


def test_what_could_never_be_evaluated_keeps_its_weights(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    done = cli("tune", "--config", file_of(quick, 1, evaluate="none"))
    assert "no weights are removed" in said(done)[0] and "2 not evaluated" in said(done)[0]
    assert with_weights(3) == [True, True, True]
    pruned = ranked(3)[1].info.run_id
    RunLog(workspace, pruned).tag({names.STATE: names.PRUNED})
    experiment = load_experiment(str(file_of(quick, 1, evaluate="none")), {})
    (study,) = study_runs.find_studies(workspace)
    remove_other_weights(workspace, experiment, study.name)
    assert with_weights(3) == [True, False, True]


def test_a_run_without_weights_and_scores_is_not_reused(cli: Cli, quick: Path) -> None:
    assert (
        "weights of 1 training removed"
        in said(cli("tune", "--config", file_of(quick, 1, 2, evaluate="best")))[0]
    )
    assert with_weights(2) == [True, False]
    removed = ranked(2)[1]
    lr = removed.data.params["optimizer.lr"]
    train = ["train", "--config", file_of(quick, 0, 2), "--optimizer.lr", lr]
    assert "trained before" not in cli(*train).out
    assert "trained before" in cli(*train).out


@contextmanager
def refusing_deletion(uri: str) -> Iterator[str]:
    """Yield the address of a server in front of another one that lets nobody remove artifacts."""

    class Forwarding(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length) if length else None
            headers = {
                name: value for name, value in self.headers.items() if name.lower() != "host"
            }
            request = urllib.request.Request(uri + self.path, body, headers, method=self.command)
            try:
                with urllib.request.urlopen(request) as answer:
                    self._answer(answer.status, answer.headers, answer.read())
            except urllib.error.HTTPError as error:
                self._answer(error.code, error.headers, error.read())

        do_POST = do_PUT = do_PATCH = do_GET  # noqa: N815 - their names are given

        def do_DELETE(self) -> None:
            self._answer(403, {}, b"Permission denied")

        def _answer(self, status: int, headers: Any, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", headers.get("Content-Type") or "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Forwarding)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.thorough
def test_on_a_server_weights_are_removed_or_it_is_said_that_they_cannot_be(
    cli: Cli, quick: Path, empty_store: Path, tmp_path: Path
) -> None:
    database = tmp_path / "server" / "mlflow.db"
    database.parent.mkdir()
    shutil.copy(empty_store, database)
    with mlflow_server(database) as server, refusing_deletion(server.uri) as refusing:
        mlflow.set_tracking_uri(refusing)
        done = cli("tune", "--config", file_of(quick, 1))
        (line,) = said(done)
        assert "weights cannot be removed: " in line and "(403)" in line
        assert with_weights(3) == [True, True, True]
        mlflow.set_tracking_uri(server.uri)
        (line,) = said(cli("tune", "--config", file_of(quick, 1)))
        assert "weights of 2 trainings removed" in line
        assert with_weights(3) == [True, False, False]
        assert len(list(server.artifacts.rglob("best.safetensors"))) == 1
        assert is_one_line(cli("evaluate", "--run_id", ranked(3)[1].info.run_id))


def test_files_are_removed_from_a_run_s_own_folder_only(
    cli: Cli, quick: Path, workspace: Workspace, tmp_path: Path
) -> None:
    precious = tmp_path / "checkpoint" / "best.safetensors"
    precious.parent.mkdir()
    precious.write_text("precious")
    experiment_id = workspace.client.create_experiment("elsewhere", str(tmp_path))
    run = workspace.client.create_run(experiment_id)
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    database = workspace.home / "mlflow.db"
    assert folder.parent.name == run.info.run_id and database.is_file()
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(
            "UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?",
            [str(tmp_path), run.info.run_id],
        )
    with pytest.raises(Exception, match="is no folder of artifacts"):
        artifacts.remove_artifact(open_workspace("quick"), run.info.run_id, names.CHECKPOINT)
    assert precious.read_text() == "precious"
