"""Grey levels and shapes of pictures, from the study to the prediction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from pipeline.tracking import artifacts, find_runs, study_runs
from pipeline.tracking.workspace import Workspace
from tests.conftest import Cli, calibrated


@pytest.fixture
def scans(quick: Path) -> Path:
    """The quick experiment, its digits as 12 bits in 16.

    It trains one epoch, on the level of white that they need.
    """
    for file in quick.with_name("digits").rglob("*.png"):
        levels = np.asarray(Image.open(file).convert("L")).astype(np.uint16) * 16
        Image.fromarray(levels).save(file)
    raw = yaml.safe_load(quick.read_text())
    raw["base"]["training"]["epochs"] = 1
    raw["base"]["data"]["white"] = "auto"
    quick.write_text(
        yaml.safe_dump(
            {**raw, "configs": [{"optimizer": {"lr": 1e-3}}, {"optimizer": {"lr": 3e-3}}]}
        )
    )
    return quick


def ok(cli: Cli, *arguments: object) -> str:
    done = cli(*arguments)
    assert done.code == 0, done.err
    return done.out


@pytest.mark.thorough
def test_auto_is_recorded_hashed_and_found_again_as_its_number(
    cli: Cli, scans: Path, workspace: Workspace
) -> None:
    ok(cli, "tune", "--config", scans)
    rows = find_runs.find_trainings(workspace)
    assert {row["params"]["data.white"] for row in rows} == {"4095"} and len(rows) == 2
    (study,) = study_runs.find_studies(workspace)
    assert "2 of 2 trainings are there" in ok(cli, "tune", "--config", scans)
    # Given as a number it is the same study.
    assert "2 of 2 trainings are there" in ok(
        cli, "tune", "--config", scans, "--data.white", "4095"
    )
    for step in ("evaluate", "summary", "register"):
        told = ok(cli, step, "--config", scans)
        assert f"study {study.name}, " in told and "latest" not in told
    ok(cli, "tune", "--config", scans, "--data.white", "type")
    assert len(study_runs.find_studies(workspace)) == 2
    assert f"study {study.name}, " in ok(cli, "summary", "--config", scans)


def test_a_single_training_is_not_repeated_by_its_number(
    cli: Cli, scans: Path, workspace: Workspace
) -> None:
    ok(cli, "train", "--config", scans)
    assert "trained before" in ok(cli, "train", "--config", scans, "--data.white", "4095")
    assert "trained before" not in ok(cli, "train", "--config", scans, "--data.white", "2047")


@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_predictions_are_those_of_the_evaluation(
    cli: Cli, scans: Path, workspace: Workspace, fit: str
) -> None:
    ok(cli, "train", "--config", scans, "--data.fit", fit)
    (row,) = find_runs.find_trainings(workspace)
    ok(cli, "evaluate", "--run_id", row["run_id"])
    table = pd.read_csv(
        artifacts.download_artifact(
            workspace, row["run_id"], "test/predictions.csv", scans.parent / "down"
        )
    ).sort_values("path")
    listed = scans.with_name("listed.txt")
    listed.write_text("\n".join(f"digits/{path}" for path in table["path"]))
    ok(
        cli,
        "predict",
        "--model_uri",
        f"runs:/{row['run_id']}/model",
        "--images",
        listed,
        "--predict.probabilities",
        "true",
    )
    shares = [name for name in table.columns if name.startswith("p_")]
    expected = calibrated(workspace, row["run_id"], table[shares])
    assert np.allclose(pd.read_csv("predictions.csv")[shares], expected, atol=1e-4)
    parquet = pd.read_parquet(
        artifacts.download_artifact(
            workspace, row["run_id"], "test/predictions.parquet", scans.parent / "down"
        )
    )
    assert set(parquet["path"]) == set(table["path"])
