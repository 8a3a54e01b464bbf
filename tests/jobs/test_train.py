from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
import yaml
from safetensors.torch import load_file

from pipeline.config import Configuration
from pipeline.tracking import find, names
from pipeline.tracking.store import Workspace
from pipeline.training.memory import settle_memory
from tests.conftest import Cli


def only_run(workspace: Workspace) -> Any:
    (run,) = workspace.client.search_runs([workspace.experiment_id])
    return run


def test_equal_scores_keep_the_later_epoch(cli: Cli, quick: Path, workspace: Workspace) -> None:
    assert cli("train", "--config", quick, "--optimizer.lr", "1e-12", "--training.epochs", "3").code == 0
    run = only_run(workspace)
    values = {metric.value for metric in workspace.client.get_metric_history(run.info.run_id, "val/accuracy")}
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
    done = cli("train", "--config", quick, "--training.memory_format", memory_format, "--training.epochs", "1")
    assert (done.code, done.err) == (0, "")


def test_a_single_training_is_exported_with_a_signature(cli: Cli, quick: Path, workspace: Workspace) -> None:
    assert cli("train", "--config", quick).code == 0
    run = only_run(workspace)
    (output,) = run.outputs.model_outputs
    model = workspace.client.get_logged_model(output.model_id)
    assert "MLFLOW_EXPERIMENT_ID" not in os.environ
    assert (model.name, model.experiment_id) == ("model", run.info.experiment_id)
    assert mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/model").metadata.signature.inputs.input_names() == ["image"]
    assert run.info.status == "FINISHED"


def test_the_logged_configuration_is_the_one_trained(cli: Cli, quick: Path, workspace: Workspace, tmp_path: Path) -> None:
    options = ("--optimizer.lr", "0.004", "--data.augment", '[{"RandomRotation": {"degrees": 5}}]', "--schedule.name", "cosine")
    assert cli("train", "--config", quick, *options).code == 0
    run = only_run(workspace)
    logged = yaml.safe_load(find.artifact(workspace, run.info.run_id, names.CONFIG, tmp_path).read_text())
    configuration = Configuration.model_validate(logged)
    assert configuration.optimizer.lr == 0.004
    assert configuration.data.augment == [{"RandomRotation": {"degrees": 5}}]
    assert configuration.training.epochs == 3
    assert run.data.params["schedule.name"] == "cosine"
    assert run.data.metrics["parameters"] == sum(
        value.numel() for value in load_file(find.artifact(workspace, run.info.run_id, names.CHECKPOINT, tmp_path)).values()
    )


def test_what_is_complete_is_not_trained_again(cli: Cli, quick: Path, workspace: Workspace) -> None:
    assert cli("train", "--config", quick).code == 0
    again = cli("train", "--config", quick)
    assert again.code == 0
    assert f"trained before as run {only_run(workspace).info.run_id}" in again.out
    assert cli("train", "--config", quick, "--training.seed", "1").code == 0
    assert len(workspace.client.search_runs([workspace.experiment_id])) == 2


def test_a_training_is_the_same_twice(cli: Cli, quick: Path, workspace: Workspace, tmp_path: Path) -> None:
    augment = ("--data.augment", "[RandomHorizontalFlip]")
    assert cli("train", "--config", quick, *augment).code == 0
    assert cli("train", "--config", quick, *augment, "--experiment", "again").code == 0
    runs = [run for one in workspace.client.search_experiments() for run in workspace.client.search_runs([one.experiment_id])]
    states = [load_file(find.artifact(workspace, run.info.run_id, names.CHECKPOINT, tmp_path / run.info.run_id)) for run in runs]
    assert len(states) == 2
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_an_error_in_training_ends_failed_with_its_reason(cli: Cli, quick: Path, workspace: Workspace) -> None:
    done = cli("train", "--config", quick, "--optimizer.name", "sgd", "--optimizer.lr", "1e30")
    assert done.code == 1
    run = only_run(workspace)
    assert (run.info.status, run.data.tags[names.STATE]) == ("FAILED", "failed")
    assert "not finite" in run.data.tags[names.REASON]
    assert {file.path for file in workspace.client.list_artifacts(run.info.run_id)} >= {"traceback.txt", "config.yaml"}


OWN = """
import torch
from torch import nn

def build(num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(8) if False else nn.Linear(3 * 16 * 16, 8), nn.ReLU(), nn.Linear(8, num_classes))
"""


def test_ones_own_network_is_kept_with_the_run_and_used_again(cli: Cli, quick: Path, workspace: Workspace, tmp_path: Path) -> None:
    file = tmp_path / "my net.py"
    file.write_text(OWN)
    assert cli("train", "--config", quick, "--model.name", f"file:{file}:build").code == 0
    run = only_run(workspace)
    kept = find.artifact(workspace, run.info.run_id, "source/my net.py", tmp_path / "kept")
    assert kept.read_text() == OWN
    file.unlink()
    done = cli("evaluate", "--config", quick, "--run_id", run.info.run_id)
    assert done.code == 0, done.err


@pytest.mark.parametrize("freeze", ["none", "backbone"])
def test_weights_of_one_training_start_the_next(cli: Cli, quick: Path, workspace: Workspace, tmp_path: Path, freeze: str) -> None:
    assert cli("train", "--config", quick).code == 0
    first = find.artifact(workspace, only_run(workspace).info.run_id, names.CHECKPOINT, tmp_path)
    options = ("--model.weights", f"file:{first}", "--model.freeze", freeze, "--optimizer.lr", "1e-12", "--experiment", "second")
    done = cli("train", "--config", quick, *options)
    assert done.code == 0, done.err
    second_id = workspace.client.get_experiment_by_name("second").experiment_id
    (second,) = workspace.client.search_runs([second_id])
    state = load_file(find.artifact(workspace, second.info.run_id, names.CHECKPOINT, tmp_path / "second"))
    assert all(torch.allclose(state[name], value, atol=1e-6) for name, value in load_file(first).items())
