"""Benchmark of searching: ``python -m tests.benchmarks.search``.

Do sampler, start-up and pruner suit studies of twenty? Learning curves of a grid of configurations
on the digits were recorded once (see `tests.benchmarks.curves`). Here real Optuna studies search
that grid, each "training" looked up from its curve, so that two hundred studies of a setting take
seconds. Judged is the configuration that the pipeline would register: its true score, the mean over
the recorded seeds, against the best one of the grid, and how many epochs the study has trained. The
benchmark prints a table of each landscape and situation and one of all together. It exits 0 if in
the last table no other setting finds better configurations in no more epochs than the pipeline's
defaults.

The defaults and their neighbours, some minutes on two cores:

    python -m tests.benchmarks.search

All settings that were looked at:

    python -m tests.benchmarks.search --all true

Five real studies with the defaults and each neighbour, an hour:

    python -m tests.benchmarks.search --real 5
"""

from __future__ import annotations

import argparse
import itertools
import math
import multiprocessing
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    SuccessiveHalvingPruner,
)
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from rich.table import Table

from pipeline import ranking
from pipeline.config import Study
from pipeline.errors import Paused
from pipeline.experiment import Range, Space
from pipeline.search.one_epoch import Race, RaceCallback, Standing, waits_for_others
from pipeline.search.pruning import PruningCallback, build_pruner, build_sampler
from pipeline.search.space import Point, suggest
from pipeline.search.trials import PLACE, put_back
from pipeline.tracking.tracked_run import Pruned
from pipeline.training.callback import Callback
from tests.benchmarks.curves import EPOCHS, FILE, LRS, MODELS, SCHEDULES, train
from tests.benchmarks.curves import Point as TrainedPoint
from tests.benchmarks.measure import console

TRIALS = 20
METRIC = "val/accuracy"
LANDSCAPES: dict[str, tuple[str, ...]] = {
    "four networks": MODELS,
    "the three weaker ones": MODELS[:3],
    "small_cnn": MODELS[:1],
    "shufflenet_v2_x0_5": MODELS[2:3],
}
"""Networks among which a study searches, beside learning rate and schedule.

With the strong one, the network decides nearly all.
"""
REAL = "small_cnn"
"""Of real studies: its trainings take seconds."""


def space_of(models: Sequence[str]) -> Space:
    """Return the space of some networks."""
    choices: Space = {"model.name": list(models)} if len(models) > 1 else {}
    return {
        **choices,
        "optimizer.lr": Range(low=LRS[0], high=LRS[-1], log=True),
        "schedule.name": list(SCHEDULES),
    }


@dataclass(frozen=True)
class Curve:
    """One recorded training."""

    accuracies: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def history(self) -> list[dict[str, float]]:
        """Metrics of each epoch."""
        epochs = zip(self.accuracies, self.losses, strict=True)
        return [{METRIC: accuracy, "val/loss": loss} for accuracy, loss in epochs]

    @property
    def best(self) -> tuple[float, float]:
        """Accuracy and loss of the epoch that the pipeline keeps: of equal ones the last."""
        number = max(range(len(self.accuracies)), key=lambda epoch: (self.accuracies[epoch], epoch))
        return self.accuracies[number], self.losses[number]


