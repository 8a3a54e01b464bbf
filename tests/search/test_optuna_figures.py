"""Optuna's figures: of the metric's own values, and never in the way of a study's end."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import optuna
import pytest
from matplotlib.axes import Axes
from optuna.visualization import matplotlib as drawing
from PIL import Image

from pipeline.report.figures import foreign_figures
from pipeline.search.optuna_figures import _study_of_values, write_figures


def study_of(scores: list[float], choices: list[object] | None = None) -> optuna.Study:
    study = optuna.create_study(direction="maximize")
    for number, score in enumerate(scores):
        trial = study.ask(
            {"optimizer.lr": optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True)}
        )
        if choices is not None:
            trial.suggest_categorical("data.augment", choices)
        trial.report(score - 0.1 * number, 1)
        study.tell(trial, score)
    return study


def test_a_study_by_loss_is_drawn_by_its_losses() -> None:
    study = _study_of_values(study_of([-1.8, -2.2, -1.9]), "val/loss")
    assert (study.direction.name, study.best_value) == ("MINIMIZE", 1.8)
    with foreign_figures():
        axes = drawing.plot_optimization_history(study, target_name="validation loss")
        assert isinstance(axes, Axes)
        low, high = axes.get_ylim()
        assert 1 < low < 1.8 and 2.2 < high < 3
        assert axes.get_ylabel() == "validation loss"
    assert matplotlib.get_backend()


@pytest.mark.parametrize("metric", ["val/accuracy", "val/loss"])
def test_all_three_figures_are_written(tmp_path: Path, metric: str) -> None:
    files = write_figures(study_of([0.5, 0.8, 0.7, 0.9]), tmp_path, metric, 0.1)
    assert [file.name for file in files] == ["history.png", "importances.png", "slices.png"]
    for file in files:
        with Image.open(file) as picture:
            assert picture.width > 300


@pytest.mark.filterwarnings("error")
def test_choices_may_be_in_any_script(tmp_path: Path) -> None:
    files = write_figures(
        study_of(
            [0.5, 0.8, 0.7], choices=["file:猫.py:build", "file:고양이.py:build", "\U00100003"]
        ),
        tmp_path,
    )
    assert [file.name for file in files] == ["history.png", "importances.png", "slices.png"]


@pytest.mark.filterwarnings("ignore:Choices for a categorical")
def test_what_cannot_be_drawn_is_said_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write_figures(
        study_of([0.5, 0.8, 0.7], choices=[[], ["RandomHorizontalFlip"]]), tmp_path
    )
    assert "history.png" in [file.name for file in files]
    told = capsys.readouterr().out
    assert (
        "importances.png" not in [file.name for file in files]
        and "optuna/importances.png cannot be drawn: " in told
    )
