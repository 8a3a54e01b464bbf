"""What evaluating a run logs: scores, their intervals, and a temperature that is used later."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score, log_loss, roc_auc_score

from pipeline.jobs.evaluate import evaluate
from pipeline.jobs.mistakes import MISTAKES
from pipeline.jobs.recorded_run import restore_network
from pipeline.jobs.register import export_model
from pipeline.tracking import artifacts, names
from pipeline.tracking.registry import load_model
from pipeline.tracking.workspace import Workspace, open_workspace
from pipeline.training.exported_model import CALIBRATION
from tests.conftest import Cli, write_digits

pytestmark = pytest.mark.slow

LISTED = """
experiment: listed
base:
  data: {source: "csv:LIST", image_size: 16, batch_size: 32, ORDERED}
  model: {name: small_cnn}
  optimizer: {lr: 3.0e-3}
  training: {epochs: 2, precision: fp32}
"""


def write_listed(folder: Path, num_groups: int, ordered: bool = False) -> Path:
    """Write an experiment on digits of three classes, as many test images in so many groups."""
    source = write_digits(folder / "digits", 60)
    files = sorted(source.rglob("*.png"))
    rows = []
    for number, file in enumerate(files):
        split = ("train", "val", "test")[number % 3]
        group = f"{split} {number % num_groups}" if num_groups else ""
        rows.append((file.name, file.parent.name, split, group))
    for file in files:
        file.rename(folder / f"{file.parent.name} {file.name}")
    table = pd.DataFrame(rows, columns=["image", "label", "split", "group"])
    table["image"] = table["label"] + " " + table["image"]
    table.to_csv(folder / "list.csv", index=False)
    experiment = folder / "listed.yaml"
    text = LISTED.replace("LIST", str(folder / "list.csv"))
    experiment.write_text(text.replace("ORDERED", f"ordered: {str(ordered).lower()}"))
    return experiment


def evaluated(cli: Cli, experiment: Path) -> tuple[Workspace, str, dict[str, float]]:
    """Train the experiment's base and evaluate it; return store, run and metrics."""
    done = cli("train", "--config", str(experiment))
    assert done.code == 0, done.err
    workspace = open_workspace("listed")
    [run] = workspace.client.search_runs([workspace.experiment_id])
    done = cli("evaluate", "--config", str(experiment))
    assert done.code == 0, done.err
    return workspace, run.info.run_id, workspace.client.get_run(run.info.run_id).data.metrics


def predictions_of(workspace: Workspace, run_id: str, folder: Path) -> pd.DataFrame:
    file = artifacts.download_artifact(workspace, run_id, "test/predictions.parquet", folder)
    return pd.read_parquet(file)


def test_every_score_can_be_computed_again_from_the_predictions(
    cli: Cli, store: Path, tmp_path: Path
) -> None:
    workspace, run_id, metrics = evaluated(cli, write_listed(store, num_groups=0, ordered=True))
    table = predictions_of(workspace, run_id, tmp_path)
    classes = ["digit 0", "digit 1", "digit 2"]
    assert list(table.columns) == ["path", "true", "predicted", *[f"p_{one}" for one in classes]]
    shares = table[[f"p_{one}" for one in classes]].to_numpy()
    assert metrics["test/accuracy"] == (table["true"] == table["predicted"]).mean()
    assert metrics["test/loss"] == pytest.approx(log_loss(table["true"], shares, labels=classes))
    assert metrics["test/roc_auc"] == pytest.approx(
        roc_auc_score(table["true"], shares, multi_class="ovr", labels=classes)
    )
    assert metrics["test/kappa"] == pytest.approx(
        cohen_kappa_score(table["true"], table["predicted"], weights="quadratic", labels=classes)
    )
    for name in ("accuracy", "f1_macro", "balanced_accuracy", "kappa", "roc_auc"):
        low, high = metrics[f"test/{name}_low"], metrics[f"test/{name}_high"]
        assert low <= metrics[f"test/{name}"] <= high, name
    assert not any("ece_low" in name or "loss_low" in name for name in metrics)
    # Three classes have no top five.
    assert "test/top5_accuracy" not in metrics


def test_the_order_of_classes_changes_kappa_and_no_training(cli: Cli, store: Path) -> None:
    experiment = write_listed(store, num_groups=0)
    workspace, run_id, metrics = evaluated(cli, experiment)
    experiment.write_text(experiment.read_text().replace("ordered: false", "ordered: true"))
    again = cli("train", "--config", str(experiment))
    assert again.code == 0 and f"trained before as run {run_id}" in again.out
    done = cli("evaluate", "--config", str(experiment))
    assert done.code == 0, done.err
    by_file = workspace.client.get_run(run_id).data.metrics
    assert by_file["test/accuracy"] == metrics["test/accuracy"]
    assert by_file["test/kappa"] != metrics["test/kappa"]
    done = cli("evaluate", "--config", str(experiment), "--data.ordered", "false")
    assert done.code == 0, done.err
    assert workspace.client.get_run(run_id).data.metrics["test/kappa"] == metrics["test/kappa"]
    done = cli("evaluate", "--config", str(experiment), "--run_id", run_id, "--data.ordered=true")
    assert done.code == 0, done.err
    assert workspace.client.get_run(run_id).data.metrics == by_file


