"""Benchmark of the pruners: ``python -m tests.benchmarks.pruners``.

What does giving up early cost, and what does it save? Learning curves of a grid of configurations
on the digits were recorded once (see `tests.benchmarks.curves`). Of 60 of them, 20 are drawn again
and again: each draw is a real Optuna study, whose trainings are looked up. With each pruner the
best accuracy is compared with that of the same 20 trainings in full.

The benchmark exits 0 if the default pruner loses at most half a point on the average in at most 40%
of the epochs, and no other pruner loses less in as many epochs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import TrialState
from rich.table import Table

from pipeline.config import Study
from pipeline.search.one_epoch import RaceCallback
from pipeline.search.pruning import PruningCallback, build_pruner
from pipeline.search.trials import PLACE, put_back
from tests.benchmarks.curves import EPOCHS
from tests.benchmarks.measure import Results, console
from tests.benchmarks.search import METRIC, Curve, begin, next_due, recorded, train_on

DRAWS = 1000
GRID = 60
TRIALS = 20
MOST_REGRET = 0.5
"""Points of accuracy that the default pruner may lose on the average."""
MOST_EPOCHS = 0.4
"""Part of all epochs that it may train."""
_SAME = 0.01
"""Part of all epochs by which two pruners may differ that train as many."""

SETTINGS: dict[str, Study] = {
    "one_epoch (the default)": Study(),
    "one_epoch, 1 finalist": Study(finalists=1),
    "one_epoch, 3 finalists": Study(finalists=3),
    "one_epoch, 5 finalists": Study(finalists=5),
    "one_epoch, 10 finalists": Study(finalists=10),
    "hyperband": Study(pruner="hyperband"),
    "median": Study(pruner="median"),
    "none": Study(pruner="none"),
}


class Outcome(NamedTuple):
    """What a study has come to.

    Attributes:
        regret: Best accuracy of its trainings in full less that of those it has ended, in points.
        epochs: Part of all epochs that it has trained.
    """

    regret: float
    epochs: float


def draw(seed: int) -> list[Curve]:
    """Return the curves of 20 of the 60 configurations, each of one of its recorded seeds."""
    grid = recorded("four networks")
    keys = sorted(grid.curves)
    some = np.random.default_rng(0).permutation(len(keys))[:GRID]
    random = np.random.default_rng(seed)
    curves = []
    for index in random.choice(some, TRIALS, replace=False):
        of_seeds = grid.curves[keys[index]]
        curves.append(of_seeds[random.integers(len(of_seeds))])
    return curves


class Replay:
    """A study whose trainings are looked up.

    Args:
        settings: The study's settings.
        seed: Number of the draw.
    """

    def __init__(self, settings: Study, seed: int) -> None:
        self._settings = settings
        self._curves = draw(seed)
        self._trained = 0
        self._ended: list[float] = []
        self._study = optuna.create_study(
            study_name=f"draw {seed}", direction="maximize", pruner=build_pruner(settings, EPOCHS)
        )
        for place in range(TRIALS):
            self._study.enqueue_trial({"curve": place}, {PLACE: place})

    def run(self) -> Outcome:
        """Train until nothing waits."""
        while (number := next_due(self._study, self._settings)) is not None:
            self._train(number)
        full = max(curve.best[0] for curve in self._curves)
        regret = 100 * (full - max(self._ended, default=0.0))
        return Outcome(regret, self._trained / (TRIALS * EPOCHS))

    def _train(self, number: int) -> None:
        trial = begin(self._study, number)
        # Of trials with the same values, one would go on.
        trial.suggest_int("curve", 0, TRIALS - 1)
        curve = self._curves[number]
        done = len(self._study.trials[number].intermediate_values)
        ended, epochs = train_on(self._callback(trial), curve, done)
        self._trained += epochs
        if ended is None:
            put_back(self._study, trial._trial_id)
            return
        is_complete = ended == TrialState.COMPLETE
        self._study.tell(trial, curve.best[0] if is_complete else None, state=ended)
        if is_complete:
            self._ended.append(curve.best[0])

    def _callback(self, trial: optuna.Trial) -> PruningCallback:
        if self._settings.pruner == "one_epoch":
            return RaceCallback(trial, METRIC, self._settings)
        return PruningCallback(trial, METRIC, prunable=True)


def run_draw(seed: int, name: str) -> Outcome:
    """Run the study of a draw with a setting."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return Replay(SETTINGS[name], seed).run()


def compare_pruners(results: Results, draws: int = DRAWS) -> None:
    """Run all draws with all settings; print the table, and add the row of the default."""
    table = Table("pruner", "regret: mean", "90%", "99%", "epochs", title=f"{draws} draws")
    means: dict[str, NDArray[np.float64]] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1), context) as pool:
        for name in SETTINGS:
            one = partial(run_draw, name=name)
            found = np.array(list(pool.map(one, range(draws), chunksize=20)))
            means[name] = found.mean(axis=0)
            regret, epochs = means[name]
            high, highest = np.quantile(found[:, 0], [0.9, 0.99])
            figures = [f"{regret:.2f}", f"{high:.2f}", f"{highest:.2f}", f"{epochs:.0%}"]
            table.add_row(name, *figures)
    console.print(table)
    own, *others = means.values()
    better = [one for one in others if one[1] <= own[1] + _SAME and one[0] < own[0]]
    results.add(
        "the default pruner, 20 of 60 configurations",
        f"{own[0]:.2f} points in {own[1]:.0%} of the epochs",
        "the same 20 in full",
        f"{own[0]:.2f} points lost, at most {MOST_REGRET}, in {own[1]:.0%} of the epochs, "
        f"at most {MOST_EPOCHS:.0%}; better in as many: {len(better)}",
        own[0] <= MOST_REGRET and own[1] <= MOST_EPOCHS and not better,
    )


def main() -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=DRAWS)
    results = Results("Pruners")
    compare_pruners(results, parser.parse_args().draws)
    return results.conclude()


if __name__ == "__main__":
    sys.exit(main())
