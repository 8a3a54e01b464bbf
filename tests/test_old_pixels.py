"""Networks that were trained on pixels as release 0.1.0 decoded them.

They are gone on with, evaluated and served on those.
"""

from __future__ import annotations

import base64
import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.config import Data
from pipeline.data.decode import Decoding
from pipeline.data.prepare_data import prepare
from pipeline.jobs import prepare as job
from pipeline.search import study as search
from pipeline.tracking import artifacts, find_runs, names, study_runs
from pipeline.tracking.workspace import Workspace
from tests.conftest import Cli, calibrated, interrupt
from tests.data import profiles

ADOBE = profiles.rgb_profile(profiles.ADOBE_RGB, partial(profiles.power, gamma=2.19921875))


@pytest.fixture
def quick(quick: Path, folder: Path) -> Path:
    """The experiment file, half of whose images have colours as Adobe RGB writes them."""
    for number, file in enumerate(sorted((folder / "digits").rglob("*.png"))):
        if number % 2:
            colours = np.asarray(Image.open(file).convert("RGB")) // 2 + np.array(
                [90, 20, 60], np.uint8
            )
            Image.fromarray(colours).save(file, icc_profile=ADOBE)
    return quick


@pytest.fixture
def first_release(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Decode as release 0.1.0 did, until it is undone."""
    monkeypatch.setattr(job, "prepare_images", partial(job.prepare_images, version=1))
    monkeypatch.setattr(search, "prepare_images", job.prepare_images)
    return monkeypatch


def data_of(folder: Path) -> Data:
    return Data(source=f"folder:{folder / 'digits'}", image_size=16, duplicates="ignore")


def test_the_digest_tells_what_is_decoded_otherwise(quick: Path, folder: Path) -> None:
    now = prepare(data_of(folder), folder / "prepared")
    before = prepare(data_of(folder), folder / "prepared", version=1)
    assert before.digest == now.first_digest() == before.first_digest() != now.digest
    is_changed = [
        now.images[number].tobytes() != before.images[number].tobytes()
        for number in range(len(now.manifest))
    ]
    assert sum(is_changed) == 45
    assert prepare(data_of(folder), folder / "anew").digest == now.digest
    for file in (folder / "digits").rglob("*.png"):
        Image.open(file).save(file, icc_profile=None)
    plain = prepare(data_of(folder), folder / "prepared")
    assert (
        plain.digest
        == plain.first_digest()
        == prepare(data_of(folder), folder / "prepared", version=1).digest
    )


def test_images_decoded_anew_are_said_once(quick: Path, folder: Path, cli: Cli) -> None:
    prepare(data_of(folder), folder / "prepared", version=1)
    first, second = (cli("prepare", "--config", str(quick)) for _ in range(2))
    assert first.code == second.code == 0
    (old,) = (folder / "prepared").glob("images-*-1-pillow*")
    assert first.out.count("they are decoded anew") == 1 and str(old) in first.out
    assert "decoded anew" not in second.out


def test_a_run_is_evaluated_and_its_model_predicts_on_the_pixels_it_was_trained_on(
    quick: Path, folder: Path, cli: Cli, workspace: Workspace, first_release: pytest.MonkeyPatch
) -> None:
    assert cli("train", "--config", str(quick)).code == 0
    first_release.undo()
    (run,) = find_runs.find_trainings(workspace)
    recorded = json.loads(
        artifacts.download_artifact(
            workspace, run["run_id"], names.PREPROCESSING, folder / "down"
        ).read_text()
    )
    assert recorded["decoding"] == 1
    assert cli("evaluate", "--run_id", run["run_id"]).code == 0
    table = pd.read_csv(
        artifacts.download_artifact(
            workspace, run["run_id"], "test/predictions.csv", folder / "down"
        )
    )
    listed = folder / "listed.txt"
    listed.write_text("\n".join(f"digits/{path}" for path in table["path"]))
    done = cli(
        "predict",
        "--model_uri",
        f"runs:/{run['run_id']}/model",
        "--images",
        str(listed),
        "--predict.probabilities",
        "true",
    )
    assert done.code == 0, done.err
    shares = [f"p_{name}" for name in sorted(path.name for path in (folder / "digits").iterdir())]
    expected = calibrated(workspace, run["run_id"], table[shares])
    assert np.allclose(pd.read_csv("predictions.csv")[shares], expected, atol=1e-4)
    served = mlflow.pyfunc.load_model(f"runs:/{run['run_id']}/model")
    content = [
        base64.b64encode((folder / "digits" / path).read_bytes()).decode() for path in table["path"]
    ]
    assert np.allclose(
        np.stack(served.predict(pd.DataFrame({"image": content}))["probabilities"]),
        expected,
        atol=1e-4,
    )
    # The next training is another one, on other pixels.
    assert "trained before" not in cli("train", "--config", str(quick)).out
    assert len({row["data_digest"] for row in find_runs.find_trainings(workspace)}) == 2


def test_an_interrupted_run_goes_on_with_the_pixels_it_began_with(
    quick: Path, folder: Path, cli: Cli, workspace: Workspace, first_release: pytest.MonkeyPatch
) -> None:
    interrupt(cli, "train", "--config", str(quick), epoch=2)
    first_release.undo()
    (run,) = find_runs.find_trainings(workspace)
    done = cli("train", "--run_id", run["run_id"])
    assert done.code == 0, done.err
    (run,) = find_runs.find_trainings(workspace)
    assert run["state"] == "complete"


@pytest.mark.thorough
def test_a_study_of_other_pixels_is_another_one_unless_it_is_named(
    quick: Path, folder: Path, cli: Cli, workspace: Workspace, first_release: pytest.MonkeyPatch
) -> None:
    quick.write_text(
        quick.read_text() + "configs: [{optimizer: {lr: 1.0e-3}}, {optimizer: {lr: 2.0e-3}}]\n"
    )
    interrupt(cli, "tune", "--config", str(quick), training="01")
    first_release.undo()
    (before,) = study_runs.find_studies(workspace)
    done = cli("tune", "--config", str(quick))
    assert done.code == 0, done.err
    assert f"--study.name {before.name} goes on with it" in done.out
    assert len(study_runs.find_studies(workspace)) == 2
    done = cli("tune", "--config", str(quick), "--study.name", before.name)
    assert done.code == 0, done.err
    rows: list[dict[str, Any]] = find_runs.find_trainings(workspace, before.name)
    assert [row["state"] for row in rows] == ["complete"] * 2
    assert {row["data_digest"] for row in rows} == {before.data_digest}
    assert len(study_runs.find_studies(workspace)) == 2


@pytest.mark.thorough
def test_a_study_that_left_damaged_metadata_out_goes_on_where_it_is_named(
    quick: Path, folder: Path, cli: Cli, workspace: Workspace, first_release: pytest.MonkeyPatch
) -> None:
    for file in sorted((folder / "digits").rglob("*.png"))[::9]:
        content = file.read_bytes()
        file.write_bytes(content[:33] + b"\0\0\0\4eXIfjunk\0\0\0\0" + content[33:])
    quick.write_text(
        quick.read_text() + "configs: [{optimizer: {lr: 1.0e-3}}, {optimizer: {lr: 2.0e-3}}]\n"
    )
    interrupt(cli, "tune", "--config", str(quick), "--data.bad", "drop", training="01")
    first_release.undo()
    (before,) = study_runs.find_studies(workspace)
    done = cli("tune", "--config", str(quick), "--data.bad", "drop", "--study.name", before.name)
    assert done.code == 0, done.err
    rows: list[dict[str, Any]] = find_runs.find_trainings(workspace, before.name)
    assert [row["state"] for row in rows] == ["complete"] * 2 and {
        row["data_digest"] for row in rows
    } == {before.data_digest}
    assert cli("tune", "--config", str(quick), "--data.bad", "drop").code == 0
    assert len(study_runs.find_studies(workspace)) == 2


def test_a_picture_decodes_as_before_by_version_1() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (90, 160, 120)).save(buffer, "PNG", icc_profile=ADOBE)
    assert Decoding(version=1).decode(buffer.getvalue()).image.getpixel((0, 0)) == (90, 160, 120)
    assert Decoding().decode(buffer.getvalue()).image.getpixel((0, 0)) != (90, 160, 120)
