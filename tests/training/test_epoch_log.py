"""What is told of epochs that are trained again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from pipeline.training.epoch_log import EpochLog


class Told:
    """What was logged, in order, and what a reader makes of it.

    A reader takes the last value of each step, and of `best/…` the value of the highest step.
    """

    def __init__(self) -> None:
        self.logged: list[tuple[str, int, float]] = []

    def write(self, values: Mapping[str, float], step: int) -> None:
        self.logged += [(name, step, value) for name, value in values.items()]

    def history(self, name: str) -> dict[int, float]:
        return {
            step: value
            for logged, step, value in sorted(self.logged, key=lambda entry: entry[1])
            if logged == name
        }

    def latest(self, name: str) -> float:
        return list(self.history(name).values())[-1]

    def log(self, best_metric: str = "val/accuracy") -> EpochLog:
        """Return the log of the next life."""
        names = {name for name, _, _ in self.logged}
        known: dict[int, dict[str, float]] = {}
        for name in names:
            if not name.startswith(("best/", "parameters")):
                for step, value in self.history(name).items():
                    known.setdefault(step, {})[name] = value
        told = {name: self.latest(name) for name in names if name.startswith("best/")}
        return EpochLog(self.write, {"parameters": 5}, best_metric, known, told)


def epoch(accuracy: float, seconds: float = 1.0) -> dict[str, float]:
    return {
        "val/accuracy": accuracy,
        "val/loss": 1 - accuracy,
        "lr": 0.1,
        "epoch_seconds": seconds,
        "images_per_second": 1 / seconds,
    }


def live(log: EpochLog, accuracies: list[float], after: int = 0, seconds: float = 1.0) -> None:
    """Train epochs of which those up to `after` are known from a checkpoint."""
    history = [epoch(accuracy, seconds) for accuracy in accuracies]
    log.on_resume(after, history[:after])
    for number, values in enumerate(history[after:], after + 1):
        log.on_epoch(number, values, values["val/accuracy"] >= max(accuracies[:number]))


def test_each_epoch_is_told_once_and_each_best_with_it() -> None:
    told = Told()
    log = told.log()
    live(log, [0.5, 0.7, 0.6, 0.7])
    log.conclude()
    assert told.history("val/accuracy") == {1: 0.5, 2: 0.7, 3: 0.6, 4: 0.7}
    assert told.history("best/epoch") == {1: 1, 2: 2, 4: 4}
    assert told.history("parameters") == {1: 5}
    assert len({(name, step) for name, step, _ in told.logged}) == len(told.logged)
    # The first metric of a run is what the UI plots.
    assert told.logged[0][0] == "best/val_accuracy"


def test_epochs_that_come_out_alike_are_not_told_again_but_for_their_speed() -> None:
    told = Told()
    live(told.log(), [0.5, 0.7, 0.6, 0.8])
    before = list(told.logged)
    log = told.log()
    live(log, [0.5, 0.7, 0.6, 0.8, 0.9], after=1, seconds=2.0)
    log.conclude()
    assert {step for _, step, _ in told.logged[len(before) :]} == {5}
    assert told.history("best/epoch") == {1: 1, 2: 2, 4: 4, 5: 5}


def test_epochs_that_come_out_otherwise_are_told_again_and_best_is_of_what_is_kept() -> None:
    told = Told()
    live(told.log(), [0.5, 0.6, 0.7, 0.8, 0.95])
    log = told.log()
    live(log, [0.5, 0.6, 0.71, 0.7, 0.72], after=2)
    # While it trains it is true already.
    assert (told.latest("best/epoch"), told.latest("best/val_accuracy")) == (5, 0.72)
    log.conclude()
    assert told.history("val/accuracy") == {1: 0.5, 2: 0.6, 3: 0.71, 4: 0.7, 5: 0.72}
    assert told.latest("best/val_loss") == pytest.approx(0.28)
    assert [step for name, step, _ in told.logged if name == "val/accuracy"] == [
        1,
        2,
        3,
        4,
        5,
        3,
        4,
        5,
    ]


def test_a_better_epoch_that_is_gone_does_not_win_at_any_time() -> None:
    told = Told()
    live(told.log(), [0.5, 0.6, 0.7, 0.8, 0.95])
    log = told.log()
    live(log, [0.5, 0.6, 0.71], after=2)
    assert (told.latest("best/epoch"), told.latest("best/val_accuracy")) == (3, 0.71)
    # Killed here; the next life goes on from the same checkpoint.
    log = told.log()
    live(log, [0.5, 0.6, 0.65, 0.66], after=2)
    assert (told.latest("best/epoch"), told.latest("best/val_accuracy")) == (4, 0.66)


def test_an_epoch_that_is_no_more_is_not_a_number() -> None:
    # Ended earlier than before, by its patience.
    told = Told()
    live(told.log(), [0.5, 0.6, 0.7, 0.8, 0.95])
    log = told.log()
    live(log, [0.5, 0.6, 0.55], after=1)
    log.conclude()
    history = told.history("val/accuracy")
    assert {step: value for step, value in history.items() if not math.isnan(value)} == {
        1: 0.5,
        2: 0.6,
        3: 0.55,
    }
    assert set(history) == {1, 2, 3, 4, 5}
    assert (told.latest("best/epoch"), told.latest("best/val_accuracy")) == (2, 0.6)


def test_where_nothing_is_kept_no_best_is_told() -> None:
    # Begun anew without a checkpoint, and failed in the first epoch.
    told = Told()
    live(told.log(), [0.5])
    log = told.log()
    log.on_resume(0, [])
    log.conclude()
    assert all(
        math.isnan(told.latest(name)) for name in ("best/epoch", "best/val_accuracy", "val/loss")
    )


def test_what_was_done_but_not_told_any_more_is_told_when_it_goes_on() -> None:
    told = Told()
    live(told.log(), [0.5])
    live(told.log(), [0.5, 0.7, 0.6, 0.65], after=3)
    assert told.history("val/accuracy") == {1: 0.5, 2: 0.7, 3: 0.6, 4: 0.65}
    assert told.history("best/epoch") == {1: 1, 2: 2}


def test_best_is_of_the_metric_that_chooses() -> None:
    told = Told()
    log = told.log("val/loss")
    live(log, [0.5, 0.7])
    log.conclude()
    assert told.latest("best/val_loss") == pytest.approx(0.3)


def test_losses_that_are_no_numbers_are_equal() -> None:
    told, values = Told(), {**epoch(0.5), "train/loss": math.nan}
    told.log().on_epoch(1, values, True)
    before: list[Any] = list(told.logged)
    told.log().on_resume(1, [values])
    assert len(told.logged) == len(before)
