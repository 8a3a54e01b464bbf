from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.samplers import TPESampler

from pipeline.config import Configuration, Optimizer, Study, Training, nest
from pipeline.experiment import Experiment, load_experiment
from pipeline.search.pruning import build_pruner, build_sampler
from pipeline.search.space import as_point, build_configuration, decode_point, suggest
from pipeline.search.trials import (
    KEY,
    MAY_PASS,
    PLACE,
    enqueue_missing,
    enqueue_repeats,
    finished_trials,
    is_point,
    put_back,
    waiting_trials,
    with_repeat_seeds,
)


def entry(lr: float, seed: int = 0) -> Configuration:
    return Configuration(optimizer=Optimizer(lr=lr), training=Training(seed=seed))


def experiment(
    tmp_path: Path,
    space: dict[str, Any],
    base: dict[str, Any] | None = None,
    configs: list[Any] | None = None,
) -> Experiment:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump({"base": base or {}, "configs": configs or [], "space": space}))
    return load_experiment(str(file), {})


def test_equal_entries_train_with_the_next_seeds() -> None:
    entries = [entry(1e-3), entry(1e-4), entry(1e-3), entry(1e-3)]
    seeded = with_repeat_seeds(entries, ["a", "b", "a", "a"])
    assert [one.training.seed for one in seeded] == [0, 0, 1, 2]


def test_a_repeat_passes_over_a_seed_that_an_entry_names() -> None:
    seeded = with_repeat_seeds([entry(1e-3, 1), entry(1e-3, 0), entry(1e-3, 0)], ["a"] * 3)
    assert sorted(one.training.seed for one in seeded) == [0, 1, 2]


LR = {"low": 1e-4, "high": 1e-2, "log": True}
AUGMENTS = [[], ["RandomHorizontalFlip"], [{"RandomRotation": {"degrees": 15, "expand": False}}]]


@pytest.mark.parametrize(
    ("given", "space", "point"),
    [
        ({"optimizer.lr": 1e-3}, {"optimizer.lr": LR}, {"optimizer.lr": 1e-3}),
        ({"training.seed": 3}, {"optimizer.lr": LR}, {"optimizer.lr": 1e-3}),
        ({"optimizer.lr": 1e-1}, {"optimizer.lr": LR}, None),
        ({}, {"optimizer.lr": LR, "data.workers": {"low": 0, "high": 4}}, None),
        ({"data.workers": 2}, {"data.workers": {"low": 0, "high": 4}}, {"data.workers": 2}),
        ({"optimizer.lr": 2e-3}, {"schedule.name": ["none", "cosine"]}, None),
        ({}, {"schedule.name": ["none", "cosine"]}, {"schedule.name": "none"}),
        ({}, {"schedule.name": ["exponential", "cosine"]}, None),
        # What follows from a searched value does not lead outside.
        (
            {"schedule.name": "exponential"},
            {"schedule.name": ["none", "exponential"]},
            {"schedule.name": "exponential"},
        ),
        ({"schedule.name": "step"}, {"schedule.name": ["none", "step"]}, {"schedule.name": "step"}),
        (
            {"schedule.name": "exponential", "schedule.gamma": 0.5},
            {"schedule.name": ["none", "exponential"]},
            None,
        ),
        ({"data.augment": []}, {"data.augment": AUGMENTS}, {"data.augment": "[]"}),
        ({"data.augment": ["RandomVerticalFlip"]}, {"data.augment": AUGMENTS}, None),
        (
            {"data.augment": [{"RandomRotation": {"expand": False, "degrees": 15}}]},
            {"data.augment": AUGMENTS},
            {"data.augment": '[{"RandomRotation": {"degrees": 15, "expand": false}}]'},
        ),
        (
            {"optimizer.betas": [0.8, 0.9]},
            {"optimizer.betas": [[0.9, 0.999], [0.8, 0.9]]},
            {"optimizer.betas": "[0.8, 0.9]"},
        ),
        ({"training.clip_norm": 1.0}, {"training.clip_norm": [0, 1]}, {"training.clip_norm": 1.0}),
        (
            {"training.deterministic": True},
            {"training.deterministic": [False, True]},
            {"training.deterministic": True},
        ),
        # Right alone, but more warm-up than epochs.
        (
            {"training.epochs": 2, "schedule.warmup_epochs": 1},
            {"training.epochs": [2, 8], "schedule.warmup_epochs": [1, 4]},
            ...,
        ),
    ],
)
def test_an_entry_is_a_point_where_sampling_its_values_gives_it(
    tmp_path: Path, given: dict[str, Any], space: dict[str, Any], point: dict[str, Any] | None
) -> None:
    of = experiment(tmp_path, space, {"optimizer": {"lr": 1e-3}}, [nest(given)])
    found = as_point(of.entries[0], of)
    expected = {name: given[name] for name in space} if point is ... else point
    assert found == expected
    if found is not None:
        again = build_configuration(found, of).flat()
        assert {**again, "training.seed": of.entries[0].training.seed} == of.entries[0].flat()


