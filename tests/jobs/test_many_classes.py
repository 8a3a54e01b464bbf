"""More classes than a matrix, a tag or a screen can hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from pipeline import metrics
from pipeline.jobs.register import register
from pipeline.jobs.training_log import log_confusion
from pipeline.tracking import artifacts, find_runs, names, registry
from pipeline.tracking.run_log import RunLog
from pipeline.tracking.tracked_run import TrackedRun
from pipeline.tracking.workspace import Workspace
from tests.conftest import Cli

pytestmark = pytest.mark.slow


def logged(
    workspace: Workspace, folder: Path, classes: list[str], labels: list[int], answers: list[int]
) -> pd.DataFrame:
    """Return the confusion CSV that is logged for some answers."""
    logits = np.zeros((len(labels), len(classes)), dtype=np.float32)
    logits[np.arange(len(labels)), answers] = 1
    with TrackedRun(workspace, "evaluate", "confusion") as run:
        log_confusion(run, "test", np.array(labels), logits, classes, "test")
    with Image.open(
        artifacts.download_artifact(workspace, run.id, "confusion_matrix/test.png", folder)
    ) as figure:
        assert max(figure.size) < 6000
    return pd.read_csv(
        artifacts.download_artifact(workspace, run.id, "confusion_matrix/test.csv", folder)
    )


def test_up_to_a_thousand_classes_the_csv_is_a_matrix(workspace: Workspace, tmp_path: Path) -> None:
    classes = [f"class {number}" for number in range(metrics.MOST_IN_MATRIX)]
    table = logged(workspace, tmp_path, classes, [0, 0, 999], [0, 999, 999])
    assert list(table) == ["true", *classes] and len(table) == 1000
    assert table.set_index("true").loc["class 0", ["class 0", "class 999"]].tolist() == [1, 1]


def test_classes_stand_in_natural_order_in_the_matrix(workspace: Workspace, tmp_path: Path) -> None:
    classes = sorted(str(number) for number in range(1, 13))
    assert classes[1] == "10"
    table = logged(workspace, tmp_path, classes, [0, 1, 1], [0, 1, 4])
    ordered = [str(number) for number in range(1, 13)]
    assert list(table) == ["true", *ordered] and [str(name) for name in table["true"]] == ordered
    matrix = table.set_index("true")
    assert (
        matrix.loc[1, "1"],
        matrix.loc[10, "10"],
        matrix.loc[10, classes[4]],
        matrix.to_numpy().sum(),
    ) == (1, 1, 1, 3)


def test_beyond_a_thousand_classes_the_csv_lists_what_occurs(
    workspace: Workspace, tmp_path: Path
) -> None:
    classes = [f'class "{number}", 猫' for number in range(20_000)]
    table = logged(workspace, tmp_path, classes, [5, 5, 5, 19_999, 7], [5, 19_999, 19_999, 5, 7])
    assert table.to_dict("split")["data"] == [
        [classes[5], classes[19_999], 2],
        [classes[5], classes[5], 1],
        [classes[7], classes[7], 1],
        [classes[19_999], classes[5], 1],
    ]
    assert list(table) == ["true", "predicted", "count"]


def train(cli: Cli, quick: Path) -> None:
    assert cli("train", "--config", quick, "--training.epochs", "1").code == 0


def test_the_version_lists_all_classes_or_says_where_they_are(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    train(cli, quick)
    (run,) = workspace.client.search_runs([workspace.experiment_id])
    for count, is_whole in ((6, True), (2500, True), (3200, False)):
        classes = [f"a long name of a class, number {number:05d}" for number in range(count)]
        RunLog(workspace, run.info.run_id).json(names.CLASSES, classes)
        assert (len(json.dumps(classes)) <= registry.LONGEST_TAG) == is_whole
        name = f"of {count} classes"
        champion = register(workspace, name, run.info.run_id)
        version = workspace.client.get_model_version(name, champion.version)
        assert json.loads(version.tags["classes"]) == (
            classes
            if is_whole
            else {"count": count, "artifact": f"runs:/{run.info.run_id}/classes.json"}
        )


@pytest.fixture
def many(quick: Path) -> Path:
    """The quick experiment with 1,100 classes of real digits, in as many colours."""
    digits, rng = load_digits(), np.random.default_rng(0)
    root = quick.parent / "many"
    for number in range(1100):
        (root / f"数字 {number:04d}").mkdir(parents=True)
        colour = rng.integers(60, 256, 3)
        for place, index in enumerate(
            rng.permutation(np.flatnonzero(digits.target == number % 10))[:4]
        ):
            pixels = digits.images[index][..., None] / 16 * colour
            Image.fromarray(pixels.astype(np.uint8)).save(
                root / f"数字 {number:04d}" / f"{place}.png"
            )
    return quick


def test_a_thousand_classes_are_trained_evaluated_and_registered(
    cli: Cli, many: Path, workspace: Workspace, tmp_path: Path
) -> None:
    options = (
        "--config",
        many,
        "--data.source",
        f"folder:{many.parent / 'many'}",
        "--training.epochs",
        "1",
        "--data.image_size",
        "8",
    )
    done = cli("train", *options, "--data.batch_size", "256", "--data.duplicates", "ignore")
    assert done.code == 0, done.err
    (run,) = workspace.client.search_runs([workspace.experiment_id])
    done = cli("evaluate", "--config", many, "--run_id", run.info.run_id)
    assert done.code == 0, done.err
    assert "test scores of the 20 of 1,100 classes with the lowest F1" in done.out
    assert done.out.count("│ 数字 ") == 20
    per_class = pd.read_csv(
        artifacts.download_artifact(workspace, run.info.run_id, "test/per_class.csv", tmp_path)
    )
    assert per_class["class"].tolist() == [f"数字 {number:04d}" for number in range(1100)]
    for split in ("val", "test"):
        table = pd.read_csv(
            artifacts.download_artifact(
                workspace, run.info.run_id, f"confusion_matrix/{split}.csv", tmp_path / split
            )
        )
        right = table.loc[table["true"] == table["predicted"], "count"].sum() / table["count"].sum()
        logged_accuracy = workspace.client.get_run(run.info.run_id).data.metrics[
            f"{'best/val_' if split == 'val' else 'test/'}accuracy"
        ]
        assert right == pytest.approx(logged_accuracy)
    assert cli("register", "--config", many, "--run_id", run.info.run_id).code == 0
    version = workspace.client.get_model_version_by_alias("quick", "champion")
    assert json.loads(version.tags["classes"]) == per_class["class"].tolist()


@pytest.mark.parametrize(("count", "as_csv"), [(100, True), (101, False)])
def test_predictions_are_kept_as_csv_for_up_to_a_hundred_classes(
    cli: Cli, quick: Path, workspace: Workspace, tmp_path: Path, count: int, as_csv: bool
) -> None:
    rng = np.random.default_rng(0)
    root = quick.with_name("many")
    for number in range(count):
        (root / str(number)).mkdir(parents=True)
        for copy in range(4):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(
                root / str(number) / f"{copy}.png"
            )
    options = ("--data.source", f"folder:{root}", "--data.duplicates", "ignore")
    assert (
        cli(
            "train",
            "--config",
            quick,
            "--training.epochs",
            "1",
            "--model.name",
            "small_cnn",
            *options,
        ).code
        == 0
    )
    (row,) = find_runs.find_trainings(workspace)
    done = cli("evaluate", "--run_id", row["run_id"])
    assert done.code == 0, done.err
    assert artifacts.has_artifact(workspace, row["run_id"], "test/predictions.csv") == as_csv
    kept = pd.read_parquet(
        artifacts.download_artifact(workspace, row["run_id"], "test/predictions.parquet", tmp_path)
    )
    assert len(kept) > 0 and len(kept.columns) == 3 + count
    per_class = pd.read_csv(
        artifacts.download_artifact(workspace, row["run_id"], "test/per_class.csv", tmp_path)
    )
    assert list(per_class["class"]) == list(range(count))
