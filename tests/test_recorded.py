"""What release 0.1.0 has left behind stays usable.

It is evaluated, compared, registered, taken up again.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.tracking import find_runs, names
from pipeline.tracking.workspace import Workspace, open_workspace
from tests.conftest import Cli, Finished, forget_trust, write_digits
from tests.recorded.store import unpack


@pytest.fixture
def recorded(folder: Path) -> Path:
    """The current folder as release 0.1.0 has left it."""
    unpack(folder)
    return folder


def runs(experiment: str, **tags: str) -> list[Any]:
    workspace = open_workspace(experiment)
    found = workspace.client.search_runs(
        [workspace.experiment_id], order_by=["attributes.start_time ASC"]
    )
    return [
        run
        for run in found
        if all(run.data.tags.get(f"pipeline.{name}") == value for name, value in tags.items())
    ]


def losses(run_id: str) -> dict[int, float]:
    """Return the validation loss of each epoch.

    Release 0.1.0 had logged an epoch that is trained again. Another processor rounds otherwise, and
    then it is logged once more.
    """
    return find_runs.metric_history(open_workspace(""), run_id, "val/loss")


def table(workspace: Workspace) -> pd.DataFrame:
    return pd.read_csv(workspace.outputs / "comparison.csv")


def test_a_finished_study_is_evaluated_compared_and_registered(cli: Cli, recorded: Path) -> None:
    before = {run.info.run_id: run.data.metrics for run in runs("finished", step="train")}
    for arguments in (["evaluate"], ["summary", "--evaluate", "all"], ["register"]):
        done = cli(*arguments, "--config", "finished.yaml")
        assert done.code == 0, done.err
    after = {run.info.run_id: run.data.metrics for run in runs("finished", step="train")}
    # What was measured before is what is measured now.
    for run_id, metrics in before.items():
        assert {name: after[run_id][name] for name in metrics} == pytest.approx(metrics, abs=1e-5)
    rows = table(open_workspace("finished"))
    assert list(rows["state"]) == ["complete", "complete"] and rows["test_accuracy"].notna().all()


def test_nothing_of_a_finished_study_is_trained_again(cli: Cli, recorded: Path) -> None:
    done = cli("tune", "--config", "finished.yaml")
    assert done.code == 0, done.err
    assert "2 of 2 trainings are there" in done.out and len(runs("finished", step="train")) == 2


def test_its_champion_predicts(cli: Cli, recorded: Path) -> None:
    pictures = write_digits(recorded / "new", 3, size=8, classes=(0, 1, 2))
    done = cli("predict", "--model_uri", "models:/finished@champion", "--images", pictures)
    assert done.code == 0, done.err
    assert len(pd.read_csv("predictions.csv")) == 9
    assert json.loads(Path("predictions.csv.json").read_text())["run_id"] in {
        run.info.run_id for run in runs("finished", step="train")
    }


def test_an_interrupted_training_goes_on(cli: Cli, recorded: Path) -> None:
    (run,) = runs("interrupted", step="train")
    assert run.info.status == "KILLED"
    done = cli("train", "--run_id", run.info.run_id)
    assert done.code == 0, done.err
    assert "goes on after epoch 1" in done.out
    (run,) = runs("interrupted", step="train")
    assert run.data.tags[names.STATE] == names.COMPLETE
    assert list(losses(run.info.run_id)) == [1, 2, 3, 4]


def test_a_study_half_done_goes_on_in_its_runs(cli: Cli, recorded: Path) -> None:
    (parent,) = runs("half", step="tune")
    (unfinished,) = runs("half", step="train", state=names.INTERRUPTED)
    done = cli("tune", "--config", "half.yaml")
    assert done.code == 0, done.err
    assert "goes on after epoch 1" in done.out
    assert [run.info.run_id for run in runs("half", step="tune")] == [parent.info.run_id]
    states = [run.data.tags[names.STATE] for run in runs("half", step="train")]
    assert sorted(states) == ["complete", "complete", "complete", "failed"]
    assert unfinished.info.run_id in {run.info.run_id for run in runs("half", state=names.COMPLETE)}


@pytest.fixture(autouse=True)
def _nothing_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Another test may have named the same code.
    forget_trust(monkeypatch, tmp_path / "state")


def trust_and_run(cli: Cli, *arguments: str) -> Finished:
    """Run a step that is refused at first, since nobody has named a run's code here."""
    refused = cli(*arguments)
    assert refused.code == 2 and "--trust" in refused.err, refused.err
    return cli(*arguments, "--trust", refused.err.split()[-1])


def test_a_network_of_ones_own_is_evaluated(cli: Cli, recorded: Path) -> None:
    (run,) = runs("own", state=names.COMPLETE)
    (recorded / "net.py").unlink()
    evaluate = [
        "evaluate",
        "--config",
        "lists.yaml",
        "--experiment",
        "own",
        "--run_id",
        run.info.run_id,
    ]
    done = trust_and_run(cli, *evaluate)
    assert done.code == 0, done.err


def test_a_training_on_weights_goes_on_by_its_old_hash_and_ends_as_it_began(
    cli: Cli, recorded: Path, tmp_path: Path
) -> None:
    (run,) = runs("own", state=names.INTERRUPTED)
    # Where it was begun nothing stood beside the weights, and its hash does not tell of this.
    (recorded / "preprocessing.json").write_text(json.dumps({"mean": [0.9] * 3, "std": [0.1] * 3}))
    done = trust_and_run(cli, "train", "--run_id", run.info.run_id)
    assert done.code == 0, done.err
    assert "goes on after epoch 1" in done.out
    (after,) = [one for one in runs("own") if one.info.run_id == run.info.run_id]
    assert (after.data.tags[names.STATE], after.data.tags[names.CONFIG_HASH]) == (
        names.COMPLETE,
        run.data.tags[names.CONFIG_HASH],
    )
    # What release 0.1.0 itself comes to, on one thread.
    assert list(losses(run.info.run_id).values()) == pytest.approx(
        [2.28445, 2.25169, 2.21344, 2.17356], abs=1e-4
    )
    assert (
        cli(
            "evaluate", "--config", "lists.yaml", "--experiment", "own", "--run_id", run.info.run_id
        ).code
        == 0
    )
    # What is trained now begins otherwise, and is not that run.
    options = (
        "--model.weights",
        "file:weights.safetensors",
        "--training.epochs",
        "4",
        "--training.checkpoint_seconds",
        "0",
    )
    done = cli("train", "--config", "lists.yaml", "--experiment", "own", *options)
    assert done.code == 0 and "trained before" not in done.out


def test_a_training_on_weights_without_a_checkpoint_is_not_begun_anew(
    cli: Cli, recorded: Path
) -> None:
    (run,) = runs("own", state=names.INTERRUPTED)
    shutil.rmtree(recorded / "checkpoints" / "own")
    refused = trust_and_run(cli, "train", "--run_id", run.info.run_id)
    assert (refused.code, len(refused.err.strip().splitlines())) == (2, 1)
    assert (
        f"run {run.info.run_id} was begun by release 0.1.0, and there is no checkpoint to go "
        "on from"
    ) in refused.err
    (after,) = [one for one in runs("own") if one.info.run_id == run.info.run_id]
    assert after.data.tags[names.STATE] == names.INTERRUPTED