def test_an_entry_is_a_point_of_a_scaled_down_study_too(tmp_path: Path) -> None:
    of = experiment(tmp_path, {"optimizer.lr": LR}, {"training": {"epochs": 50}}, [{}])
    fast = load_experiment(str(of.path), {}, fast=True)
    assert fast.entries[0].training.epochs == 2
    assert as_point(fast.entries[0], fast) == {"optimizer.lr": 1e-3}


def test_suggestions_follow_the_space(tmp_path: Path) -> None:
    space = experiment(
        tmp_path,
        {
            "optimizer.lr": LR,
            "schedule.step_epochs": {"low": 2, "high": 9},
            "model.name": ["a", "b"],
            "data.augment": AUGMENTS,
        },
    ).space
    study = optuna.create_study(sampler=build_sampler(Study(sampler="random"), 0))
    drawn = []
    for _ in range(30):
        point = suggest(study.ask(), space)
        assert all(isinstance(value, str | int | float) for value in point.values())
        values = decode_point(point, space)
        assert 1e-4 <= values["optimizer.lr"] <= 1e-2
        assert values["schedule.step_epochs"] in range(2, 10)
        assert values["model.name"] in ("a", "b")
        drawn.append(values["data.augment"])
    assert all(augment in drawn for augment in AUGMENTS) and all(
        augment in AUGMENTS for augment in drawn
    )


@pytest.mark.parametrize(
    ("field", "choices"),
    [("data.augment", AUGMENTS), ("optimizer.betas", [[0.9, 0.999], [0.8, 0.9]])],
)
@pytest.mark.filterwarnings("error::UserWarning")
def test_a_choice_of_lists_becomes_a_configuration_again(
    tmp_path: Path, field: str, choices: list[Any]
) -> None:
    of = experiment(tmp_path, {field: choices})
    study = optuna.create_study(sampler=build_sampler(Study(sampler="random"), 0))
    seen = {
        str(build_configuration(suggest(study.ask(), of.space), of).flat()[field])
        for _ in range(30)
    }
    assert seen == {str(choice) for choice in choices}


def test_one_entry_outside_the_space_leaves_the_sampling_joint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = {
        "optimizer.lr": LR,
        "schedule.name": ["none", "exponential", "cosine"],
        "optimizer.weight_decay": {"low": 0.0, "high": 0.1},
    }
    inside = [
        {"optimizer": {"lr": lr}, "schedule": {"name": "exponential"}}
        for lr in (1e-3, 2e-3, 3e-3, 4e-3, 5e-3)
    ]
    of = experiment(tmp_path, space, configs=[{"model": {"name": "resnet34"}}, *inside])
    study = optuna.create_study(direction="maximize", sampler=build_sampler(Study(), 0))
    enqueue_missing(study, of, {str(number): one for number, one in enumerate(of.entries)}, set())
    enqueued = [trial.system_attrs["fixed_params"] for trial in study.get_trials()]
    assert [bool(point) for point in enqueued] == [False, *[True] * 5, *[False] * 14]
    independent: list[str] = []
    sample = TPESampler.sample_independent

    def sample_independent(
        sampler: TPESampler, study: Any, trial: Any, name: str, distribution: Any
    ) -> Any:
        independent.append(name)
        return sample(sampler, study, trial, name, distribution)

    monkeypatch.setattr(TPESampler, "sample_independent", sample_independent)
    for number in range(30):
        trial = study.ask()
        if number != 0:
            suggest(trial, of.space)
        study.tell(trial, number % 7)
    assert len(study.trials) == 30
    # 24 draws after the list, all of all three fields at once.
    assert independent == []


@pytest.mark.parametrize("seed", [0, 3])
def test_a_study_half_planned_by_an_earlier_release_tells_the_sampler_no_wrong_values(
    tmp_path: Path, seed: int
) -> None:
    # It took an entry with a schedule, whose gamma is filled in, for one outside the space, and
    # enqueued it without values.
    of = experiment(
        tmp_path,
        {"schedule.name": ["none", "exponential"]},
        configs=[{"schedule": {"name": "exponential"}}],
    )
    study = optuna.create_study(direction="maximize", sampler=build_sampler(Study(), seed))
    study.enqueue_trial(
        {}, {"place": 0, "key": "0", "entry": of.entries[0].model_dump(mode="json")}
    )
    assert enqueue_missing(study, of, {"0": of.entries[0]}, set()) == (0, 0)
    trial = study.ask()
    assert not is_point(trial)
    study.tell(trial, 1.0)
    assert len(finished_trials(study, {"0"})) == 1


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("hyperband", optuna.pruners.HyperbandPruner),
        ("median", optuna.pruners.MedianPruner),
        ("none", optuna.pruners.NopPruner),
    ],
)
def test_every_pruner_can_be_named(name: str, kind: type) -> None:
    assert isinstance(build_pruner(Study(pruner=name), 9), kind)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("tpe", optuna.samplers.TPESampler), ("random", optuna.samplers.RandomSampler)],
)
def test_every_sampler_can_be_named(name: str, kind: type) -> None:
    assert isinstance(build_sampler(Study(sampler=name), 0), kind)


