"""Which configurations are told apart, by the answers that their runs have kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from pipeline.jobs import verdicts
from pipeline.jobs.summary_files import summarise_and_write
from pipeline.tracking import names
from pipeline.tracking.workspace import Workspace

pytestmark = pytest.mark.slow

NUM_IMAGES = 350


def right_in(share: float, first: int = 0) -> NDArray[np.bool_]:
    """Return answers of which a share is right, from the image `first` on."""
    places = (np.arange(NUM_IMAGES) - first) % NUM_IMAGES
    return np.asarray(places < round(share * NUM_IMAGES))


def log_run(
    workspace: Workspace,
    config: str,
    val_accuracy: float,
    correct: NDArray[np.bool_] | None = None,
    accuracy: float | None = None,
    groups: Sequence[str] | None = None,
    paths: Sequence[str] | None = None,
    seed: int = 0,
) -> str:
    """Log a complete training, and what it answered if that is given."""
    client = workspace.client
    tags = {
        names.EXPERIMENT: workspace.experiment,
        names.STEP: "train",
        names.STATE: names.COMPLETE,
        names.CONFIG_HASH: config,
        names.DATA_DIGEST: "d" * 32,
    }
    run_id = str(client.create_run(workspace.experiment_id, tags=tags, run_name=config).info.run_id)
    client.log_param(run_id, "model.name", config)
    client.log_param(run_id, "training.seed", str(seed))
    client.log_metric(run_id, "best/val_accuracy", val_accuracy)
    if correct is not None:
        accuracy = float(correct.mean())
        table = pd.DataFrame({"path": paths or [f"{n:03d}.png" for n in range(len(correct))]})
        table["true"] = "rose"
        table["predicted"] = np.where(correct, "rose", "tulip")
        if groups is not None:
            table["group"] = list(groups)
        file = Path("predictions.parquet")
        # In any order: images are known by their paths.
        table.sample(frac=1, random_state=seed).to_parquet(file, index=False)
        client.log_artifact(run_id, str(file), "test")
    if accuracy is not None:
        client.log_metric(run_id, "test/accuracy", accuracy)
        client.log_metric(run_id, names.TEST_IMAGES, NUM_IMAGES)
    client.set_terminated(run_id)
    return run_id


def table_of(workspace: Workspace) -> pd.DataFrame:
    summarise_and_write(workspace)
    return pd.read_csv(workspace.outputs / "configurations.csv").set_index("config_hash")


def test_repeats_tell_configurations_apart(workspace: Workspace) -> None:
    for seed in (0, 1):
        log_run(workspace, "first", 0.95, right_in(0.91, 30 * seed), seed=seed)
        log_run(workspace, "near", 0.94, right_in(0.90, 30 * seed + 15), seed=seed)
        log_run(workspace, "far", 0.93, right_in(0.70, 30 * seed), seed=seed)
    table = table_of(workspace)
    assert table["verdict"].to_dict() == {
        "first": "leader",
        "near": "not told apart",
        "far": "worse",
    }
    assert table["compared_by"].tolist()[1:] == ["paired", "paired"]
    far = table.loc["far"]
    assert far["behind_low"] < far["behind"] < far["behind_high"]
    assert far["behind"] == pytest.approx(0.21, abs=0.01)
    assert far["p_holm"] == pytest.approx(2 * far["p_value"])
    page = (workspace.outputs / "comparison.html").read_text()
    assert "One configuration is not told apart from it. One is worse." in page
    assert "image by image (t-test), at 95%" in page
    assert "another seed" not in page


def test_without_repeats_two_runs_are_compared_and_the_page_says_so(workspace: Workspace) -> None:
    log_run(workspace, "first", 0.95, right_in(0.90))
    log_run(workspace, "better", 0.94, right_in(0.99))
    table = table_of(workspace)
    assert table.loc["better", "verdict"] == "better on test"
    assert table.loc["better", "compared_by"] == "McNemar"
    page = (workspace.outputs / "comparison.html").read_text()
    assert "another seed may turn it round" in page


def test_images_of_few_groups_tell_less(workspace: Workspace) -> None:
    groups = [f"patient {number // 35}" for number in range(NUM_IMAGES)]
    log_run(workspace, "first", 0.95, right_in(0.90), groups=groups)
    log_run(workspace, "worse", 0.94, right_in(0.80), groups=groups)
    assert table_of(workspace).loc["worse", "verdict"] == "not told apart"
    # The same answers to images that stand for themselves.
    log_run(workspace, "leads", 0.97, right_in(0.90))
    log_run(workspace, "behind", 0.96, right_in(0.80))
    assert table_of(workspace).loc["behind", "verdict"] == "worse"


def test_an_image_without_a_group_is_one_by_itself() -> None:
    table = pd.DataFrame({"group": ["a", "", "a", "", "1"]})
    numbers = verdicts._groups(table)
    assert numbers is not None
    assert len(set(numbers.tolist())) == 4 and numbers[0] == numbers[2]


def test_accuracies_alone_are_compared_by_the_number_of_images(workspace: Workspace) -> None:
    for seed, accuracy in enumerate((0.91, 0.92)):
        log_run(workspace, "first", 0.95, accuracy=accuracy, seed=seed)
        log_run(workspace, "worse", 0.94, accuracy=accuracy - 0.3, seed=seed)
        log_run(workspace, "near", 0.93, accuracy=accuracy - 0.01, seed=seed)
    table = table_of(workspace)
    assert table["verdict"].to_dict() == {
        "first": "leader",
        "worse": "worse",
        "near": "not told apart",
    }
    assert set(table["compared_by"].dropna()) == {"unpaired"}
    assert "another seed" not in (workspace.outputs / "comparison.md").read_text()


def test_answers_to_other_images_are_not_paired(workspace: Workspace) -> None:
    log_run(workspace, "first", 0.95, right_in(0.9))
    other = [f"other {number}.png" for number in range(NUM_IMAGES)]
    log_run(workspace, "second", 0.94, right_in(0.9), paths=other)
    assert table_of(workspace).loc["second", "compared_by"] == "unpaired"


def test_what_is_not_evaluated_gets_no_verdict(workspace: Workspace) -> None:
    log_run(workspace, "first", 0.95)
    log_run(workspace, "second", 0.94, right_in(0.9))
    table = table_of(workspace)
    assert table["verdict"].tolist()[0] == "leader" and table["verdict"].isna().sum() == 1
    assert "summary --evaluate all" in (workspace.outputs / "comparison.md").read_text()
    log_run(workspace, "leads", 0.97, right_in(0.92))
    table = table_of(workspace)
    assert pd.isna(table.loc["first", "verdict"])
    text = (workspace.outputs / "comparison.md").read_text()
    assert "One configuration is not compared, since not evaluated." in text


def test_a_damaged_file_of_answers_is_as_none(workspace: Workspace) -> None:
    log_run(workspace, "first", 0.95, right_in(0.9))
    run_id = log_run(workspace, "second", 0.94, right_in(0.9))
    [file] = Path("mlruns").rglob(f"{run_id}/artifacts/test/predictions.parquet")
    for content in (b"", b"PAR1", b"no parquet at all"):
        file.write_bytes(content)
        assert table_of(workspace).loc["second", "compared_by"] == "unpaired"
    pd.DataFrame({"path": ["a", "a"], "true": 1, "predicted": 1}).to_parquet(file)
    assert table_of(workspace).loc["second", "compared_by"] == "unpaired"


def test_one_configuration_is_compared_with_nothing(workspace: Workspace) -> None:
    log_run(workspace, "first", 0.95, right_in(0.9))
    assert table_of(workspace)["verdict"].tolist() == ["leader"]
    assert "is compared" not in (workspace.outputs / "comparison.md").read_text()
