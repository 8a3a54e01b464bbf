"""The typed configuration: defaults, limits, errors, merging."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.config import (
    DEFAULT_GAMMA,
    SECTIONS,
    Configuration,
    Data,
    Schedule,
    Study,
    field_info,
    field_names,
    flatten,
    merge,
    nest,
    parse,
)
from pipeline.errors import UserError

ANOTHER: dict[str, Any] = {
    "data.source": "folder:photos",
    "data.image_size": 32,
    "data.batch_size": 8,
    "data.augment": ["RandomHorizontalFlip", {"ColorJitter": {"brightness": 0.2}}],
    "data.store_size": 300,
    "data.interpolation": "bicubic",
    "data.val_fraction": 0.2,
    "data.test_fraction": 0.25,
    "data.seed": 3,
    "data.limit": 100,
    "data.workers": 2,
    "data.bad": "drop",
    "data.duplicates": "warn",
    "data.near_distance": 8,
    "data.folds": 4,
    "data.fold": 1,
    "data.store": "none",
    "data.max_pixels": 1000,
    "data.background": "black",
    "data.fit": "pad",
    "data.white": 4095,
    "data.root": "images",
    "data.labels": "labels.csv",
    "data.image_column": "file",
    "data.label_column": "level",
    "data.split_column": "part",
    "data.group_column": "patient",
    "model.name": "resnet34",
    "model.weights": "DEFAULT",
    "model.freeze": "backbone",
    "model.dropout": 0.5,
    "optimizer.name": "sgd",
    "optimizer.lr": 3e-5,
    "optimizer.weight_decay": 0.01,
    "optimizer.momentum": 0.5,
    "optimizer.betas": [0.8, 0.99],
    "schedule.name": "cosine",
    "schedule.gamma": 0.5,
    "schedule.min_lr": 1e-6,
    "schedule.warmup_epochs": 1.5,
    "schedule.step_epochs": 4,
    "schedule.plateau_epochs": 2,
    "training.epochs": 3,
    "training.seed": 7,
    "training.patience": 2,
    "training.device": "cpu",
    "training.class_weights": "balanced",
    "training.sampler": "balanced",
    "training.best_metric": "val/f1_macro",
    "training.label_smoothing": 0.1,
    "training.clip_norm": 1.0,
    "training.feature_views": 4,
    "training.compile": True,
    "training.processes": 2,
    "training.precision": "bf16",
    "training.memory_format": "channels_last",
    "training.deterministic": True,
    "training.checkpoint_seconds": 10.0,
    "tracking.log_images": False,
    "tracking.keep_weights": 3,
    "data.ordered": True,
    "study.name": "mine",
    "study.trials": 7,
    "study.repeats": 2,
    "study.sampler": "random",
    "study.pruner": "median",
    "study.storage": "sqlite:///other.db",
    "study.target": 0.75,
    "study.evaluate": "best",
    "study.only": "0123456789ab",
    "study.patience": 5,
    "study.retry_failed": True,
    "study.workers": 3,
    "study.heartbeat": 2.0,
    "study.stop_at_target": True,
    "study.hours": 2.5,
    "study.finalists": 3,
    "study.launcher": "ray",
    "study.cpus": 2,
    "study.gpus": 0.5,
}
"""For each field a valid value that is not its default; a new field needs one too."""

NEEDS = {
    "data.fold": {"data.folds": 4},
    "study.stop_at_target": {"study.target": 0.5},
    "study.cpus": {"study.launcher": "ray"},
    "study.gpus": {"study.launcher": "ray"},
}
"""What else must be set for `ANOTHER` to be valid."""

TRAINING_FIELDS = [name for name in field_names() if not name.startswith("study.")]


def error_of(raw: Any, model: type = Configuration) -> str:
    with pytest.raises(UserError) as caught:
        parse(model, raw, "file.yaml")
    return str(caught.value)


def test_defaults_are_valid_when_given_again() -> None:
    assert parse(Configuration, Configuration().model_dump(), "defaults") == Configuration()
    assert parse(Study, Study().model_dump(), "defaults") == Study()


@pytest.mark.parametrize("name", TRAINING_FIELDS)
def test_each_field_survives_a_yaml_round_trip(name: str) -> None:
    configuration = parse(
        Configuration, nest({**NEEDS.get(name, {}), name: ANOTHER[name]}), "given"
    )
    assert configuration.flat()[name] == ANOTHER[name] != Configuration().flat()[name]
    assert (
        Configuration.model_validate(
            yaml.safe_load(yaml.safe_dump(configuration.model_dump(mode="json")))
        )
        == configuration
    )


@pytest.mark.parametrize("name", [name for name in field_names() if name.startswith("study.")])
def test_each_study_field_survives_a_yaml_round_trip(name: str) -> None:
    field = name.removeprefix("study.")
    needed = nest(NEEDS.get(name, {})).get("study", {})
    study = parse(Study, {**needed, field: ANOTHER[name]}, "given")
    assert getattr(study, field) == ANOTHER[name] != getattr(Study(), field)
    assert (
        Study.model_validate(yaml.safe_load(yaml.safe_dump(study.model_dump(mode="json")))) == study
    )


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    lr=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    decay=st.floats(min_value=0, allow_infinity=False),
    betas=st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)),
    schedule=st.sampled_from(["none", *DEFAULT_GAMMA, "cosine"]),
    source=st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1).map(
        "folder:".__add__
    ),
)
def test_any_configuration_survives_a_yaml_round_trip(
    lr: float, decay: float, betas: tuple[float, float], schedule: str, source: str
) -> None:
    raw = {
        "data": {"source": source},
        "optimizer": {"lr": lr, "weight_decay": decay, "betas": betas},
        "schedule": {"name": schedule},
    }
    configuration = Configuration.model_validate(raw)
    text = yaml.safe_dump(configuration.model_dump(mode="json"), allow_unicode=True)
    assert Configuration.model_validate(yaml.safe_load(text)) == configuration


@pytest.mark.parametrize("name", field_names())
def test_each_field_has_a_description_that_is_a_sentence(name: str) -> None:
    field = field_info(name)
    assert field is not None and field.description is not None
    assert len(field.description) > 10 and field.description.endswith(".")


def test_no_field_info_for_an_unknown_field() -> None:
    assert field_info("optimizer.speed") is None
    assert field_info("engine.speed") is None


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Configuration().optimizer.lr = 1.0  # type: ignore[misc]


def test_strings_of_the_command_line_become_numbers() -> None:
    raw = {"optimizer": {"lr": "3e-4"}, "training": {"epochs": "5"}, "data": {"image_size": "64"}}
    configuration = parse(Configuration, raw, "command line")
    assert (
        configuration.optimizer.lr,
        configuration.training.epochs,
        configuration.data.image_size,
    ) == (3e-4, 5, 64)


def test_a_number_that_yaml_reads_as_text_becomes_a_number() -> None:
    assert (
        parse(Configuration, yaml.safe_load("optimizer: {lr: 1e-3}"), "file").optimizer.lr == 1e-3
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optimizer.lr", -0.001),
        ("optimizer.lr", 0),
        ("optimizer.lr", float("nan")),
        ("optimizer.lr", float("inf")),
        ("optimizer.lr", "fast"),
        ("optimizer.lr", None),
        ("optimizer.weight_decay", -1),
        ("optimizer.weight_decay", float("nan")),
        ("optimizer.momentum", 1),
        ("optimizer.betas", [0.9]),
        ("optimizer.betas", [0.9, 1.0]),
        ("optimizer.betas", [float("nan"), 0.9]),
        ("schedule.gamma", 0),
        ("schedule.gamma", 1.5),
        ("schedule.gamma", float("nan")),
        ("schedule.min_lr", -1e-6),
        ("schedule.warmup_epochs", float("inf")),
        ("schedule.step_epochs", 0),
        ("schedule.plateau_epochs", 0),
        ("training.epochs", 0),
        ("training.epochs", 2.5),
        ("training.epochs", "ten"),
        ("training.seed", -1),
        ("training.seed", 2**31),
        ("training.patience", -1),
        ("training.device", "gpu"),
        ("training.device", "cuda:"),
        ("data.image_size", 4),
        ("data.image_size", 4096),
        ("data.batch_size", 0),
        ("data.val_fraction", 0),
        ("data.test_fraction", 1),
        ("data.val_fraction", float("nan")),
        ("data.limit", -1),
        ("data.workers", -1),
        ("model.dropout", 1),
        ("model.dropout", -0.1),
        ("model.name", 18),
    ],
)
def test_a_value_out_of_range_is_refused_by_name_and_value(name: str, value: Any) -> None:
    message = error_of(nest({name: value}))
    assert re.match(rf"file\.yaml: {name}(\[\d\])?: \S+ given; \S", message)
    assert isinstance(value, list) or f": {value!r} given;" in message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("trials", -1),
        ("repeats", 0),
        ("sampler", "grid"),
        ("pruner", "halving"),
        ("hours", -0.5),
        ("hours", float("inf")),
    ],
)
def test_a_study_value_out_of_range_is_refused(field: str, value: Any) -> None:
    message = error_of({field: value}, Study)
    assert field in message and repr(value) in message


def test_fractions_must_leave_images_to_train() -> None:
    message = error_of({"data": {"val_fraction": 0.5, "test_fraction": 0.5}})
    assert message == "file.yaml: data: val_fraction + test_fraction must be below 1, got 1"


def test_store_size_below_image_size_is_refused() -> None:
    message = error_of({"data": {"image_size": 64, "store_size": 32}})
    assert message == "file.yaml: data: store_size must be at least image_size (64), got 32"


@pytest.mark.parametrize(
    ("raw", "wrong", "close"),
    [
        ({"optimiser": {}}, "'optimiser'", "nearest: optimizer;"),
        ({"optimizer": {"momentun": 0.5}}, "'optimizer.momentun'", "nearest: optimizer.momentum;"),
        ({"training": {"epoch": 3}}, "'training.epoch'", "nearest: training.epochs;"),
        ({"data": {"imagesize": 3}}, "'data.imagesize'", "nearest: data.image_size;"),
        ({"weight_decay": 0}, "'weight_decay'", "nearest: optimizer.weight_decay;"),
        ({"training": {"strategy": "ddp"}}, "'training.strategy'", "allowed: training.epochs,"),
        (
            {"schedule": {"function-name": "cosine"}},
            "'schedule.function-name'",
            "allowed: schedule.name,",
        ),
    ],
)
def test_an_unknown_field_is_named_with_the_nearest(raw: Any, wrong: str, close: str) -> None:
    message = error_of(raw)
    assert f"unknown field {wrong}" in message
    assert close in message


def test_an_unknown_study_field_is_named_with_the_nearest() -> None:
    assert "unknown field 'trails'; nearest: trials;" in error_of({"trails": 3}, Study)


def test_an_unknown_study_field_named_like_a_type_is_named() -> None:
    assert "unknown field 'strategy'" in error_of({"strategy": "grid"}, Study)


@pytest.mark.parametrize(
    ("name", "value", "close"),
    [
        ("optimizer.name", "adan", "adam"),
        ("optimizer.name", "adamW", "adamw"),
        ("schedule.name", "cosin", "cosine"),
        ("schedule.name", "exponentail", "exponential"),
        ("model.freeze", "backbon", "backbone"),
        ("data.interpolation", "bicubik", "bicubic"),
    ],
)
def test_a_wrong_choice_is_named_with_the_allowed_and_the_nearest(
    name: str, value: str, close: str
) -> None:
    message = error_of(nest({name: value}))
    assert f"{name}: {value!r} given" in message
    assert f"'{close}'" in message
    assert message.endswith(f"; nearest: {close}")


def test_a_wrong_study_choice_is_named_with_the_nearest() -> None:
    assert error_of({"pruner": "hyperbnd"}, Study).endswith("; nearest: hyperband")


def test_several_wrong_values_are_all_listed() -> None:
    with pytest.raises(UserError) as caught:
        parse(
            Configuration,
            {"optimizer": {"lr": -1, "name": "adan"}, "training": {"epochs": 0}},
            "file.yaml",
        )
    assert caught.value.message == "file.yaml: 3 values are not allowed"
    assert [finding.partition(":")[0] for finding in caught.value.findings] == [
        "optimizer.name",
        "optimizer.lr",
        "training.epochs",
    ]


def test_a_wrong_entry_of_augment_is_named_by_its_place() -> None:
    assert "data.augment[1]" in error_of({"data": {"augment": ["RandomHorizontalFlip", 3]}})


def test_a_section_that_is_no_mapping_is_refused() -> None:
    assert "model: 'resnet18' given" in error_of({"model": "resnet18"})


@pytest.mark.parametrize(
    ("schedule", "gamma"),
    [("none", None), ("exponential", 0.95), ("step", 0.1), ("cosine", None), ("plateau", 0.1)],
)
def test_each_schedule_has_its_own_gamma(schedule: str, gamma: float | None) -> None:
    assert Schedule.model_validate({"name": schedule}).gamma == gamma
    assert Schedule.model_validate({"name": schedule, "gamma": None}).gamma == gamma
    assert Schedule.model_validate({"name": schedule, "gamma": 0.7}).gamma == 0.7


@pytest.mark.parametrize(
    ("image_size", "store_size", "stored"),
    [(224, 0, 256), (128, 0, 146), (127, 0, 127), (32, 0, 32), (32, 40, 40)],
)
def test_size_that_images_are_stored_at(image_size: int, store_size: int, stored: int) -> None:
    assert Data(image_size=image_size, store_size=store_size).stored_size == stored


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("digits", "digits"),
        ("folder:photos", "photos"),
        ("folder:/data/photos/", "photos"),
        ("folder:C:\\data\\photos", "photos"),
        ("folder:../my photos", "my photos"),
        ("folder:photos.v2", "photos.v2"),
        ("csv:lists/eyes.csv", "eyes"),
        ("npz:pathmnist_64.npz", "pathmnist_64"),
        ("torchvision:MNIST", "MNIST"),
    ],
)
def test_data_are_named_by_their_folder_or_file(source: str, name: str) -> None:
    assert Data(source=source).name == name


def test_the_current_folder_gives_data_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path / "photos")
    assert Data(source="folder:.").name == "photos"


def test_later_layers_win_field_by_field() -> None:
    merged = merge(
        {"optimizer": {"lr": 1, "name": "sgd"}},
        {"optimizer": {"lr": 2}, "model": {"name": "x"}},
        {"optimizer": {"lr": 3}},
    )
    assert merged == {"optimizer": {"lr": 3, "name": "sgd"}, "model": {"name": "x"}}


def test_a_list_is_replaced_whole() -> None:
    merged = merge(
        {"data": {"augment": ["RandomRotation", "Grayscale"]}},
        {"data": {"augment": ["RandomCrop"]}},
    )
    assert merged == {"data": {"augment": ["RandomCrop"]}}


def test_merging_leaves_the_layers_as_they_were() -> None:
    layers: list[dict[str, Any]] = [
        {"optimizer": {"lr": 1}},
        {"optimizer": {"name": "sgd"}},
        {"model": {"name": "x"}},
    ]
    before = copy.deepcopy(layers)
    merge(*layers)
    assert layers == before


def test_merging_nothing_is_empty() -> None:
    assert merge() == {}


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    st.dictionaries(
        st.sampled_from(field_names()), st.one_of(st.integers(), st.text(), st.lists(st.integers()))
    )
)
def test_flatten_undoes_nest(dotted: dict[str, Any]) -> None:
    assert dict(flatten(nest(dotted))) == dotted


def test_flat_has_each_field_once() -> None:
    assert sorted(Configuration().flat()) == sorted(TRAINING_FIELDS)


def test_a_mapping_in_a_field_is_not_flattened() -> None:
    assert dict(flatten({"data": {"augment": {"RandomRotation": 5}}})) == {
        "data.augment": {"RandomRotation": 5}
    }


def test_field_names_are_those_of_the_sections() -> None:
    assert {name.partition(".")[0] for name in field_names()} == set(SECTIONS)
    assert len(field_names()) == len(set(field_names()))