def test_repeats_that_are_asked_for_leave_everything_else_to_do(tmp_path: Path) -> None:
    of = experiment(tmp_path, {"optimizer.lr": LR}, configs=[{"optimizer": {"lr": 1e-3}}])
    # In memory, Optuna does not find a trial that waits again.
    study = optuna.create_study(
        storage=f"sqlite:///{tmp_path / 'optuna.db'}",
        direction="maximize",
        sampler=build_sampler(Study(), 0),
    )
    entries = {"h:0": of.entries[0]}
    enqueue_missing(study, of, entries, set())
    study.tell(study.ask(), 0.5)
    killed = study.ask()
    suggest(killed, of.space)
    values = killed.params
    others = {trial.number for trial in waiting_trials(study)}
    asked = {"h:1": of.entries[0].change("training", seed=1)}
    enqueue_repeats(study, of, asked)
    enqueue_repeats(study, of, asked)
    [repeat] = [trial for trial in waiting_trials(study) if trial.user_attrs.get(KEY) == "h:1"]
    assert repeat.user_attrs[PLACE] == of.trials
    # The study itself goes on as if nothing had been.
    enqueue_missing(study, of, entries, set())
    again = {trial.number: trial for trial in waiting_trials(study)}
    assert set(again) == {killed.number, *others} and again[killed.number].params == values


def study_with(of: Experiment, tmp_path: Path) -> optuna.Study:
    study = optuna.create_study(storage=f"sqlite:///{tmp_path / 'optuna.db'}")
    enqueue_missing(study, of, {}, set())
    return study


def places(study: optuna.Study) -> list[int]:
    return sorted(trial.user_attrs[PLACE] for trial in waiting_trials(study))


def test_a_study_that_is_to_have_fewer_trials_gives_up_places_that_have_not_begun(
    tmp_path: Path,
) -> None:
    of = experiment(tmp_path, {"optimizer.lr": LR})
    study = study_with(replace(of, study=Study(trials=6)), tmp_path)
    begun = study.ask()
    suggest(begun, of.space)
    study.tell(begun, 0.5)
    enqueue_missing(study, replace(of, study=Study(trials=3)), {}, set())
    assert places(study) == [1, 2]
    # A place that was given up is free again.
    enqueue_missing(study, replace(of, study=Study(trials=5)), {}, set())
    assert places(study) == [1, 2, 3, 4]


def test_what_has_begun_is_not_given_up(tmp_path: Path) -> None:
    of = experiment(tmp_path, {"optimizer.lr": LR})
    study = study_with(replace(of, study=Study(trials=4)), tmp_path)
    for trial in (study.ask(), study.ask()):
        suggest(trial, of.space)
        put_back(study, trial._trial_id)
    enqueue_missing(study, replace(of, study=Study(trials=1)), {}, set())
    assert places(study) == [0, 1]


def test_a_trial_that_a_living_worker_holds_is_left_to_it(tmp_path: Path) -> None:
    of = replace(experiment(tmp_path, {"optimizer.lr": LR}), study=Study(trials=3))
    study = study_with(of, tmp_path)
    held = study.ask()
    enqueue_missing(study, of, {}, set(), lambda trial: trial.number == held.number)
    assert places(study) == [1, 2]
    enqueue_missing(study, of, {}, set())
    assert places(study) == [0, 1, 2]


@pytest.mark.parametrize("wants_failed", [False, True])
def test_what_its_configuration_has_failed_is_trained_again_where_that_is_asked_for(
    tmp_path: Path, wants_failed: bool
) -> None:
    of = replace(
        experiment(tmp_path, {"optimizer.lr": LR}),
        study=Study(trials=2, retry_failed=wants_failed),
    )
    study = study_with(of, tmp_path)
    for may_pass in (False, True):
        trial = study.ask()
        suggest(trial, of.space)
        trial.set_user_attr(MAY_PASS, may_pass)
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    assert enqueue_missing(study, of, {}, set()) == (1 + wants_failed, 0)
    assert places(study) == ([0, 1] if wants_failed else [1])


def test_a_field_that_has_no_effect_is_not_searched(tmp_path: Path) -> None:
    space = {
        "schedule.gamma": {"low": 0.5, "high": 0.9},
        "schedule.name": ["none", "exponential"],
        "optimizer.momentum": {"low": 0.1, "high": 0.9},
    }
    listed = [{"schedule": {"name": "none"}}, {"schedule": {"name": "exponential", "gamma": 0.6}}]
    of = experiment(tmp_path, space, base={"optimizer": {"name": "adam"}}, configs=listed)
    study = optuna.create_study(sampler=build_sampler(Study(sampler="random"), 0))
    seen = set()
    for _ in range(20):
        trial = study.ask()
        point = suggest(trial, of.space, of.base.flat())
        assert ("schedule.gamma" in point) == (point["schedule.name"] == "exponential")
        assert point == trial.params and "optimizer.momentum" not in point
        build_configuration(point, of)
        seen.add(point["schedule.name"])
    assert seen == {"none", "exponential"}
    # Entries are points of the same kind.
    assert as_point(of.entries[0], of) == {"schedule.name": "none"}
    assert as_point(of.entries[1], of) == {"schedule.name": "exponential", "schedule.gamma": 0.6}