class Grid:
    """The recorded trainings of some networks by configuration."""

    def __init__(self, table: pd.DataFrame, models: Sequence[str]) -> None:
        self.space, self._models = space_of(models), models
        self.curves: dict[tuple[str, str, float], list[Curve]] = {}
        of_models = table[table["model"].isin(models)]
        for (model, schedule, lr, _), rows in of_models.groupby(
            ["model", "schedule", "lr", "seed"]
        ):
            ordered = rows.sort_values("epoch")
            curve = Curve(tuple(ordered["val_accuracy"]), tuple(ordered["val_loss"]))
            self.curves.setdefault((str(model), str(schedule), float(str(lr))), []).append(curve)
        self.truth = {
            key: fmean(curve.best[0] for curve in curves) for key, curves in self.curves.items()
        }

    @property
    def best(self) -> float:
        """The highest true score."""
        return max(self.truth.values())

    def nearest(self, point: Point) -> tuple[str, str, float]:
        """Return the configuration of the grid that a point of the space stands for.

        It is the one with the nearest logarithm of the learning rate.
        """
        lr = min(LRS, key=lambda known: abs(math.log(known / point["optimizer.lr"])))
        return point.get("model.name", self._models[0]), point["schedule.name"], lr

    @property
    def listed(self) -> list[Point]:
        """Eight entries such as a person lists.

        They are usual learning rates, each with another schedule, for each network.
        """
        usual = (
            (1e-3, "cosine"),
            (5e-4, "exponential"),
            (2e-3, "none"),
            (3e-4, "cosine"),
            (3e-3, "cosine"),
            (2e-4, "none"),
        )
        entries = [
            {"model.name": model, "optimizer.lr": lr, "schedule.name": schedule}
            for lr, schedule in usual
            for model in self._models
        ]
        return [{name: entry[name] for name in self.space} for entry in entries[:8]]


@cache
def recorded(landscape: str) -> Grid:
    """Return the recorded grid of a landscape."""
    return Grid(pd.read_csv(FILE), LANDSCAPES[landscape])


@dataclass(frozen=True)
class Setting:
    """How a study searches.

    Attributes:
        name: Shown.
        sampler: Returns one for a seed and a number of listed entries.
        pruner: Returns one.
        first: Train what is searched for one epoch, and go on with so many of the best; 0: leave it
            to the pruner.
        race: The settings of a race after one epoch, in the place of a pruner; or None.
    """

    name: str
    sampler: Callable[[int, int], BaseSampler]
    pruner: Callable[[], BasePruner]
    first: int = 0
    race: Study | None = None


def next_due(study: optuna.Study, settings: Study) -> int | None:
    """Return the number of the first waiting trial that may be trained now; None if there is none.

    Args:
        study: The study.
        settings: The settings of its race.
    """
    race = Race.of(study, settings)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        if not waits_for_others(trial) or race.standing(trial.number) != Standing.OPEN:
            return trial.number
    return None


def train_on(report: PruningCallback, curve: Curve, done: int) -> tuple[TrialState | None, int]:
    """Replay a training from an epoch on.

    Args:
        report: The callback that prunes it, or has it wait.
        curve: Its curve.
        done: Number of epochs that it has trained before.

    Returns:
        How its trial ended, or None if it waits; and the number of epochs that it has trained.
    """
    epochs = 0
    report.on_start(EPOCHS, 1)
    try:
        report.on_resume(done, curve.history[:done])
        for epoch, values in enumerate(curve.history[done:], done + 1):
            epochs += 1
            report.on_epoch(epoch, values, True)
    except Paused:
        return None, epochs
    except Pruned:
        return TrialState.PRUNED, epochs
    # A shorter one has ended since its loss was not finite.
    is_whole = len(curve.accuracies) == EPOCHS
    return TrialState.COMPLETE if is_whole else TrialState.FAIL, epochs


def begin(study: optuna.Study, number: int) -> optuna.Trial:
    """Begin a waiting trial, or go on with it."""
    trial_id = study.trials[number]._trial_id
    study._storage.set_trial_state_values(trial_id, TrialState.RUNNING)
    return optuna.Trial(study, trial_id)


@dataclass
class Outcome:
    """What a study has come to.

    Attributes:
        regret: True score of the best configuration less that of the one that is registered, in
            points of accuracy.
        epochs: Trained in all.
        complete: Searched trainings that were not given up.
    """

    regret: float
    epochs: int
    complete: int


