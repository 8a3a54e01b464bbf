from __future__ import annotations

import gc
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
import yaml
from safetensors.torch import load_file

from pipeline.config import Configuration
from pipeline.tracking import artifacts, names
from pipeline.tracking.workspace import Workspace
from pipeline.training.malloc import settle_memory
from tests.conftest import Cli, start


def only_run(workspace: Workspace) -> Any:
    (run,) = workspace.client.search_runs([workspace.experiment_id])
    return run


def test_equal_scores_keep_the_later_epoch(cli: Cli, quick: Path, workspace: Workspace) -> None:
    assert (
        cli("train", "--config", quick, "--optimizer.lr", "1e-12", "--training.epochs", "3").code
        == 0
    )
    run = only_run(workspace)
    values = {
        metric.value
        for metric in workspace.client.get_metric_history(run.info.run_id, "val/accuracy")
    }
    assert len(values) == 1
    assert run.data.metrics["best/epoch"] == 3


def test_a_training_settles_memory_first(cli: Cli, quick: Path) -> None:
    settle_memory.cache_clear()
    gc.unfreeze()
    assert cli("train", "--config", quick).code == 0
    assert gc.get_freeze_count() > 1000


@pytest.mark.filterwarnings("error:No complete tensor")
@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_a_network_of_any_memory_format_is_exported_without_a_warning(
    cli: Cli, quick: Path, workspace: Workspace, memory_format: str
) -> None:
    done = cli(
        "train",
        "--config",
        quick,
        "--training.memory_format",
        memory_format,
        "--training.epochs",
        "1",
    )
    assert (done.code, done.err) == (0, "")


