"""What makes two trainings the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import models
from pipeline.config import Configuration, Model, nest
from pipeline.experiment import Range
from pipeline.identity import config_hash, data_digest, hashed_fields, study_name
from tests.test_config import ANOTHER, NEEDS, TRAINING_FIELDS

NOT_HASHED = {
    "data.source", "data.seed", "data.val_fraction", "data.test_fraction", "data.limit",
    "data.workers", "training.seed",
    "training.checkpoint_seconds",
    "training.deterministic",
    "training.device",
    "training.processes",
    "data.bad", "data.duplicates", "data.near_distance", "data.folds", "data.fold", "data.store",
    "data.max_pixels", "data.root", "data.labels", "data.image_column", "data.label_column",
    "data.split_column", "data.group_column", "data.ordered", "tracking.log_images",
    "tracking.keep_weights",
}  # fmt: skip
APPLIES_UNDER = {
    "optimizer.momentum": {"optimizer.name": "sgd"},
    "optimizer.betas": {"optimizer.name": "adam"},
    "schedule.gamma": {"schedule.name": "exponential"},
    "schedule.min_lr": {"schedule.name": "cosine"},
    "schedule.step_epochs": {"schedule.name": "step"},
    "schedule.plateau_epochs": {"schedule.name": "plateau"},
    "training.feature_views": {
        "model.freeze": "backbone",
        "data.augment": ["RandomHorizontalFlip"],
    },
}


def configuration(**dotted: Any) -> Configuration:
    return Configuration.model_validate(
        nest({name.replace("__", "."): value for name, value in dotted.items()})
    )


def hash_of(dotted: dict[str, Any] | None = None) -> str:
    given_configuration = configuration(**(dotted or {}))
    return config_hash(given_configuration, models.origin(given_configuration.model))


def test_a_hash_is_twelve_hex_digits() -> None:
    assert re.fullmatch("[0-9a-f]{12}", hash_of())


def test_equal_configurations_have_one_hash() -> None:
    assert hash_of({"optimizer.lr": 0.001}) == hash_of({"optimizer.lr": "1e-3"}) == hash_of()


@pytest.mark.parametrize("name", sorted(NOT_HASHED))
def test_a_field_that_leaves_the_result_as_it_is_leaves_the_hash(name: str) -> None:
    assert hash_of({**NEEDS.get(name, {}), name: ANOTHER[name]}) == hash_of()


@pytest.mark.parametrize("name", sorted(set(TRAINING_FIELDS) - NOT_HASHED))
def test_a_field_that_changes_the_result_changes_the_hash(name: str) -> None:
    under = APPLIES_UNDER.get(name, {})
    assert hash_of({**under, name: ANOTHER[name]}) != hash_of(under)


@pytest.mark.parametrize(
    ("under", "name"),
    [
        ({"optimizer.name": "adam"}, "optimizer.momentum"),
        ({"optimizer.name": "adamw"}, "optimizer.momentum"),
        ({"optimizer.name": "sgd"}, "optimizer.betas"),
        ({"model.freeze": "backbone"}, "training.feature_views"),
        ({"data.augment": ["RandomHorizontalFlip"]}, "training.feature_views"),
        ({"schedule.name": "none"}, "schedule.gamma"),
        ({"schedule.name": "cosine"}, "schedule.gamma"),
        ({"schedule.name": "none"}, "schedule.min_lr"),
        *[
            ({"schedule.name": schedule}, "schedule.step_epochs")
            for schedule in ("none", "exponential", "cosine", "plateau")
        ],
        *[
            ({"schedule.name": schedule}, "schedule.plateau_epochs")
            for schedule in ("none", "exponential", "cosine", "step")
        ],
    ],
)
def test_a_field_that_does_not_apply_leaves_the_hash(under: dict[str, Any], name: str) -> None:
    assert hash_of({**under, name: ANOTHER[name]}) == hash_of(under)


@pytest.mark.parametrize("schedule", ["exponential", "step", "plateau"])
def test_the_default_gamma_written_out_is_the_same_configuration(schedule: str) -> None:
    gamma = configuration(schedule__name=schedule).schedule.gamma
    assert hash_of({"schedule.name": schedule, "schedule.gamma": gamma}) == hash_of(
        {"schedule.name": schedule}
    )


def test_the_default_store_size_written_out_is_the_same_configuration() -> None:
    assert hash_of({"data.store_size": 256}) == hash_of()


def test_hashed_fields_are_dotted_and_resolved() -> None:
    given_configuration = configuration(model__weights="DEFAULT")
    fields = hashed_fields(given_configuration, models.origin(given_configuration.model))
    assert fields["model.weights"] == "IMAGENET1K_V1"
    assert fields["data.store_size"] == 256
    assert set(fields) <= {*TRAINING_FIELDS, "model.head"} - NOT_HASHED


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("resnet18", "IMAGENET1K_V1"),
        ("resnet34", "IMAGENET1K_V1"),
        ("resnet50", "IMAGENET1K_V2"),
        ("resnet101", "IMAGENET1K_V2"),
    ],
)
def test_default_and_the_name_it_stands_for_are_one(name: str, weights: str) -> None:
    assert hash_of({"model.name": name, "model.weights": "DEFAULT"}) == hash_of(
        {"model.name": name, "model.weights": weights}
    )


def test_other_weights_are_another_configuration() -> None:
    hashes = {
        hash_of({"model.name": "resnet50", "model.weights": weights})
        for weights in ("none", "IMAGENET1K_V1", "IMAGENET1K_V2")
    }
    assert len(hashes) == 3


RESNET_TRANSFER_20 = [
    ("resnet18", "DEFAULT", 1e-5, "none"),
    ("resnet18", "DEFAULT", 5e-5, "none"),
    ("resnet18", "DEFAULT", 5e-5, "exponential"),
    ("resnet18", "IMAGENET1K_V1", 5e-5, "none"),
    ("resnet18", "IMAGENET1K_V1", 5e-5, "exponential"),
    ("resnet34", "DEFAULT", 1e-5, "none"),
    ("resnet34", "DEFAULT", 5e-5, "none"),
    ("resnet34", "DEFAULT", 5e-5, "exponential"),
    ("resnet34", "IMAGENET1K_V1", 5e-5, "none"),
    ("resnet34", "IMAGENET1K_V1", 5e-5, "exponential"),
    ("resnet50", "DEFAULT", 1e-5, "none"),
    ("resnet50", "DEFAULT", 5e-5, "none"),
    ("resnet50", "DEFAULT", 5e-5, "exponential"),
    ("resnet50", "IMAGENET1K_V2", 5e-5, "none"),
    ("resnet50", "IMAGENET1K_V2", 5e-5, "exponential"),
    ("resnet101", "DEFAULT", 5e-5, "none"),
    ("resnet101", "DEFAULT", 5e-5, "exponential"),
    ("resnet101", "IMAGENET1K_V2", 5e-5, "none"),
    ("resnet101", "IMAGENET1K_V2", 5e-5, "exponential"),
    ("swin_v2_s", "DEFAULT", 1e-5, "none"),
]


def test_the_eight_pairs_of_the_twenty_configurations_are_found() -> None:
    names = ("model.name", "model.weights", "optimizer.lr", "schedule.name")
    hashes = [hash_of(dict(zip(names, row, strict=True))) for row in RESNET_TRANSFER_20]
    pairs = [(i, j) for j in range(1, 21) for i in range(1, j) if hashes[i - 1] == hashes[j - 1]]
    assert sorted(pairs) == [
        (2, 4),
        (3, 5),
        (7, 9),
        (8, 10),
        (12, 14),
        (13, 15),
        (16, 18),
        (17, 19),
    ]


def test_a_weights_file_is_its_content(tmp_path: Path) -> None:
    for name, value in (("a.pt", 1.0), ("b.pt", 1.0), ("c.pt", 2.0)):
        # One name inside, since the archive holds it.
        (tmp_path / name).mkdir()
        torch.save({"weight": torch.tensor(value)}, tmp_path / name / "state.pt")
    same, copy, other = (
        hash_of({"model.weights": f"file:{tmp_path}/{name}/state.pt"})
        for name in ("a.pt", "b.pt", "c.pt")
    )
    assert same == copy != other
    assert same != hash_of()


def test_an_own_network_is_its_files_content(tmp_path: Path) -> None:
    for name, text in (
        ("a.py", "def build(n): ..."),
        ("b.py", "def build(n): ..."),
        ("c.py", "def build(n): return 1"),
    ):
        (tmp_path / name).write_text(text)
    same, copy, other = (
        hash_of({"model.name": f"file:{tmp_path / name}:build"})
        for name in ("a.py", "b.py", "c.py")
    )
    assert same == copy != other
    assert hash_of({"model.name": f"file:{tmp_path / 'a.py'}:make"}) != same


def test_origin_of_a_named_network_without_weights() -> None:
    assert models.origin(Model(name="resnet18")) == {"name": "resnet18", "weights": "none"}


IMAGES = st.lists(
    st.tuples(
        st.text("0123456789abcdef", min_size=4, max_size=4),
        st.sampled_from(["cat", "dog"]),
        st.sampled_from(["train", "val"]),
    )
)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.data())
def test_the_data_digest_does_not_depend_on_the_order(data: st.DataObject) -> None:
    images = data.draw(IMAGES)
    assert data_digest(data.draw(st.permutations(images))) == data_digest(images)


@pytest.mark.parametrize(
    "changed",
    [
        [("00", "cat", "train")],
        [("00", "cat", "train"), ("11", "dog", "val"), ("22", "dog", "val")],
        [("00", "cat", "train"), ("12", "dog", "val")],
        [("00", "cat", "train"), ("11", "cat", "val")],
        [("00", "cat", "train"), ("11", "dog", "test")],
        [("00", "dog", "train"), ("11", "cat", "val")],
        [("00", "cat", "train"), ("11", "dog", "val"), ("11", "dog", "val")],
    ],
    ids=[
        "image removed",
        "image added",
        "content",
        "label",
        "split",
        "labels swapped",
        "image doubled",
    ],
)
def test_the_data_digest_changes_with(changed: list[tuple[str, str, str]]) -> None:
    assert data_digest(changed) != data_digest([("00", "cat", "train"), ("11", "dog", "val")])


def test_the_data_digest_fits_into_mlflow() -> None:
    digest = data_digest([("00", "cat", "train")])
    assert re.fullmatch("[0-9a-f]+", digest)
    assert 32 <= len(digest) <= 36


def named(
    base: dict[str, Any] | None = None, space: dict[str, Any] | None = None, digest: str = "d1"
) -> str:
    given_configuration = configuration(**(base or {}))
    return study_name(
        "photos", given_configuration, models.origin(given_configuration.model), space or {}, digest
    )


def test_a_study_is_named_by_experiment_and_eight_hex_digits() -> None:
    assert re.fullmatch("photos-[0-9a-f]{8}", named())


@pytest.mark.parametrize(
    "other",
    [
        {"base": {"optimizer.lr": 0.5}},
        {"space": {"optimizer.lr": Range(low=0.1, high=0.2)}},
        {"space": {"optimizer.lr": [0.1, 0.2]}},
        {"digest": "d2"},
    ],
    ids=["base", "interval", "choices", "data"],
)
def test_another_question_is_another_study(other: dict[str, Any]) -> None:
    assert named(**other) != named()


def test_another_interval_is_another_study() -> None:
    linear, log = (
        named(space={"optimizer.lr": Range(low=0.1, high=0.2, log=log)}) for log in (False, True)
    )
    assert linear != log


def test_another_seed_is_the_same_study() -> None:
    assert named(base={"training.seed": 5, "training.device": "cpu"}) == named()