@dataclass
class _Replay:
    """A study whose trainings are looked up."""

    grid: Grid
    study: optuna.Study
    random: np.random.Generator
    rows: list[dict[str, Any]] = field(default_factory=list)
    epochs: int = 0
    complete: int = 0

    def train(
        self, trial: optuna.Trial, point: Point, prunable: bool, at_most: int = EPOCHS
    ) -> None:
        key = self.grid.nearest(point)
        curves = self.grid.curves[key]
        curve = curves[self.random.integers(len(curves))]
        report = PruningCallback(trial, METRIC, prunable)
        report.on_start(EPOCHS, 1)
        for epoch, accuracy in enumerate(curve.accuracies[:at_most], 1):
            self.epochs += 1
            try:
                report.on_epoch(epoch, {METRIC: accuracy}, True)
            except Pruned:
                self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                return
        if len(curve.accuracies) < EPOCHS:
            # Its loss was not finite.
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return
        self.keep(key, curve)
        self.complete += prunable
        self.study.tell(trial, curve.best[0])

    def race(self, count: int, settings: Study) -> None:
        """Draw so many configurations, of which the best after one epoch are trained to the end."""
        first = len(self.study.trials)
        for place in range(first, first + count):
            self.study.enqueue_trial({}, {PLACE: place})
        drawn: dict[int, tuple[tuple[str, str, float], Curve]] = {}
        while (number := next_due(self.study, settings)) is not None:
            trial = begin(self.study, number)
            if number not in drawn:
                drawn[number] = self.draw(suggest(trial, self.grid.space))
            key, curve = drawn[number]
            done = len(self.study.trials[number].intermediate_values)
            ended, epochs = train_on(RaceCallback(trial, METRIC, settings), curve, done)
            self.epochs += epochs
            if ended is None:
                put_back(self.study, trial._trial_id)
                continue
            if ended == TrialState.COMPLETE:
                self.keep(key, curve)
                self.complete += 1
            value = curve.best[0] if ended == TrialState.COMPLETE else None
            self.study.tell(trial, value, state=ended)

    def draw(self, point: Point) -> tuple[tuple[str, str, float], Curve]:
        key = self.grid.nearest(point)
        curves = self.grid.curves[key]
        return key, curves[self.random.integers(len(curves))]

    def keep(self, key: tuple[str, str, float], curve: Curve) -> None:
        accuracy, loss = curve.best
        row = {
            "key": key,
            "config_hash": str(key),
            "state": "complete",
            "fold": "0",
            "data_digest": "",
        }
        self.rows.append(
            {
                **row,
                "val_accuracy": accuracy,
                "val_loss": loss,
                "parameters": 0.0,
                "start_time": len(self.rows),
            }
        )

    def train_all_for_one_epoch(self, count: int, go_on_with: int) -> None:
        """Draw so many configurations, train each for one epoch, go on with the best of them."""
        drawn = []
        for _ in range(count):
            key = self.grid.nearest(suggest(self.study.ask(), self.grid.space))
            curve = self.grid.curves[key][self.random.integers(len(self.grid.curves[key]))]
            drawn.append((curve.accuracies[0] if curve.accuracies else 0.0, key, curve))
            self.epochs += 1
        for _, key, curve in sorted(drawn, key=lambda one: one[0], reverse=True)[:go_on_with]:
            self.epochs += EPOCHS - 1
            self.complete += 1
            if len(curve.accuracies) == EPOCHS:
                self.keep(key, curve)