def test_a_single_training_is_exported_with_a_signature(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    assert cli("train", "--config", quick).code == 0
    run = only_run(workspace)
    (output,) = run.outputs.model_outputs
    model = workspace.client.get_logged_model(output.model_id)
    assert "MLFLOW_EXPERIMENT_ID" not in os.environ
    assert (model.name, model.experiment_id) == ("model", run.info.experiment_id)
    assert mlflow.pyfunc.load_model(
        f"runs:/{run.info.run_id}/model"
    ).metadata.signature.inputs.input_names() == ["image"]
    assert run.info.status == "FINISHED"


def test_the_logged_configuration_is_the_one_trained(
    cli: Cli, quick: Path, workspace: Workspace, tmp_path: Path
) -> None:
    options = (
        "--optimizer.lr",
        "0.004",
        "--data.augment",
        '[{"RandomRotation": {"degrees": 5}}]',
        "--schedule.name",
        "cosine",
    )
    assert cli("train", "--config", quick, *options).code == 0
    run = only_run(workspace)
    logged = yaml.safe_load(
        artifacts.download_artifact(workspace, run.info.run_id, names.CONFIG, tmp_path).read_text()
    )
    configuration = Configuration.model_validate(logged)
    assert configuration.optimizer.lr == 0.004
    assert configuration.data.augment == [{"RandomRotation": {"degrees": 5}}]
    assert configuration.training.epochs == 3
    assert run.data.params["schedule.name"] == "cosine"
    assert run.data.metrics["parameters"] == sum(
        value.numel()
        for value in load_file(
            artifacts.download_artifact(workspace, run.info.run_id, names.CHECKPOINT, tmp_path)
        ).values()
    )


def test_what_is_complete_is_not_trained_again(cli: Cli, quick: Path, workspace: Workspace) -> None:
    assert cli("train", "--config", quick).code == 0
    again = cli("train", "--config", quick)
    assert again.code == 0
    assert f"trained before as run {only_run(workspace).info.run_id}" in again.out
    assert cli("train", "--config", quick, "--training.seed", "1").code == 0
    assert len(workspace.client.search_runs([workspace.experiment_id])) == 2


def test_a_training_is_the_same_twice(
    cli: Cli, quick: Path, workspace: Workspace, tmp_path: Path
) -> None:
    augment = ("--data.augment", "[RandomHorizontalFlip]")
    assert cli("train", "--config", quick, *augment).code == 0
    assert cli("train", "--config", quick, *augment, "--experiment", "again").code == 0
    runs = [
        run
        for one in workspace.client.search_experiments()
        for run in workspace.client.search_runs([one.experiment_id])
    ]
    states = [
        load_file(
            artifacts.download_artifact(
                workspace, run.info.run_id, names.CHECKPOINT, tmp_path / run.info.run_id
            )
        )
        for run in runs
    ]
    assert len(states) == 2
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_an_error_in_training_ends_failed_with_its_reason(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    done = cli("train", "--config", quick, "--optimizer.name", "sgd", "--optimizer.lr", "1e30")
    assert done.code == 1
    run = only_run(workspace)
    assert (run.info.status, run.data.tags[names.STATE]) == ("FAILED", "failed")
    assert "not finite" in run.data.tags[names.REASON]
    assert {file.path for file in workspace.client.list_artifacts(run.info.run_id)} >= {
        "traceback.txt",
        "config.yaml",
    }


OWN = """
import torch
from torch import nn

def build(num_classes):
    hidden = nn.LazyLinear(8) if False else nn.Linear(3 * 16 * 16, 8)
    return nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), nn.Linear(8, num_classes))
"""


def test_ones_own_network_is_kept_with_the_run_and_used_again(
    cli: Cli, quick: Path, workspace: Workspace, tmp_path: Path
) -> None:
    file = tmp_path / "my net.py"
    file.write_text(OWN)
    assert cli("train", "--config", quick, "--model.name", f"file:{file}:build").code == 0
    run = only_run(workspace)
    kept = artifacts.download_artifact(
        workspace, run.info.run_id, "source/my net.py", tmp_path / "kept"
    )
    assert kept.read_text() == OWN
    file.unlink()
    done = cli("evaluate", "--config", quick, "--run_id", run.info.run_id)
    assert done.code == 0, done.err


@pytest.mark.parametrize("freeze", ["none", "backbone"])
def test_weights_of_one_training_start_the_next(
    cli: Cli, quick: Path, workspace: Workspace, tmp_path: Path, freeze: str
) -> None:
    assert cli("train", "--config", quick).code == 0
    first = artifacts.download_artifact(
        workspace, only_run(workspace).info.run_id, names.CHECKPOINT, tmp_path
    )
    options = (
        "--model.weights",
        f"file:{first}",
        "--model.freeze",
        freeze,
        "--optimizer.lr",
        "1e-12",
        "--experiment",
        "second",
    )
    done = cli("train", "--config", quick, *options)
    assert done.code == 0, done.err
    second_id = workspace.client.get_experiment_by_name("second").experiment_id
    (second,) = workspace.client.search_runs([second_id])
    state = load_file(
        artifacts.download_artifact(
            workspace, second.info.run_id, names.CHECKPOINT, tmp_path / "second"
        )
    )
    assert all(
        torch.allclose(state[name], value, atol=1e-6) for name, value in load_file(first).items()
    )


LAZY = """
from torch import nn
from nets.layers.conv import conv

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body, self.fc = conv(), nn.Linear(4, num_classes)

    def forward(self, images):
        from pool import pooled
        return self.fc(pooled(self.body(images)))
"""
NETS = {
    "my net.py": LAZY,
    "pool.py": "def pooled(features):\n    return features.mean((2, 3))\n",
    "layers/conv.py": "from torch import nn\n\ndef conv():\n    return nn.Conv2d(3, 4, 3)\n",
    "unused.py": "raise SystemError\n",
}


@pytest.fixture
def nets(folder: Path) -> Path:
    """A network of one's own in the folder ``nets``, with neighbours.

    One of the neighbours is imported in its forward pass.
    """
    for name, text in NETS.items():
        file = folder / "nets" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder / "nets"


def own_run(cli: Cli, quick: Path, workspace: Workspace) -> str:
    options = ("--model.name", "file:nets/my net.py:Net", "--training.epochs", "1")
    done = cli("train", "--config", quick, *options)
    assert done.code == 0, done.err
    return str(only_run(workspace).info.run_id)


def test_the_neighbours_of_ones_own_network_are_kept_and_used_in_another_process(
    cli: Cli, quick: Path, nets: Path, workspace: Workspace
) -> None:
    run = own_run(cli, quick, workspace)
    assert set(artifacts.list_artifacts(workspace, run, names.SOURCE)) == {
        f"source/{name}" for name in NETS if name != "unused.py"
    }
    shutil.rmtree(nets)
    # What stands there by now, and is imported by the same names, is not what was trained.
    nets.mkdir()
    (nets / "pool.py").write_text("raise SystemError")
    command = [
        sys.executable,
        "-m",
        "pipeline",
        "evaluate",
        "--config",
        str(quick),
        "--run_id",
        run,
    ]
    process = start(command, quick.parent, OMP_NUM_THREADS="1")
    told = process.communicate()[0]
    assert process.returncode == 0, told
    assert "test/accuracy" in workspace.client.get_run(run).data.metrics


def test_an_edited_neighbour_is_trained_and_an_unused_one_changes_nothing(
    cli: Cli, quick: Path, nets: Path, workspace: Workspace
) -> None:
    run = own_run(cli, quick, workspace)
    options = (
        "train",
        "--config",
        quick,
        "--model.name",
        "file:nets/my net.py:Net",
        "--training.epochs",
        "1",
    )
    (nets / "unused.py").write_text("raise TypeError")
    assert f"trained before as run {run}" in cli(*options).out
    (nets / "pool.py").write_text("def pooled(features):\n    return features.amax((2, 3))\n")
    done = cli(*options)
    assert done.code == 0 and "trained before" not in done.out
    # Both are evaluated with their own, in one process.
    for one in workspace.client.search_runs([workspace.experiment_id]):
        done = cli("evaluate", "--config", quick, "--run_id", one.info.run_id)
        assert done.code == 0, done.err
        expected = "amax" if one.info.run_id != run else "mean"
        (kept,) = Path(quick.parent, "mlruns").rglob(f"{one.info.run_id}/artifacts/source/pool.py")
        assert expected in kept.read_text()


@pytest.mark.parametrize("name", ["..\\evil.py", "layers/..\\..\\evil.py"])
def test_files_of_a_run_that_lead_elsewhere_are_not_written(
    cli: Cli, quick: Path, nets: Path, workspace: Workspace, name: str
) -> None:
    run = own_run(cli, quick, workspace)
    (kept,) = Path(quick.parent, "mlruns").rglob(f"{run}/artifacts/source")
    (kept / name).write_text("")
    done = cli("evaluate", "--config", quick, "--run_id", run)
    assert (
        done.code == 2
        and "is no name of a file in" in done.err
        and len(done.err.strip().splitlines()) == 1
    )


def test_a_run_without_the_neighbours_says_how_to_add_them(
    cli: Cli, quick: Path, nets: Path, workspace: Workspace
) -> None:
    run = own_run(cli, quick, workspace)
    (kept,) = Path(quick.parent, "mlruns").rglob(f"{run}/artifacts/source")
    pool = (kept / "pool.py").rename(quick.parent / "pool.py")
    # Without it, it is other code than the user's own.
    refused = cli("evaluate", "--config", quick, "--run_id", run)
    done = cli("evaluate", "--config", quick, "--run_id", run, "--trust", refused.err.split()[-1])
    assert done.code == 2 and len(done.err.strip().splitlines()) == 1
    assert re.search(
        r"No module named 'pool', line 11; release 0\.1\.0 kept the network's own file alone",
        done.err,
    )
    command = re.search(
        rf"mlflow (artifacts log-artifact --run-id {run} --artifact-path source --local-file )FILE",
        done.err,
    )
    assert command
    arguments = [sys.executable, "-m", "mlflow", *command[1].split(), str(pool)]
    added = start(arguments, quick.parent, MLFLOW_TRACKING_URI=workspace.uri)
    assert added.wait() == 0, added.communicate()[0]
    assert cli("evaluate", "--config", quick, "--run_id", run).code == 0
