"""Experiment files with the command line's overrides."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Configuration, Data, facts_of, nest
from pipeline.errors import UserError
from pipeline.experiment import Experiment, Range, is_integer, load_experiment
from tests.test_config import ANOTHER, NEEDS

EXPERIMENTS = sorted((Path(__file__).parents[1] / "experiments").glob("*.yaml"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "study.yaml"


def load_text(
    file: Path, text: str, overrides: dict[str, Any] | None = None, **arguments: Any
) -> Experiment:
    file.write_text(text, encoding="utf-8")
    return load_experiment(str(file), overrides or {}, **arguments)


def error_of(file: Path, text: str, overrides: dict[str, Any] | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_text(file, text, overrides)
    assert str(file) in str(caught.value)
    return str(caught.value)


def test_an_empty_file_is_the_defaults(file: Path) -> None:
    experiment = load_text(file, "# nothing yet\n")
    assert experiment.base == Configuration()
    assert (experiment.entries, experiment.space, experiment.name) == ([], {}, "digits")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.name)
@pytest.mark.parametrize("fast", [False, True])
def test_each_file_that_comes_along_is_valid(path: Path, fast: bool) -> None:
    experiment = load_experiment(str(path), {}, fast=fast)
    assert experiment.trials >= 1
    assert all(isinstance(entry, Configuration) for entry in [experiment.base, *experiment.entries])


def test_defaults_then_base_then_entry_then_override(file: Path) -> None:
    text = """
base: {optimizer: {lr: 0.1, momentum: 0.1, weight_decay: 0.1}}
configs:
  - {optimizer: {lr: 0.2, momentum: 0.2}}
"""
    experiment = load_text(file, text, {"optimizer": {"lr": "0.3"}})
    (entry,) = experiment.entries
    assert (entry.optimizer.lr, entry.optimizer.momentum, entry.optimizer.weight_decay) == (
        0.3,
        0.2,
        0.1,
    )
    assert entry.optimizer.betas == (0.9, 0.999)
    assert (experiment.base.optimizer.lr, experiment.base.optimizer.momentum) == (0.3, 0.1)


def test_an_override_wins_over_each_entry_and_is_searched_no_more(file: Path) -> None:
    text = """
configs: [{optimizer: {lr: 0.1}}, {optimizer: {lr: 0.2}}]
space:
  optimizer.lr: {low: 0.1, high: 0.5}
  schedule.name: [none, cosine]