@dataclass
class _Real(_Replay, Callback):
    """A study whose trainings are done.

    Attributes:
        prepared_in: Folder of prepared images.
    """

    prepared_in: Path = Path()

    def on_epoch(self, epoch: int, values: dict[str, float], is_best: bool) -> None:
        self.epochs += 1

    def draw(self, point: Point) -> tuple[tuple[str, str, float], Curve]:
        # It is trained at once; of the race only those epochs count that it would have trained.
        before = self.epochs
        key, curve = self._train(point, [self])
        self.epochs = before
        return key, curve

    def _train(
        self, point: Point, callbacks: Sequence[Callback]
    ) -> tuple[tuple[str, str, float], Curve]:
        key = self.grid.nearest(point)
        training = TrainedPoint(
            int(self.random.integers(1000)), key[1], point["optimizer.lr"], key[0]
        )
        return key, Curve(*zip(*train(training, self.prepared_in, callbacks), strict=True))

    def train(
        self, trial: optuna.Trial, point: Point, prunable: bool, at_most: int = EPOCHS
    ) -> None:
        try:
            key, curve = self._train(point, [self, PruningCallback(trial, METRIC, prunable)])
        except Pruned:
            self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            return
        self.keep(key, curve)
        self.complete += prunable
        self.study.tell(trial, curve.best[0])


@dataclass(frozen=True)
class Situation:
    """What a study has.

    Attributes:
        listed: Entries of the fixed list.
        outside: How many of them lie outside the space: the sampler knows no values of theirs.
        budget: It goes on until so many epochs are trained; 0: until it has made twenty trainings.
    """

    listed: int
    outside: int = 0
    budget: int = 0


