"""The five studies run from their files, nothing edited, scaled down."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from pipeline import models
from pipeline.experiment import load_experiment
from pipeline.identity import config_hash
from pipeline.tracking.workspace import open_workspace
from tests.conftest import PROJECT, Cli, thorough_of, write_digits

PLAIN = ("--training.precision", "fp32", "--training.memory_format", "contiguous")
SMALL = (
    "--fast",
    "true",
    "--data.limit",
    "24",
    "--data.image_size",
    "32",
    "--training.epochs",
    "1",
    *PLAIN,
)
FOLDER = {"scratch_depth": 7, "resnet_scratch": 3, "transfer_modes": 5}


def write_csv(folder: Path) -> tuple[str, ...]:
    """Write images as the retinopathy study has them.

    Names are in one CSV, grades in another, and grade 0 dominates.
    """
    root = write_digits(folder / "eyes", 12, size=40, classes=(0, 1, 2, 3, 4))
    rows = [
        (file.relative_to(root).with_suffix(""), int(file.parent.name[-1]))
        for file in sorted(root.rglob("*.png"))
    ]
    rows = [(name, grade) for name, grade in rows if grade == 0 or int(name.name) < 6]
    pd.DataFrame({"image": [name for name, _ in rows]}).to_csv(folder / "images.csv", index=False)
    pd.DataFrame({"level": [grade for _, grade in rows]}).to_csv(folder / "labels.csv", index=False)
    return (
        "--data.source",
        f"csv:{folder / 'images.csv'}",
        "--data.labels",
        str(folder / "labels.csv"),
        "--data.root",
        str(root),
    )


def run(cli: Cli, name: str, *options: str) -> pd.DataFrame:
    done = cli(
        "tune",
        "--config",
        str(PROJECT / "experiments" / f"{name}.yaml"),
        "--experiment",
        name,
        *SMALL,
        *options,
    )
    assert done.code == 0, done.err + done.out
    return pd.read_csv(open_workspace(f"{name}-fast").outputs / "comparison.csv")


@pytest.mark.thorough
@pytest.mark.parametrize("name", thorough_of(FOLDER, ["resnet_scratch"]))
def test_a_study_of_a_folder_runs_from_its_file(
    cli: Cli, store: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(store / "no weights"))
    write_digits(store / "images", 8, size=40)
    rows = run(cli, name)
    assert rows["state"].tolist() == ["complete"] * FOLDER[name]
    # None could be had here, and --fast goes on without.
    assert set(rows["weights"]) == {"none"}


@pytest.mark.thorough
def test_the_study_of_retinopathy_runs_from_its_file(
    cli: Cli, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(store / "no weights"))
    rows = run(cli, "retinopathy", *write_csv(store), "--data.limit", "40")
    assert Counter(rows["model"]) == {"resnet18": 2, "resnet50": 2}


@pytest.mark.thorough
def test_the_twenty_run_from_their_file(
    cli: Cli, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(store / "no weights"))
    write_digits(store / "images", 8, size=40)
    rows = run(cli, "resnet_transfer_20")
    assert rows["state"].tolist() == ["complete"] * 20
    assert Counter(rows["model"]) == {
        "resnet18": 5,
        "resnet34": 5,
        "resnet50": 5,
        "resnet101": 4,
        "swin_v2_s": 1,
    }
    assert sorted(Counter(rows["config_hash"]).values()) == [1] * 4 + [2] * 8


def test_the_twenty_have_eight_pairs_of_equal_configurations() -> None:
    entries = load_experiment(str(PROJECT / "experiments" / "resnet_transfer_20.yaml"), {}).entries
    hashes = [config_hash(entry, models.origin(entry.model)) for entry in entries]
    pairs = [
        (first + 1, second + 1)
        for second in range(20)
        for first in range(second)
        if hashes[first] == hashes[second]
    ]
    assert pairs == [(2, 4), (3, 5), (7, 9), (8, 10), (12, 14), (13, 15), (16, 18), (17, 19)]


def test_a_target_is_reported_with_its_epoch(cli: Cli, quick: Path) -> None:
    study = quick.with_name("study.yaml")
    study.write_text(
        quick.read_text().replace("evaluate: none", "evaluate: none, target: 0.7")
        + "configs: [{}, {optimizer: {lr: 1.0e-9}}]\n"
    )
    assert cli("tune", "--config", str(study), "--training.epochs", "15").code == 0
    text = (open_workspace("quick").outputs / "comparison.md").read_text()
    assert "Target 0.7: reached by 1 of 2 trainings: 00 small_cnn at epoch " in text
