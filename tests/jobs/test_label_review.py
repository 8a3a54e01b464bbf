"""Labels that may be wrong, found by what runs have answered."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.config import Data
from pipeline.data.prepare_data import prepare
from pipeline.data.prepared import Prepared
from pipeline.jobs.label_review import NAME, load_review, review_labels
from pipeline.jobs.predictions_table import OF_TEST, OF_VALIDATION, tabulate_predictions
from pipeline.tracking.workspace import Workspace
from tests.conftest import write_digits

pytestmark = pytest.mark.slow


@pytest.fixture
def digits(folder: Path) -> Prepared:
    source = write_digits(folder / "digits", 30)
    return prepare(Data(source=f"folder:{source}", image_size=16), folder / "prepared")


def log_answers(workspace: Workspace, images: Prepared, wrong: int, private: str = "true") -> dict:
    """Log a run that is sure of each label, but for that of one test image."""
    client = workspace.client
    run_id = client.create_run(workspace.experiment_id).info.run_id
    for split, path in (("val", OF_VALIDATION), ("test", OF_TEST)):
        labels = images.labels()[images.positions(split)]
        shares = np.full((len(labels), 3), 0.05)
        shares[np.arange(len(labels)), labels] = 0.9
        if split == "test":
            shares[wrong] = np.roll(shares[wrong], 1)
        table = tabulate_predictions(images, split, labels, shares, images.classes)
        table.to_parquet(Path(path).name)
        client.log_artifact(run_id, Path(path).name, str(Path(path).parent))
    return {"run_id": run_id, "params": {"tracking.log_images": private}}


def test_the_label_that_no_network_believes_comes_first(
    workspace: Workspace, digits: Prepared, tmp_path: Path
) -> None:
    runs = [log_answers(workspace, digits, wrong=2) for _ in range(2)]
    review = review_labels(workspace, runs, digits)
    assert review is not None
    review.write(tmp_path)
    table = pd.read_csv(tmp_path / f"{NAME}.csv")
    # Nothing is said of images that the networks were trained on.
    assert len(table) == len(digits.positions("val")) + len(digits.positions("test"))
    place = digits.positions("test")[2]
    first = table.iloc[0]
    assert first["path"] == digits.manifest["path"].iloc[place]
    assert first["label"] == digits.manifest["label"].iloc[place] != first["answer"]
    assert (first["runs"], first["runs_that_agree"], bool(first["suspected"])) == (2, 2, True)
    assert table["suspected"].sum() == 1
    page = (tmp_path / f"{NAME}.html").read_text()
    assert "1 of " in page and page.count("<img src=") == 12
    assert "2 of 2 runs answer" in page and len(review.part.pictures) == 12
    # In the caption, and for those who do not see the picture.
    assert page.count("(suspected)") == 2


def test_a_study_keeps_what_was_found(
    workspace: Workspace, digits: Prepared, tmp_path: Path
) -> None:
    folder = tmp_path / "review"
    folder.mkdir()
    parent = workspace.client.create_run(workspace.experiment_id).info.run_id
    assert load_review(workspace, parent) is None
    found = review_labels(workspace, [log_answers(workspace, digits, wrong=2)], digits)
    assert found is not None
    found.write(folder)
    workspace.client.log_artifacts(parent, str(folder), "summary")
    kept = load_review(workspace, parent)
    assert kept is not None and kept.table == found.table
    assert "<img" in found.page and "<img" not in kept.page
    # What is suspected stands first, wherever it is in the list.
    lines = found.table.splitlines(keepends=True)
    (folder / f"{NAME}.csv").write_text("".join([lines[0], *lines[2:], lines[1]]))
    workspace.client.log_artifacts(parent, str(folder), "summary")
    kept = load_review(workspace, parent)
    place = digits.positions("test")[2]
    assert kept is not None and kept.part.entries is not None
    assert next(iter(kept.part.entries)) == digits.manifest["path"].iloc[place]
    # What anybody may have written there is no reason to fail.
    for text in ("path\n", 'path\na\n"', "", found.table.replace("confidence_in_label", "x")):
        (folder / f"{NAME}.csv").write_text(text)
        workspace.client.log_artifacts(parent, str(folder), "summary")
        assert load_review(workspace, parent) is None


def test_private_images_are_not_shown(
    workspace: Workspace, digits: Prepared, tmp_path: Path
) -> None:
    runs = [log_answers(workspace, digits, 2), log_answers(workspace, digits, 2, "false")]
    review = review_labels(workspace, runs, digits)
    assert review is not None and "<img" not in review.page
    assert not review.part.pictures and review.part.entries
    public = [log_answers(workspace, digits, 2)]
    review = review_labels(workspace, public, digits, shows_images=False)
    assert review is not None and "<img" not in review.page


def test_runs_without_answers_leave_nothing(workspace: Workspace, digits: Prepared) -> None:
    run_id = workspace.client.create_run(workspace.experiment_id).info.run_id
    assert review_labels(workspace, [{"run_id": run_id, "params": {}}], digits) is None
    (damaged,) = [log_answers(workspace, digits, 2)]
    for file in Path("mlruns").rglob("predictions.parquet"):
        file.write_bytes(b"no parquet")
    assert review_labels(workspace, [damaged], digits) is None


def test_a_file_that_is_no_table_of_answers_is_left_out(
    workspace: Workspace, digits: Prepared
) -> None:
    good, odd = (log_answers(workspace, digits, 2) for _ in range(2))

    def is_text(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(p_x="hello")

    def is_list(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(**{"p_digit 0": [[1.0, 2.0]] * len(table)})

    def is_further(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(note=1.0)

    def has_no_number(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(**{"p_digit 0": np.nan})

    [file] = Path("mlruns").rglob(f"{odd['run_id']}/artifacts/test/predictions.parquet")
    table = pd.read_parquet(file)
    for change, counts in ((is_text, 1), (is_list, 1), (has_no_number, 1), (is_further, 2)):
        change(table).to_parquet(file)
        review = review_labels(workspace, [odd, good], digits)
        assert review is not None
        found = pd.read_csv(io.StringIO(review.table)).set_index("path")
        place = digits.positions("test")[2]
        assert found.loc[digits.manifest["path"].iloc[place], "runs"] == counts


def test_networks_that_have_learned_nothing_do_not_count(
    workspace: Workspace, digits: Prepared
) -> None:
    good = log_answers(workspace, digits, 2)
    poor = {**log_answers(workspace, digits, 3), "val_accuracy": 0.3, "majority_rate": 0.3}
    collapsed = {**log_answers(workspace, digits, 3), "flags": {"collapse": "2 of 10 classes"}}
    review = review_labels(workspace, [good, poor, collapsed], digits)
    assert review is not None
    assert (pd.read_csv(io.StringIO(review.table))["runs"] == 1).all()
    # If there are no others, they have to do.
    alone = review_labels(workspace, [poor], digits)
    assert alone is not None
