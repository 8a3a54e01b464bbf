"""The ridgeline is written, and shows what it is given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import colormaps

from pipeline.config import Configuration
from pipeline.data.prepare_data import prepare
from pipeline.report.ridgeline import draw_ridgeline
from pipeline.training.fit import fit
from pipeline.training.layer_groups import histogram
from pipeline.training.tensorboard import History, Watch
from tests.report.test_figures import count, pixels_of
from tests.training.small_training import BASE, build_context

pytestmark = pytest.mark.slow

strictly = pytest.mark.filterwarnings("error::UserWarning")


def dark(file: Path) -> int:
    """Count the pixels of a last epoch."""
    red, green, blue, _ = (np.asarray(colormaps["Blues"](0.95)) * 255).round().astype(int)
    return count(file, (red, green, blue))


def history(epochs: Sequence[int], width: float, number: int = 5000) -> History:
    rng = np.random.default_rng(0)
    made = [
        histogram((width * (1 + epoch / 10) * rng.standard_normal(number)).astype(np.float32))
        for epoch in epochs
    ]
    return History(list(epochs), [edges for edges, _ in made], [counts for _, counts in made])


@strictly
@pytest.mark.parametrize("groups", [1, 2, 5, 12])
@pytest.mark.parametrize("epochs", [[0], [0, 1], [0, 1, *range(4, 100, 3)]], ids=len)
def test_a_ridgeline_is_written_for_any_number_of_groups_and_epochs(
    tmp_path: Path, groups: int, epochs: list[int]
) -> None:
    draw_ridgeline(
        tmp_path / "weights.png",
        {f"features.denseblock{number}": history(epochs, 0.1) for number in range(groups)},
    )
    pixels = pixels_of(tmp_path / "weights.png")
    assert max(pixels.shape[:2]) < 2000
    # Each group has its last epoch in front.
    assert dark(tmp_path / "weights.png") > 300 * groups


@strictly
def test_names_of_any_length_stay_within_their_panel(tmp_path: Path) -> None:
    short = {f"group {number}": history([0, 1], 0.1) for number in range(4)}
    long = {
        f"a.very.long.path.of.modules.that.has.no.room.{name}": one for name, one in short.items()
    }
    for file, histories in (("short.png", short), ("long.png", long)):
        draw_ridgeline(tmp_path / file, histories)
    assert pixels_of(tmp_path / "short.png").shape == pixels_of(tmp_path / "long.png").shape
    assert dark(tmp_path / "short.png") == pytest.approx(dark(tmp_path / "long.png"), rel=0.01)


@pytest.mark.parametrize(
    ("epochs", "is_labelled"), [([0, 1, 2], False), ([0, 2], True)], ids=["the same", "others"]
)
def test_epochs_stand_beside_the_first_panel_and_where_they_differ(
    tmp_path: Path, epochs: list[int], is_labelled: bool
) -> None:
    draw_ridgeline(
        tmp_path / "weights.png", {"conv": history([0, 1, 2], 0.1), "fc": history(epochs, 0.1)}
    )
    pixels = pixels_of(tmp_path / "weights.png")
    height, width, _ = pixels.shape
    # Between the panels, above the axes' numbers.
    between = pixels[height // 4 : 3 * height // 4, int(0.54 * width) : int(0.595 * width)]
    assert (between.max(axis=2) < 80).any() == is_labelled


@strictly
def test_weights_that_are_all_equal_are_drawn(tmp_path: Path) -> None:
    edges, counts = histogram(np.ones(64, np.float32))
    draw_ridgeline(
        tmp_path / "weights.png", {"norm": History([0, 1], [edges, edges], [counts, counts])}
    )
    assert dark(tmp_path / "weights.png") > 300


@strictly
def test_single_far_values_do_not_press_the_others_together(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal(100_000).astype(np.float32)
    widths = []
    for far in (5.0, 12.0):
        values[:3] = far
        edges, counts = histogram(values)
        draw_ridgeline(tmp_path / "weights.png", {"fc": History([0], [edges], [counts])})
        widths.append(dark(tmp_path / "weights.png"))
    assert widths[1] == pytest.approx(widths[0], rel=0.1)


def test_a_real_training_is_drawn(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        **BASE,
        "model": {"name": "resnet18"},
        "training": {"epochs": 2, "device": "cpu"},
    }
    changes["data"] = {**changes["data"], "limit": 200}
    configuration = Configuration.model_validate(changes)
    torch.manual_seed(0)
    setting = build_context(configuration, prepare(configuration.data, tmp_path), tmp_path)
    watch = Watch(setting.network.module, tmp_path / "tensorboard")
    fit(configuration, setting, [watch])
    watch.close()
    draw_ridgeline(tmp_path / "weights.png", watch.histories)
    assert list(watch.histories) == ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"]
    assert dark(tmp_path / "weights.png") > 300 * 7