"""
    experiment = load_text(file, text, {"optimizer": {"lr": 0.3}})
    assert [entry.optimizer.lr for entry in experiment.entries] == [0.3, 0.3]
    assert list(experiment.space) == ["schedule.name"]
    assert experiment.sampled({"schedule.name": "cosine"}).optimizer.lr == 0.3


@pytest.mark.parametrize("name", [name for name in ANOTHER if not name.startswith("study.")])
def test_each_field_can_be_overridden(file: Path, name: str) -> None:
    section, _, field = name.partition(".")
    experiment = load_text(
        file,
        f"base: {nest(NEEDS.get(name, {}))}\nconfigs: [{{}}]",
        {section: {field: ANOTHER[name]}},
    )
    assert experiment.base.flat()[name] == experiment.entries[0].flat()[name] == ANOTHER[name]


def test_sections_may_stand_at_the_top_level_and_win_over_base(file: Path) -> None:
    experiment = load_text(
        file, "base: {model: {name: resnet34, dropout: 0.2}}\nmodel: {name: resnet50}\n"
    )
    assert (experiment.base.model.name, experiment.base.model.dropout) == ("resnet50", 0.2)


def test_study_of_base_then_top_level_then_override(file: Path) -> None:
    text = (
        "base: {study: {trials: 1, repeats: 2, sampler: random}}\nstudy: {trials: 3, repeats: 4}\n"
    )
    study = load_text(file, text, {"study": {"trials": "5"}}).study
    assert (study.trials, study.repeats, study.sampler) == (5, 4, "random")


@pytest.mark.parametrize(
    ("text", "argument", "name"),
    [
        ("", "", "digits"),
        ("data: {source: 'folder:photos'}", "", "photos"),
        ("experiment: mine", "", "mine"),
        ("experiment: mine", "other", "other"),
    ],
)
def test_name_is_the_argument_else_the_files_else_the_datas(
    file: Path, text: str, argument: str, name: str
) -> None:
    assert load_text(file, text, name=argument).name == name


@pytest.mark.parametrize("name", ["2024", "2024-11-21", "1.5"])
def test_a_name_that_yaml_reads_as_a_number_stays_text(file: Path, name: str) -> None:
    assert load_text(file, f"experiment: {name}").name == name


def test_a_yaml_error_names_file_and_line(file: Path) -> None:
    assert f"{file}, line 3: not valid YAML" in error_of(
        file, "base:\n  model: {name: resnet18}\n bad: [1\n"
    )


def test_a_tab_in_yaml_is_named_by_its_line(file: Path) -> None:
    assert f"{file}, line 2: not valid YAML" in error_of(file, "base:\n\tmodel: {}\n")


def test_a_control_character_is_no_yaml(file: Path) -> None:
    assert "not valid YAML" in error_of(file, "base: \x00\n")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 5000, "nested too deeply"),
        ("{a: " * 5000, "nested too deeply"),
        ("base: " + "[" * 500 + "]" * 500, "nested too deeply"),
        ("base: {training: {epochs: " + "9" * 5000 + "}}", "Exceeds the limit"),
        ("base: 2020-13-45", "month must be in 1..12"),
    ],
)
def test_yaml_that_python_cannot_hold_is_one_line(file: Path, text: str, why: str) -> None:
    error = error_of(file, text)
    assert "not valid YAML" in error and why in error and len(error.splitlines()) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="pipes, devices and files that take no room")
@pytest.mark.parametrize("kind", ["pipe", "device", "sparse"])
def test_a_file_that_does_not_end_is_refused(file: Path, kind: str) -> None:
    match kind:
        case "pipe":
            os.mkfifo(file)
        case "device":
            file.symlink_to("/dev/zero")
        case _:
            with file.open("wb") as opened:
                opened.truncate(40_000_000_000)
    with pytest.raises(
        UserError,
        match=r"cannot be read: (not a regular file|40000000000 bytes, more than 10000000)$",
    ):
        load_experiment(str(file), {})


def test_a_missing_file_is_named_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text("")
    with pytest.raises(UserError, match=r"digit\.yaml' does not exist; nearest: .*digits\.yaml"):
        load_experiment(str(tmp_path / "digit.yaml"), {})


def test_a_folder_is_no_experiment_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_experiment(str(tmp_path), {})


def test_a_file_that_is_no_text_is_refused(file: Path) -> None:
    file.write_bytes(b"\xff\xfe\x80\x81")
    with pytest.raises(UserError, match="cannot be read"):
        load_experiment(str(file), {})


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text", "3"])
def test_a_file_without_fields_is_refused(file: Path, text: str) -> None:
    assert "must hold fields such as base and configs" in error_of(file, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bas: {}", "unknown field 'bas'; nearest: base"),
        ("config: []", "unknown field 'config'; nearest: configs"),
        ("optimiser: {lr: 1}", "unknown field 'optimiser'; nearest: optimizer"),
        ("1: {}", "unknown field"),
        (
            "base: {optimizer: {lrr: 1}}",
            "base: unknown field 'optimizer.lrr'; nearest: optimizer.lr",
        ),
        ("base: {1: {}}", "base: "),
        (
            "configs: [{}, {optimizer: {lrr: 1}}]",
            "configs[1]: unknown field 'optimizer.lrr'; nearest: optimizer.lr",
        ),
        ("configs: [{study: {trials: 3}}]", "configs[0]: unknown field 'study'"),
        ("study: {trails: 3}", "study: unknown field 'trails'; nearest: trials"),
        ("study: {pruner: hyperbnd}", "nearest: hyperband"),
        ("study: {trials: -1}", "trials: -1 given"),
    ],
)
def test_an_unknown_name_is_named_by_its_place(file: Path, text: str, expected: str) -> None:
    assert expected in error_of(file, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base: [1]", "base must be a mapping of fields, got [1]"),
        ("base: resnet18", "base must be a mapping of fields, got 'resnet18'"),
        ("configs: {model: {}}", "configs must be a list, got {'model': {}}"),
        ("configs: [resnet18]", "configs[0] must be a mapping of fields, got 'resnet18'"),
        ("configs: [null]", "configs[0] must be a mapping of fields, got 'nothing'"),
        ("space: [optimizer.lr]", "space must be a mapping of fields, got ['optimizer.lr']"),
        ("study: 20", "study"),
        ("base: {study: 20}", "study"),
        ("model: resnet18", "model must be a mapping of fields, got 'resnet18'"),
        ("base: {model: resnet18}", "model must be a mapping of fields, got 'resnet18'"),
        (
            "configs: [{model: resnet18}]",
            "configs[0].model must be a mapping of fields, got 'resnet18'",
        ),
        ("training: {epochs: ten}", "training.epochs: 'ten' given"),
        ("experiment: [a]", "experiment"),
        ("experiment: {name: a}", "experiment"),
    ],
)
def test_a_wrong_type_is_named_by_its_place(file: Path, text: str, expected: str) -> None:
    assert expected in error_of(file, text)


@pytest.mark.parametrize(
    "text", ["base: {model: resnet50}", "model: resnet50", "configs: [{model: resnet50}]"]
)
def test_an_override_does_not_hide_a_section_of_the_wrong_type(file: Path, text: str) -> None:
    assert "model must be a mapping of fields, got 'resnet50'" in error_of(
        file, text, {"model": {"dropout": 0.5}}
    )


def test_tracking_is_one_for_all_of_a_study(file: Path) -> None:
    message = error_of(file, "configs: [{}, {tracking: {log_images: false}}]")
    assert "configs[1]: tracking.log_images differs from base; it is one for all" in message


@pytest.mark.parametrize(
    "field", [name for name, field in Data.model_fields.items() if facts_of(field).shared]
)
def test_an_entry_that_sees_other_images_is_refused(file: Path, field: str) -> None:
    base = nest(NEEDS.get(f"data.{field}", {}))
    message = error_of(
        file, f"base: {base}\nconfigs: [{{}}, {{data: {{{field}: {ANOTHER[f'data.{field}']}}}}}]"
    )
    assert f"configs[1]: data.{field} differs from base" in message


def test_an_entry_may_repeat_the_shared_value_of_base(file: Path) -> None:
    experiment = load_text(
        file,
        "base: {data: {source: 'folder:photos'}}\nconfigs: [{data: {source: 'folder:photos'}}]",
    )
    assert experiment.entries == [experiment.base]


def test_an_override_of_the_source_holds_for_all(file: Path) -> None:
    experiment = load_text(
        file, "configs: [{}, {data: {source: 'folder:other'}}]", {"data": {"source": "folder:mine"}}
    )
    assert {entry.data.source for entry in experiment.entries} == {"folder:mine"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{optimizer.lrr: [1]}", "unknown field 'optimizer.lrr'; nearest: optimizer.lr"),
        ("{study.trials: [1, 2]}", "unknown field 'study.trials'"),
        ("{data.source: [digits]}", "unknown field 'data.source'"),
        ("{data.seed: [1, 2]}", "unknown field 'data.seed'"),
        ("{optimizer.lr: []}", "must be a list of choices or {low: …, high: …}, got []"),
        ("{optimizer.lr: 0.1}", "must be a list of choices or {low: …, high: …}, got 0.1"),
        ("{optimizer.name: [adam, adan]}", "nearest: adam"),
        ("{optimizer.lr: {low: 0.1}}", "high: "),
        ("{optimizer.lr: {low: 0.1, high: 0.2, step: 1}}", "unknown field 'step'"),
        ("{optimizer.lr: {low: 0.2, high: 0.1}}", "low must be below high, got 0.2 and 0.1"),
        ("{optimizer.lr: {low: 0.1, high: 0.1}}", "low must be below high"),
        (
            "{optimizer.weight_decay: {low: 0, high: 0.1, log: true}}",
            "low must be above 0 with log, got 0",
        ),
        ("{optimizer.lr: {low: -1, high: 0.1}}", "optimizer.lr: -1.0 given"),
        ("{optimizer.lr: {low: 0.1, high: .nan}}", "high"),
        ("{training.epochs: {low: 0, high: 5}}", "training.epochs: 0 given"),
        ("{model.name: {low: 1, high: 2}}", "model.name: 1.0 given"),
    ],
)
def test_a_wrong_space_is_refused(file: Path, text: str, expected: str) -> None:
    assert expected in error_of(file, f"space: {text}")


def test_a_space_is_intervals_and_choices(file: Path) -> None:
    text = (
        "space: {optimizer.lr: {low: 1e-5, high: 1.0e-2, log: true}, "
        "model.name: [resnet18, resnet34], training.epochs: {low: 2, high: 5}}"
    )
    assert load_text(file, text).space == {
        "optimizer.lr": Range(low=1e-5, high=1e-2, log=True),
        "model.name": ["resnet18", "resnet34"],
        "training.epochs": Range(low=2, high=5),
    }


def test_choices_have_the_type_of_their_field(file: Path) -> None:
    assert load_text(file, "space: {data.workers: {low: 0, high: 4}}").space == {
        "data.workers": Range(low=0, high=4)
    }
    assert load_text(file, "space: {optimizer.lr: [1e-3, 1e-2]}").space == {
        "optimizer.lr": [0.001, 0.01]
    }


@pytest.mark.parametrize(
    ("name", "whole"),
    [("training.epochs", True), ("data.image_size", True), ("optimizer.lr", False), ("x.y", False)],
)
def test_which_fields_are_whole_numbers(name: str, whole: bool) -> None:
    assert is_integer(name) is whole


def test_sampled_puts_values_into_base(file: Path) -> None:
    experiment = load_text(
        file, "base: {optimizer: {lr: 0.1, momentum: 0.2}}\nspace: {optimizer.lr: [0.3]}"
    )
    sampled = experiment.sampled({"optimizer.lr": 0.3, "schedule.name": "step"})
    assert (
        sampled.optimizer.lr,
        sampled.optimizer.momentum,
        sampled.schedule.name,
        sampled.schedule.gamma,
    ) == (0.3, 0.2, "step", 0.1)


def test_gamma_follows_the_schedule_that_an_entry_names(file: Path) -> None:
    experiment = load_text(
        file,
        (
            "base: {schedule: {name: exponential}}\n"
            "configs: [{schedule: {name: step}}, {schedule: {gamma: 0.5}}]"
        ),
    )
    assert [entry.schedule.gamma for entry in [experiment.base, *experiment.entries]] == [
        0.95,
        0.1,
        0.5,
    ]


@pytest.mark.parametrize(
    ("entries", "space", "trials", "expected"),
    [
        (3, False, 0, 3),
        (3, False, 2, 2),
        (3, False, 10, 3),
        (0, True, 0, 20),
        (3, True, 0, 20),
        (25, True, 0, 25),
        (3, True, 5, 5),
    ],
)
def test_number_of_trials(
    file: Path, entries: int, space: bool, trials: int, expected: int
) -> None:
    text = f"configs: [{', '.join(['{}'] * entries)}]\nstudy: {{trials: {trials}}}\n" + (
        "space: {optimizer.lr: [0.1, 0.2]}" if space else ""
    )
    assert load_text(file, text).trials == expected


def test_trials_count_the_repeats(file: Path) -> None:
    assert load_text(file, "configs: [{}, {}]\nstudy: {repeats: 3}").trials == 6


def test_repeats_write_the_list_out_again(file: Path) -> None:
    experiment = load_text(
        file, "configs: [{optimizer: {lr: 0.1}}, {optimizer: {lr: 0.2}}]\nstudy: {repeats: 2}"
    )
    assert [entry.optimizer.lr for entry in experiment.entries] == [0.1, 0.2, 0.1, 0.2]


def test_fast_scales_base_and_entries_down(file: Path) -> None:
    text = (
        "base: {data: {image_size: 224, store_size: 300}, training: {epochs: 50}}\n"
        "configs: [{training: {epochs: 90}}, {}]"
    )
    experiment = load_text(file, text, fast=True)
    for configuration in [experiment.base, *experiment.entries, experiment.sampled({})]:
        assert (
            configuration.training.epochs,
            configuration.data.image_size,
            configuration.data.limit,
        ) == (2, 64, 300)
        assert configuration.data.stored_size == 64


def test_a_study_that_is_scaled_down_is_another_one(file: Path) -> None:
    text = "study: {name: flowers-1}"
    assert load_text(file, text).study.name == "flowers-1"
    assert load_text(file, text, fast=True).study.name == "flowers-1-fast"
    named = "study: {name: flowers-1-fast}"
    assert load_text(file, named, fast=True).study.name == "flowers-1-fast"


def test_fast_never_scales_base_up(file: Path) -> None:
    base = load_text(
        file, "base: {data: {image_size: 32, limit: 50}, training: {epochs: 1}}", fast=True
    ).base
    assert (base.data.image_size, base.data.limit, base.training.epochs) == (32, 50, 1)


def test_fast_never_scales_an_entry_up(file: Path) -> None:
    text = (
        "base: {data: {image_size: 224}, training: {epochs: 10}}\n"
        "configs: [{data: {image_size: 32}, training: {epochs: 1}}]"
    )
    (entry,) = load_text(file, text, fast=True).entries
    assert (entry.data.image_size, entry.training.epochs) == (32, 1)


def test_fast_searches_neither_epochs_nor_image_size(file: Path) -> None:
    text = (
        "space: {training.epochs: [5, 10], data.image_size: [128, 224], optimizer.lr: [0.1, 0.2]}"
    )
    assert list(load_text(file, text, fast=True).space) == ["optimizer.lr"]


def test_fast_scales_an_override_down_too(file: Path) -> None:
    assert load_text(file, "", {"training": {"epochs": 40}}, fast=True).base.training.epochs == 2