@pytest.mark.parametrize("num_groups", [6, 60])
def test_groups_of_images_widen_the_interval_or_leave_none(
    cli: Cli, store: Path, tmp_path: Path, num_groups: int
) -> None:
    workspace, run_id, metrics = evaluated(cli, write_listed(store, num_groups))
    table = predictions_of(workspace, run_id, tmp_path)
    found = table["group"].nunique()
    assert ("test/accuracy_low" in metrics) == ("test/kappa_high" in metrics) == (found >= 20)


def test_the_temperature_of_the_training_is_used_by_what_is_served(cli: Cli, store: Path) -> None:
    experiment = write_listed(store, num_groups=0)
    workspace, run_id, metrics = evaluated(cli, experiment)
    temperature = metrics[names.TEMPERATURE]
    assert temperature == restore_network(workspace, run_id).temperature
    export_model(workspace, run_id)
    classifier, _ = load_model(f"runs:/{run_id}/model")
    assert classifier.temperature == temperature
    pixels = np.random.default_rng(0).integers(0, 255, (4, 3, 16, 16), dtype=np.uint8)
    calibrated = classifier.classify(list(pixels))
    classifier.temperature = 1.0
    plain = classifier.classify(list(pixels))
    expected = np.exp(np.log(plain) / temperature)
    assert calibrated == pytest.approx(expected / expected.sum(axis=1, keepdims=True))
    assert (calibrated.argmax(axis=1) == plain.argmax(axis=1)).all()


def test_a_model_of_another_temperature_is_refused(cli: Cli, store: Path) -> None:
    experiment = write_listed(store, num_groups=0)
    assert cli("train", "--config", str(experiment)).code == 0
    workspace = open_workspace("listed")
    [run] = workspace.client.search_runs([workspace.experiment_id])
    model_id = export_model(workspace, run.info.run_id)
    [file] = Path("mlruns").rglob(f"{model_id}/artifacts/artifacts/{CALIBRATION}")
    predict = ("predict", "--model_uri", f"runs:/{run.info.run_id}/model", "--images", str(store))
    for content in (
        "{}",
        "[1]",
        '{"temperature": 0}',
        '{"temperature": "2"}',
        '{"temperature": NaN}',
    ):
        file.write_text(content)
        done = cli(*predict)
        assert done.code == 2
        assert "calibration.json: a temperature from 0.25 to 10 is needed" in done.err
    file.write_text("no JSON")
    assert cli(*predict).code == 2
    file.unlink()
    # A model of an earlier release has none.
    done = cli(*predict)
    assert done.code == 0, done.err
    assert json.loads(Path("predictions.csv.json").read_text())["classes"]


def test_a_run_without_a_temperature_gets_one(
    cli: Cli, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = write_listed(store, num_groups=0)
    workspace, run_id, metrics = evaluated(cli, experiment)
    fitted = metrics[names.TEMPERATURE]
    for value in (math.nan, 0.0, 1e300):
        # As if another had written it.
        workspace.client.log_metric(run_id, names.TEMPERATURE, value)
        values, _ = evaluate(workspace, run_id)
        assert values[names.TEMPERATURE] == pytest.approx(fitted, rel=1e-3)


@pytest.mark.parametrize("private", [False, True])
def test_mistakes_are_shown_but_not_of_private_images(
    cli: Cli, store: Path, tmp_path: Path, private: bool
) -> None:
    experiment = write_listed(store, num_groups=0)
    text = experiment.read_text().replace("lr: 3.0e-3", "lr: 1.0e-5")
    text += f"  tracking: {{log_images: {str(not private).lower()}}}\n"
    experiment.write_text(text)
    workspace, run_id, metrics = evaluated(cli, experiment)
    assert metrics["test/accuracy"] < 1
    assert artifacts.has_artifact(workspace, run_id, "test/predictions.parquet")
    assert artifacts.has_artifact(workspace, run_id, MISTAKES) == (not private)


def test_images_that_have_become_private_are_shown_no_more(cli: Cli, store: Path) -> None:
    experiment = write_listed(store, num_groups=0)
    text = experiment.read_text().replace("lr: 3.0e-3", "lr: 1.0e-5")
    experiment.write_text(text)
    assert cli("train", "--config", str(experiment)).code == 0
    experiment.write_text(f"{text}  tracking: {{log_images: false}}\n")
    workspace = open_workspace("listed")
    [run] = workspace.client.search_runs([workspace.experiment_id])
    for command in (["evaluate"], ["summary", "--evaluate", "all"]):
        done = cli(*command, "--config", str(experiment))
        assert done.code == 0, done.err
        assert artifacts.has_artifact(workspace, run.info.run_id, "test/predictions.parquet")
        assert not artifacts.has_artifact(workspace, run.info.run_id, MISTAKES)
    assert "<img" not in (workspace.outputs / "suspect_labels.html").read_text()
