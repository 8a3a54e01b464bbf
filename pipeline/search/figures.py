"""Optuna's own figures of a study, as PNG files."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState

from pipeline.report.figures import foreign_figures, majority_beside_curves


def write_figures(study: optuna.Study, folder: Path, majority: float | None = None) -> list[Path]:
    """Write history.png, and for a searched study importances.png and slices.png; return what was drawn.

    Importances need two complete trials whose scores and values differ. The history shows the accuracy of always
    answering the largest class, where it is known.
    """
    from optuna.visualization import matplotlib as drawing

    complete = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
    searched = [trial for trial in complete if trial.params]
    varied = len(searched) > 1 and len({trial.value for trial in searched}) > 1 and len({str(trial.params) for trial in searched}) > 1
    wanted: dict[str, tuple[bool, Callable[[optuna.Study], Any]]] = {
        "history": (bool(complete), lambda s: drawing.plot_optimization_history(s, target_name="validation accuracy")),
        "importances": (varied, lambda s: drawing.plot_param_importances(s, target_name="validation accuracy")),
        "slices": (bool(searched), lambda s: drawing.plot_slice(s, target_name="validation accuracy")),
    }
    written = []
    with warnings.catch_warnings(), foreign_figures():
        warnings.simplefilter("ignore", ExperimentalWarning)
        for name, (possible, draw) in wanted.items():
            if not possible:
                continue
            axes = draw(study)
            figure = (axes if not hasattr(axes, "flat") else axes.flat[0]).figure
            if name == "history" and majority is not None:
                majority_beside_curves(axes, majority)
                axes.legend()
            if name == "slices" and hasattr(axes, "flat"):
                figure.set_size_inches(5 * len(axes.flat), 4)
            figure.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight")
            written.append(folder / f"{name}.png")
    return written
