"""Optuna's own figures of a study, as PNG files."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState

from pipeline import ranking
from pipeline.errors import first_line
from pipeline.report.console import say
from pipeline.report.figures import foreign_figures
from pipeline.report.training_figures import majority_beside_curves


def write_figures(
    study: optuna.Study, folder: Path, metric: str = ranking.DEFAULT, majority: float | None = None
) -> list[Path]:
    """Write history.png, and for a search importances.png and slices.png; return their paths.

    Importances need two complete trials whose scores and values differ. A figure that cannot be
    drawn is reported and left out: it must not keep a study from its end.

    Args:
        study: The study, whose values are scores: the higher the better.
        folder: The folder that the files are written to.
        metric: The metric that the scores are made of. Axes show its values under its name.
        majority: Validation accuracy of always answering the largest class, or None if it is not
            known. It is drawn into the history of accuracies.
    """
    from optuna.visualization import matplotlib as drawing

    study = _study_of_values(study, metric)
    trials = study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    searched = [trial for trial in complete if trial.params]
    drawings: dict[str, Callable[..., Any]] = {}
    if complete:
        drawings["history"] = drawing.plot_optimization_history
    if _is_varied(searched):
        drawings["importances"] = drawing.plot_param_importances
    if searched:
        drawings["slices"] = drawing.plot_slice
    written = []
    with warnings.catch_warnings(), foreign_figures(_texts_of(searched)):
        warnings.simplefilter("ignore", ExperimentalWarning)
        # Matplotlib says this of the axis of a single trial, which has no width.
        warnings.filterwarnings("ignore", r"Attempting to set identical", UserWarning)
        # The code that finds the fonts says it once.
        warnings.filterwarnings("ignore", r"Glyph \d+ ")
        # Importances of values that few trials have are less sure, which the figure does not say.
        warnings.filterwarnings("ignore", r"Some regimes for parameter", UserWarning)
        for name, draw in drawings.items():
            file = folder / f"{name}.png"
            try:
                axes = draw(study, target_name=ranking.title(metric))
                if name == "history" and majority is not None and metric == ranking.DEFAULT:
                    majority_beside_curves(axes, majority)
                    axes.legend()
                _save(axes, file)
            except Exception as error:
                # Optuna's drawing is experimental, and any value of the search space may break it.
                say(f"optuna/{name}.png cannot be drawn: {first_line(error)}")
                continue
            written.append(file)
    return written


def _is_varied(trials: Sequence[FrozenTrial]) -> bool:
    """Whether at least two trials have different scores, and at least two have different values."""
    scores = {trial.value for trial in trials}
    points = {str(trial.params) for trial in trials}
    return len(scores) > 1 and len(points) > 1


def _texts_of(trials: Sequence[FrozenTrial]) -> set[str]:
    texts: set[str] = set()
    for trial in trials:
        texts.update(map(str, trial.params.values()))
    return texts


def _save(axes: Any, file: Path) -> None:
    """Write the figure of some axes; the slices of several fields have an array of them."""
    if hasattr(axes, "flat"):
        figure = axes.flat[0].figure
        figure.set_size_inches(5 * len(axes.flat), 4)
    else:
        figure = axes.figure
    figure.savefig(file, dpi=110, bbox_inches="tight")


def _study_of_values(study: optuna.Study, metric: str) -> optuna.Study:
    """Return a study in memory that has the metric's values in place of the scores."""
    if not ranking.is_lower_better(metric):
        return study
    shown = optuna.create_study(direction="minimize", study_name=study.study_name)
    for trial in study.get_trials():
        if not trial.state.is_finished():
            continue
        values = None
        if trial.values is not None:
            values = [ranking.score(value, metric) for value in trial.values]
        intermediate_values = {}
        for epoch, value in trial.intermediate_values.items():
            intermediate_values[epoch] = ranking.score(value, metric)
        shown.add_trial(
            optuna.trial.create_trial(
                state=trial.state,
                values=values,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs=trial.user_attrs,
                intermediate_values=intermediate_values,
            )
        )
    return shown
