"""The learning rate, against numbers written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import Schedule
from pipeline.training.schedule import Plateau, lr_at

ROOT = math.sqrt(0.5)
NAMES = ["none", "exponential", "step", "cosine", "plateau"]


def lrs(lr: float = 1.0, steps_per_epoch: int = 2, epochs: int = 3, **fields: Any) -> list[float]:
    schedule = Schedule.model_validate(fields)
    total = steps_per_epoch * epochs
    return [lr_at(step, schedule, lr, steps_per_epoch, total) for step in range(total)]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"name": "none"}, [1, 1, 1, 1, 1, 1]),
        ({"name": "none", "warmup_epochs": 1}, [1 / 3, 2 / 3, 1, 1, 1, 1]),
        ({"name": "none", "warmup_epochs": 1.5}, [1 / 4, 2 / 4, 3 / 4, 1, 1, 1]),
        ({"name": "none", "min_lr": 0.5}, [1, 1, 1, 1, 1, 1]),
        ({"name": "exponential", "gamma": 0.5}, [1, 1, 0.5, 0.5, 0.25, 0.25]),
        ({"name": "exponential"}, [1, 1, 0.95, 0.95, 0.9025, 0.9025]),
        ({"name": "exponential", "gamma": 0.5, "min_lr": 0.4}, [1, 1, 0.5, 0.5, 0.4, 0.4]),
        ({"name": "exponential", "gamma": 0.5, "warmup_epochs": 1}, [1 / 3, 2 / 3, 1, 1, 0.5, 0.5]),
        ({"name": "step", "step_epochs": 2, "gamma": 0.5}, [1, 1, 1, 1, 0.5, 0.5]),
        ({"name": "step", "step_epochs": 1}, [1, 1, 0.1, 0.1, 0.01, 0.01]),
        ({"name": "step", "step_epochs": 1, "gamma": 0.5, "warmup_epochs": 0.5},
         [1 / 2, 1, 1, 0.5, 0.5, 0.25]),
        ({"name": "cosine"},
         [1, (1 + math.cos(math.pi / 5)) / 2, (1 + math.cos(2 * math.pi / 5)) / 2,
          (1 + math.cos(3 * math.pi / 5)) / 2, (1 + math.cos(4 * math.pi / 5)) / 2, 0]),
        ({"name": "cosine", "warmup_epochs": 0.5, "min_lr": 0.2},
         [0.5, 1, 0.6 + 0.4 * ROOT, 0.6, 0.6 - 0.4 * ROOT, 0.2]),
        ({"name": "cosine", "warmup_epochs": 1.5}, [1 / 4, 2 / 4, 3 / 4, 1, 0.5, 0]),
        ({"name": "plateau"}, [1, 1, 1, 1, 1, 1]),
    ],
)  # fmt: skip
def test_learning_rates_of_six_steps(fields: dict[str, Any], expected: list[float]) -> None:
    assert lrs(**fields) == pytest.approx(expected)


@pytest.mark.parametrize("name", NAMES)
def test_learning_rates_scale_with_the_highest(name: str) -> None:
    assert lrs(lr=3e-4, name=name, warmup_epochs=1) == pytest.approx(
        [3e-4 * lr for lr in lrs(name=name, warmup_epochs=1)]
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_floor_above_the_learning_rate_does_not_raise_it(name: str) -> None:
    assert max(lrs(lr=0.1, name=name, min_lr=0.5)) <= 0.1


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(NAMES),
    steps_per_epoch=st.integers(1, 7),
    epochs=st.integers(1, 8),
    warmup=st.floats(0, 10),
    floor=st.floats(0, 1),
)
def test_a_learning_rate_stays_between_floor_and_highest(
    name: str, steps_per_epoch: int, epochs: int, warmup: float, floor: float
) -> None:
    found = lrs(1.0, steps_per_epoch, epochs, name=name, warmup_epochs=warmup, min_lr=floor)
    warmup_steps = round(warmup * steps_per_epoch)
    rising, falling = found[:warmup_steps], found[warmup_steps:]
    assert all(0 < lr < 1 for lr in rising) and rising == sorted(rising)
    assert all(floor - 1e-12 <= lr <= 1 for lr in falling) and falling == sorted(
        falling, reverse=True
    )


def test_one_step_is_trained_at_the_highest_rate() -> None:
    assert [lrs(steps_per_epoch=1, epochs=1, name=name) for name in NAMES] == [[1.0]] * 5


def factors(losses: list[float], **fields: Any) -> list[float]:
    plateau = Plateau(Schedule.model_validate({"name": "plateau", **fields}))
    found = []
    for loss in losses:
        plateau.observe(loss)
        found.append(plateau.factor)
    return found


def test_plateau_decays_after_its_epochs_without_a_lower_loss() -> None:
    assert factors([3, 2, 2, 2.5, 2, 1], plateau_epochs=3, gamma=0.5) == [1, 1, 1, 1, 0.5, 0.5]


def test_plateau_decays_again_and_counts_anew() -> None:
    assert factors([1] * 7, plateau_epochs=2) == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01, 0.001])


def test_a_lower_loss_starts_the_count_anew() -> None:
    assert factors([3, 3, 2, 2, 1, 1], plateau_epochs=2) == [1] * 6


@pytest.mark.parametrize("name", ["none", "exponential", "step", "cosine"])
def test_other_schedules_know_no_plateau(name: str) -> None:
    assert factors([1] * 20, name=name) == [1] * 20