def replay(
    setting: Setting,
    landscape: str,
    situation: Situation,
    seed: int,
    prepared_in: Path | None = None,
) -> Outcome:
    """Run one study.

    Args:
        setting: How it searches.
        landscape: What it searches.
        situation: What it has.
        seed: Of sampler, brackets and noise.
        prepared_in: Where to prepare images for real trainings; None: they are looked up.
    """
    grid, random = recorded(landscape), np.random.default_rng(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study = optuna.create_study(
            study_name=f"study {seed}",
            direction="maximize",
            sampler=setting.sampler(seed, situation.listed),
            pruner=setting.pruner(),
        )
    replayed = (
        _Replay(grid, study, random)
        if prepared_in is None
        else _Real(grid, study, random, prepared_in=prepared_in)
    )
    for number, point in enumerate(grid.listed[: situation.listed]):
        is_inside = number >= situation.outside
        study.enqueue_trial(point if is_inside else {})
        trial = study.ask()
        replayed.train(trial, suggest(trial, grid.space) if is_inside else point, prunable=False)
    if setting.first:
        drawn = (
            situation.budget - replayed.epochs - setting.first * (EPOCHS - 1)
            if situation.budget
            else TRIALS - situation.listed
        )
        replayed.train_all_for_one_epoch(drawn, setting.first)
    elif setting.race is not None:
        left = situation.budget - replayed.epochs
        count = TRIALS - situation.listed
        replayed.race(_race_within(left, setting.race) if situation.budget else count, setting.race)
    else:
        trials = situation.listed
        while replayed.epochs < situation.budget if situation.budget else trials < TRIALS:
            trial = study.ask()
            replayed.train(trial, suggest(trial, grid.space), prunable=True)
            trials += 1
    leader = ranking.rank(replayed.rows)[0]
    return Outcome(
        100 * (grid.best - grid.truth[leader["key"]]), replayed.epochs, replayed.complete
    )


def _race_within(epochs: int, settings: Study) -> int:
    """Return how many configurations can race in so many epochs."""
    count = 1
    while count + 1 + settings.num_finalists(count + 1) * (EPOCHS - 1) <= epochs:
        count += 1
    return count


def tpe(startup: int, of_search: bool = False) -> Callable[[int, int], BaseSampler]:
    """Return a maker of TPE samplers that draw at random until so many trials are done.

    With `of_search` the trials of the list do not count.
    """
    return lambda seed, listed: TPESampler(
        seed=seed, n_startup_trials=startup + listed * of_search, group=True, multivariate=True
    )


def at_random(seed: int, listed: int) -> BaseSampler:
    return RandomSampler(seed=seed)


def hyperband(factor: int, least: int) -> Callable[[], BasePruner]:
    return lambda: HyperbandPruner(min_resource=least, max_resource=EPOCHS, reduction_factor=factor)


def halving(factor: int, least: int, first: int = 0) -> Callable[[], BasePruner]:
    return lambda: SuccessiveHalvingPruner(
        min_resource=least, reduction_factor=factor, bootstrap_count=first
    )


def median(startup: int, warmup: int) -> Callable[[], BasePruner]:
    return lambda: MedianPruner(n_startup_trials=startup, n_warmup_steps=warmup)


def defaults(**changed: Any) -> Setting:
    """Return what the pipeline does by default, or with other values of the study section."""
    study = Study(**changed)
    name = "pipeline's defaults" + "".join(f", {key} {value}" for key, value in changed.items())
    return Setting(
        name,
        lambda seed, listed: build_sampler(study, seed),
        lambda: build_pruner(study, EPOCHS),
        race=study if study.pruner == "one_epoch" else None,
    )


DEFAULTS = defaults()
NEIGHBOURS = [defaults(pruner=pruner) for pruner in ("hyperband", "median", "none")] + [
    defaults(sampler="random")
]


def all_settings() -> list[Setting]:
    """Return every setting that was looked at."""
    samplers: dict[str, Callable[[int, int], BaseSampler]] = {"random": at_random}
    samplers |= {f"tpe {startup}": tpe(startup) for startup in (0, 5, 10)}
    samplers |= {
        f"tpe {startup} beside the list": tpe(startup, of_search=True) for startup in (2, 5)
    }
    pruners: dict[str, Callable[[], BasePruner]] = {"none": NopPruner}
    pruners |= {
        f"hyperband {factor}, from {least}": hyperband(factor, least)
        for factor in (2, 3, 4)
        for least in (1, 2, 3)
    }
    pruners |= {
        f"halving {factor}, from {least}": halving(factor, least)
        for factor in (2, 3, 4)
        for least in (1, 2, 3)
    }
    pruners |= {
        f"median {startup}, from {warmup}": median(startup, warmup)
        for startup in (0, 5, 10)
        for warmup in (1, 2, 3)
    }
    found = [Setting(f"tpe 5 | {name}", tpe(5), pruner) for name, pruner in pruners.items()]
    found += [Setting(f"{name} | none", sampler, NopPruner) for name, sampler in samplers.items()]
    found += [
        Setting(f"{name} | hyperband 3, from 2", sampler, hyperband(3, 2))
        for name, sampler in samplers.items()
    ]
    found += [
        Setting(f"{name} | median 5, from 1", sampler, median(5, 1))
        for name, sampler in samplers.items()
    ]
    found += [
        Setting(f"random | all for one epoch, then {count}", at_random, NopPruner, count)
        for count in (1, 2, 3, 5)
    ]
    return list({setting.name: setting for setting in found}.values())


SITUATIONS = {
    "a list of eight, then twelve searched": Situation(8),
    "two of the eight outside the space": Situation(8, outside=2),
    "twenty searched": Situation(0),
    "a list of eight, then as many as take the epochs of twelve whole ones": Situation(
        8, budget=TRIALS * EPOCHS
    ),
    "as many searched as take the epochs of twenty whole ones": Situation(
        0, budget=TRIALS * EPOCHS
    ),
}


def _outcomes(setting: str, situation: str, landscape: str, seeds: int) -> list[Outcome]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    by_name = {one.name: one for one in [*all_settings(), DEFAULTS, *NEIGHBOURS]}
    return [
        replay(by_name[setting], landscape, SITUATIONS[situation], seed) for seed in range(seeds)
    ]


def compare(
    settings: Sequence[Setting], seeds: int
) -> dict[tuple[str, str], dict[str, list[Outcome]]]:
    """Run all settings in all situations and landscapes on two processes.

    Return the outcomes by situation and landscape, and by setting.
    """
    places = list(itertools.product(SITUATIONS, LANDSCAPES))
    with ProcessPoolExecutor(
        min(2, os.cpu_count() or 1), multiprocessing.get_context("spawn")
    ) as pool:
        running = {
            place: {
                setting.name: pool.submit(_outcomes, setting.name, *place, seeds)
                for setting in settings
            }
            for place in places
        }
        return {
            place: {name: future.result() for name, future in found.items()}
            for place, found in running.items()
        }


def show(title: str, outcomes: dict[str, list[Outcome]]) -> bool:
    """Print a table; return whether no setting beats the defaults.

    A setting beats them if it is better in no more epochs, beyond two standard errors.
    """
    ours = outcomes[DEFAULTS.name]
    columns = [
        "setting",
        "regret: median",
        "10%",
        "90%",
        "mean",
        "epochs: median",
        "10%",
        "90%",
        "less regret than the defaults",
    ]
    table, holds = Table(*columns, title=title, title_justify="left"), True
    for name, found in outcomes.items():
        regrets, epochs = (
            np.array([one.regret for one in found]),
            np.array([one.epochs for one in found]),
        )
        gains = np.array([own.regret - one.regret for own, one in zip(ours, found, strict=True)])
        gain, error = gains.mean(), gains.std(ddof=1) / math.sqrt(len(gains))
        # As many as ours: a study that has epochs to use up finishes the training with which they
        # end.
        beats = gain > 2 * error and epochs.mean() < np.mean([own.epochs for own in ours]) + EPOCHS
        holds &= not beats
        figures = [
            f"{figure:.2f}" for figure in [*np.quantile(regrets, [0.5, 0.1, 0.9]), regrets.mean()]
        ]
        counts = [f"{count:.0f}" for count in np.quantile(epochs, [0.5, 0.1, 0.9])]
        table.add_row(
            name,
            *figures,
            *counts,
            f"{gain:+.3f} ± {error:.3f}" + " better and cheaper" * int(beats),
        )
    console.print(table)
    return holds


def _real_outcome(setting: str, seed: int) -> Outcome:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    by_name = {one.name: one for one in [DEFAULTS, *NEIGHBOURS]}
    with tempfile.TemporaryDirectory() as folder:
        return replay(
            by_name[setting],
            REAL,
            SITUATIONS["a list of eight, then twelve searched"],
            seed,
            Path(folder),
        )


def show_real(count: int) -> int:
    """Run so many real studies with the defaults and each neighbour; print the table.

    Two run at a time.
    """
    names = list(dict.fromkeys([DEFAULTS.name, *(one.name for one in NEIGHBOURS)]))
    with ProcessPoolExecutor(
        min(2, os.cpu_count() or 1), multiprocessing.get_context("spawn")
    ) as pool:
        running = {
            name: [pool.submit(_real_outcome, name, seed) for seed in range(count)]
            for name in names
        }
        outcomes = {name: [future.result() for future in found] for name, found in running.items()}
    show(f"{count} real studies each: {REAL}, a list of eight, then twelve searched", outcomes)
    return 0


def main() -> int:
    """Print the tables; return the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--all", default="false")
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--real", type=int, default=0)
    given = parser.parse_args()
    if given.real:
        return show_real(given.real)
    settings = [DEFAULTS, *(all_settings() if given.all == "true" else NEIGHBOURS)]
    outcomes = compare(settings, given.seeds)
    pooled = {
        setting.name: [one for found in outcomes.values() for one in found[setting.name]]
        for setting in settings
    }
    for (situation, landscape), found in outcomes.items():
        grid = recorded(landscape)
        show(
            (
                f"{landscape} ({len(grid.truth)} configurations, the best is true in "
                f"{grid.best:.2%}): {situation}"
            ),
            found,
        )
    return 0 if show("all of these together", pooled) else 1


if __name__ == "__main__":
    sys.exit(main())
