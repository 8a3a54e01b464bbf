"""The picture of what augmentation does, logged to a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.config import Configuration
from pipeline.data.prepare_data import prepare
from pipeline.data.prepared import Prepared
from pipeline.jobs.augmentation_preview import log_previews, one_of_each_class
from pipeline.tracking.artifacts import download_artifact
from pipeline.tracking.tracked_run import TrackedRun
from pipeline.tracking.workspace import Workspace
from tests.conftest import write_digits

pytestmark = pytest.mark.slow


def logged(
    workspace: Workspace, prepared: Prepared, *configurations: Configuration
) -> tuple[str, list[str]]:
    with TrackedRun(workspace, "tune", "study") as run:
        log_previews(run, prepared, configurations)
    return run.id, [file.path for file in workspace.client.list_artifacts(run.id, "prepare")]


def configured(folder: Path, **changes: Any) -> Configuration:
    source = write_digits(folder / "pictures", 8, classes=(0, 1, 2))
    data = {
        "source": f"folder:{source}",
        "image_size": 16,
        "augment": [{"RandomRotation": 30}],
        **changes.pop("data", {}),
    }
    return Configuration.model_validate({"data": data, **changes})


def test_the_preview_is_a_picture_of_one_image_per_class(
    workspace: Workspace, tmp_path: Path
) -> None:
    configuration = configured(tmp_path)
    run_id, files = logged(
        workspace,
        prepare(configuration.data, tmp_path / "prepared"),
        configuration,
    )
    assert files == ["prepare/augmentation.png"]
    with Image.open(download_artifact(workspace, run_id, files[0], tmp_path)) as image:
        width, height = image.size
        assert width > height > 300


def test_each_way_to_augment_has_its_picture(workspace: Workspace, tmp_path: Path) -> None:
    rotated = configured(tmp_path)
    plain, flipped = (
        rotated.model_copy(update={"data": rotated.data.model_copy(update={"augment": augment})})
        for augment in ([], ["RandomVerticalFlip"])
    )
    _, files = logged(
        workspace,
        prepare(rotated.data, tmp_path / "prepared"),
        plain,
        rotated,
        flipped,
        rotated,
    )
    assert files == ["prepare/augmentation.png", "prepare/augmentation_2.png"]


@pytest.mark.parametrize(
    "changes",
    [{"data": {"augment": []}}, {"tracking": {"log_images": False}}],
    ids=["no augmentation", "private images"],
)
def test_nothing_is_logged(workspace: Workspace, tmp_path: Path, changes: dict[str, Any]) -> None:
    configuration = configured(tmp_path, **changes)
    assert (
        logged(
            workspace,
            prepare(configuration.data, tmp_path / "prepared"),
            configuration,
        )[1]
        == []
    )


def test_few_classes_are_shown_with_one_image_each() -> None:
    assert one_of_each_class(np.array([2, 0, 0, 2, 1]), most=6) == [1, 4, 0]


def test_of_many_classes_some_are_shown_spread_evenly() -> None:
    labels = np.repeat(np.arange(101), 3)
    assert [int(labels[number]) for number in one_of_each_class(labels, most=6)] == [
        0,
        20,
        40,
        60,
        80,
        100,
    ]


def test_classes_without_training_images_are_left_out() -> None:
    labels = np.array([0, 5, 5, 9])
    assert one_of_each_class(labels, most=6) == [0, 1, 3]
