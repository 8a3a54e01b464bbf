"""Optuna's own figures of a study, as PNG files."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState

from pipeline import ranking
from pipeline.errors import first_line
from pipeline.report.console import say
from pipeline.report.figures import foreign_figures
from pipeline.report.training_figures import majority_beside_curves


def write_figures(
    study: optuna.Study, folder: Path, metric: str = ranking.DEFAULT, majority: float | None = None
) -> list[Path]:
    """Write history.png, and for a searched study importances.png and slices.png; return what was drawn.

    Importances need two complete trials whose scores and values differ. What cannot be drawn is said and left out: it must not keep a
    study from its end.

    Args:
        study: Its values are scores, the higher the better.
        folder: For the files.
        metric: What the scores are of: axes show its values under its name.
        majority: Validation accuracy of always answering the largest class, where it is known: drawn into the history of accuracies.
    """
    from optuna.visualization import matplotlib as drawing

    study = _of_values(study, metric)
    complete = [
        trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE
    ]
    searched = [trial for trial in complete if trial.params]
    varied = (
        len(searched) > 1
        and len({trial.value for trial in searched}) > 1
        and len({str(trial.params) for trial in searched}) > 1
    )
    wanted: dict[str, tuple[bool, Callable[[optuna.Study], Any]]] = {
        "history": (
            bool(complete),
            lambda s: drawing.plot_optimization_history(s, target_name=ranking.title(metric)),
        ),
        "importances": (
            varied,
            lambda s: drawing.plot_param_importances(s, target_name=ranking.title(metric)),
        ),
        "slices": (
            bool(searched),
            lambda s: drawing.plot_slice(s, target_name=ranking.title(metric)),
        ),
    }
    written = []
    texts = {str(value) for trial in searched for value in trial.params.values()}
    with warnings.catch_warnings(), foreign_figures(texts):
        warnings.simplefilter("ignore", ExperimentalWarning)
        # Of a single trial's axis, which has no width.
        warnings.filterwarnings("ignore", r"Attempting to set identical", UserWarning)
        # Said once, by what finds the fonts.
        warnings.filterwarnings("ignore", r"Glyph \d+ ")
        for name, (possible, draw) in wanted.items():
            if not possible:
                continue
            try:
                axes = draw(study)
                figure = (axes if not hasattr(axes, "flat") else axes.flat[0]).figure
                if name == "history" and majority is not None and metric == ranking.DEFAULT:
                    majority_beside_curves(axes, majority)
                    axes.legend()
                if name == "slices" and hasattr(axes, "flat"):
                    figure.set_size_inches(5 * len(axes.flat), 4)
                figure.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight")
            except Exception as error:
                # Whatever a value of the search space makes Optuna's drawing, which is experimental, stumble over.
                say(f"optuna/{name}.png cannot be drawn: {first_line(error)}")
                continue
            written.append(folder / f"{name}.png")
    return written


def _of_values(study: optuna.Study, metric: str) -> optuna.Study:
    """Return a study of the metric's values instead of the scores, in the memory of this process."""
    if not ranking.is_lower_better(metric):
        return study
    shown = optuna.create_study(direction="minimize", study_name=study.study_name)
    for trial in study.get_trials():
        values = (
            None
            if trial.values is None
            else [ranking.score(value, metric) for value in trial.values]
        )
        between = {
            step: ranking.score(value, metric) for step, value in trial.intermediate_values.items()
        }
        if trial.state.is_finished():
            shown.add_trial(
                optuna.trial.create_trial(
                    state=trial.state,
                    values=values,
                    params=trial.params,
                    distributions=trial.distributions,
                    user_attrs=trial.user_attrs,
                    intermediate_values=between,
                )
            )
    return shown
