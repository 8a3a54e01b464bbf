from __future__ import annotations

import optuna
import pytest

from pipeline.config import Configuration, Optimizer, Study, Training
from pipeline.experiment import Range
from pipeline.search.pruning import build_pruner, build_sampler
from pipeline.search.space import as_point, suggest
from pipeline.search.trials import with_repeat_seeds

BASE = Configuration()


def entry(lr: float, seed: int = 0) -> Configuration:
    return Configuration(optimizer=Optimizer(lr=lr), training=Training(seed=seed))


def test_equal_entries_train_with_the_next_seeds() -> None:
    entries = [entry(1e-3), entry(1e-4), entry(1e-3), entry(1e-3)]
    seeded = with_repeat_seeds(entries, ["a", "b", "a", "a"])
    assert [one.training.seed for one in seeded] == [0, 0, 1, 2]


def test_a_repeat_passes_over_a_seed_that_an_entry_names() -> None:
    seeded = with_repeat_seeds([entry(1e-3, 1), entry(1e-3, 0), entry(1e-3, 0)], ["a"] * 3)
    assert sorted(one.training.seed for one in seeded) == [0, 1, 2]


@pytest.mark.parametrize(
    ("lr", "space", "inside"),
    [
        (1e-3, {"optimizer.lr": Range(low=1e-4, high=1e-2, log=True)}, True),
        (1e-1, {"optimizer.lr": Range(low=1e-4, high=1e-2, log=True)}, False),
        (1e-3, {"optimizer.lr": Range(low=1e-4, high=1e-2), "data.workers": Range(low=0, high=4)}, False),
        (2e-3, {"schedule.name": ["none", "cosine"]}, False),
        (1e-3, {"schedule.name": ["none", "cosine"]}, True),
        (1e-3, {"schedule.name": ["exponential", "cosine"]}, False),
    ],
)
def test_an_entry_is_a_point_only_inside_the_space(lr: float, space: dict[str, Range | list[str]], inside: bool) -> None:
    point = as_point(entry(lr, seed=3), BASE, space)
    assert (point is not None) == inside
    if point is not None:
        assert set(point) == set(space)


def test_suggestions_follow_the_space() -> None:
    space = {"optimizer.lr": Range(low=1e-4, high=1e-2, log=True), "schedule.step_epochs": Range(low=2, high=9), "model.name": ["a", "b"]}
    study = optuna.create_study(sampler=build_sampler(Study(sampler="random"), 0))
    for _ in range(20):
        values = suggest(study.ask(), space)
        assert 1e-4 <= values["optimizer.lr"] <= 1e-2
        assert values["schedule.step_epochs"] in range(2, 10)
        assert values["model.name"] in ("a", "b")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("hyperband", optuna.pruners.HyperbandPruner), ("median", optuna.pruners.MedianPruner), ("none", optuna.pruners.NopPruner)],
)
def test_every_pruner_can_be_named(name: str, kind: type) -> None:
    assert isinstance(build_pruner(Study(pruner=name), 9), kind)


@pytest.mark.parametrize(("name", "kind"), [("tpe", optuna.samplers.TPESampler), ("random", optuna.samplers.RandomSampler)])
def test_every_sampler_can_be_named(name: str, kind: type) -> None:
    assert isinstance(build_sampler(Study(sampler=name), 0), kind)
