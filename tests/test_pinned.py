"""What release 0.1.0 has promised and later ones must keep.

It is identities, and the names that others rely on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline import models
from pipeline.__main__ import STEPS
from pipeline.config import Configuration, Data, field_names, nest
from pipeline.data.prepare_data import prepare
from pipeline.experiment import Range
from pipeline.identity import FIRST_RELEASE, config_hash, data_digest, study_name
from pipeline.report.tables import COLUMNS
from pipeline.tracking import names

HASHES: list[tuple[str, dict[str, Any]]] = [
    ("f8671ec1e58b", {}),
    ("799d630d05b8", {"model.name": "resnet34"}),
    ("346f266b9201", {"model.name": "densenet121", "optimizer.lr": 0.0003}),
    ("890cf673b165", {"model.name": "small_cnn"}),
    ("c3abbde3351b", {"model.name": "densenet264"}),
    ("a39a54549147", {"model.name": "swin_v2_s"}),
    ("be450816acb6", {"model.name": "timm/resnet18"}),
    ("1963e466bb07", {"model.weights": "DEFAULT"}),
    ("1963e466bb07", {"model.weights": "IMAGENET1K_V1"}),
    ("21552fe69fdf", {"model.name": "resnet50", "model.weights": "DEFAULT"}),
    ("3f395840d184", {"model.name": "resnet50", "model.weights": "IMAGENET1K_V1"}),
    ("ec02d84eb8fa", {"model.weights": "DEFAULT", "model.freeze": "backbone"}),
    ("36da83365f6f", {"model.freeze": "backbone"}),
    ("77decbeb3bff", {"model.dropout": 0.5}),
    ("2c73ec1bc742", {"optimizer.name": "sgd"}),
    ("b7dd4d0837db", {"optimizer.name": "sgd", "optimizer.momentum": 0.5}),
    ("f5d535d29ab4", {"optimizer.name": "adam"}),
    ("1f7da5331c7a", {"optimizer.name": "adam", "optimizer.betas": [0.8, 0.99]}),
    ("119789fa3b80", {"optimizer.weight_decay": 0.0}),
    ("d8cdc0809b8b", {"optimizer.lr": 1e-05}),
    ("4e8db4b39051", {"schedule.name": "exponential"}),
    ("975086bb3f69", {"schedule.name": "exponential", "schedule.gamma": 0.9}),
    ("ee2105a80743", {"schedule.name": "step", "schedule.step_epochs": 4}),
    (
        "8e50d24af528",
        {"schedule.name": "cosine", "schedule.warmup_epochs": 1, "schedule.min_lr": 1e-06},
    ),
    ("3d12d7147de2", {"schedule.name": "plateau", "schedule.plateau_epochs": 2}),
    ("68aa5e4cf978", {"schedule.name": "cosine", "schedule.gamma": 0.6}),
    ("9cca2dc34cb7", {"training.epochs": 100}),
    ("8759db31e975", {"training.patience": 3}),
    ("da7ec4215414", {"training.class_weights": "balanced"}),
    ("1243f9926caf", {"training.sampler": "balanced"}),
    ("69f575ddd751", {"training.best_metric": "val/loss"}),
    (
        "6fd4a88c57ef",
        {
            "training.best_metric": "val/f1_macro",
            "training.label_smoothing": 0.1,
            "training.clip_norm": 1.0,
        },
    ),
    ("8c60c8f9fd61", {"training.precision": "bf16", "training.memory_format": "channels_last"}),
    ("1fd73f3b7524", {"training.compile": True}),
    (
        "f8671ec1e58b",
        {
            "training.seed": 7,
            "training.device": "cpu",
            "training.processes": 2,
            "training.checkpoint_seconds": 1.0,
            "training.deterministic": True,
        },
    ),
    ("0cf33fcf1cba", {"data.image_size": 32, "data.batch_size": 64}),
    ("f8671ec1e58b", {"data.image_size": 224, "data.store_size": 256}),
    ("09ec6dd54a54", {"data.interpolation": "bicubic", "data.background": "black"}),
    (
        "e9614dfcff82",
        {
            "data.augment": ["RandomHorizontalFlip", {"RandomRotation": {"degrees": 15}}],
            "model.freeze": "backbone",
            "training.feature_views": 4,
        },
    ),
    (
        "cf0899774a23",
        {
            "data.augment": ["RandomHorizontalFlip"],
            "data.source": "folder:photos",
            "data.seed": 3,
            "data.folds": 4,
            "data.fold": 2,
            "data.workers": 3,
        },
    ),
]


def configuration(dotted: dict[str, Any]) -> Configuration:
    return Configuration.model_validate(nest(dotted))


@pytest.mark.parametrize(
    ("expected", "dotted"), HASHES, ids=[f"{number:02d}" for number in range(len(HASHES))]
)
def test_configurations_keep_their_hashes(expected: str, dotted: dict[str, Any]) -> None:
    given = configuration(dotted)
    origin = models.origin(given.model)
    assert config_hash(given, origin, FIRST_RELEASE) == expected
    # A new head on trained weights starts otherwise than it did.
    assert (config_hash(given, origin) == expected) == (given.model.weights == "none")


@pytest.mark.parametrize(
    ("expected", "base", "space", "digest"),
    [
        ("flowers-0ba2ab3a", {}, {}, "0" * 32),
        ("flowers-5839f91a", {"training.epochs": 3}, {}, "f" * 32),
        ("flowers-c955fb7f", {}, {"optimizer.lr": Range(low=1e-4, high=1e-2, log=True)}, "0" * 32),
        (
            "flowers-868669fd",
            {"model.name": "resnet50", "model.weights": "DEFAULT"},
            {"schedule.name": ["none", "cosine"]},
            "0" * 32,
        ),
        ("flowers-3cff6bfa", {"data.folds": 5, "data.fold": "all"}, {}, "0" * 32),
        ("flowers-46d675b4", {}, {"data.augment": [[], ["RandomHorizontalFlip"]]}, "0" * 32),
    ],
)
def test_studies_keep_their_names(
    expected: str, base: dict[str, Any], space: dict[str, Any], digest: str
) -> None:
    given = configuration(base)
    origin = models.origin(given.model)
    assert study_name("flowers", given, origin, space, digest, FIRST_RELEASE) == expected
    assert (study_name("flowers", given, origin, space, digest) == expected) == (
        given.model.weights == "none"
    )


@pytest.mark.parametrize(
    ("expected", "images"),
    [
        ("e3b0c44298fc1c149afbf4c8996fb924", []),
        (
            "566100e7614ac0103e638c845ea58cbc",
            [("00ff", "rose", "train"), ("11ee", "tulip", "val"), ("22dd", "rose", "test")],
        ),
        (
            "da0e01413fba6809e586c811124dae59",
            [("00ff", "rose", "fold 0"), ("11ee", "tulip", "fold 1")],
        ),
    ],
)
def test_lists_of_images_keep_their_digests(
    expected: str, images: list[tuple[str, str, str]]
) -> None:
    assert data_digest(images) == expected


@pytest.mark.parametrize(
    ("expected", "changed"),
    [
        ("eea0a940e5e1a7b1ab2237cc3802257c", {}),
        ("e8acc7e3d7749005d50dd0151ab24924", {"folds": 3}),
        ("b29a048ddd435536cfa3a6ad50bc1d6e", {"limit": 300}),
        ("c098eaecd4ad1892607b8dd7504538fa", {"seed": 1, "val_fraction": 0.2}),
        ("1064cc3184e1a13105515638e1e86f71", {"limit": 200, "duplicates": "ignore"}),
    ],
)
def test_real_images_keep_their_digests(
    expected: str, changed: dict[str, Any], tmp_path: Path
) -> None:
    assert prepare(Data(source="digits", image_size=8, **changed), tmp_path).digest == expected


FIELDS = """
data.source data.root data.image_size data.batch_size data.augment data.seed
data.folds data.fold data.bad data.duplicates
model.name model.weights model.freeze model.dropout
optimizer.name optimizer.lr optimizer.weight_decay optimizer.momentum optimizer.betas
schedule.name schedule.gamma schedule.min_lr schedule.warmup_epochs
training.epochs training.seed training.device training.processes
training.precision training.memory_format training.compile
training.patience training.class_weights training.sampler
training.best_metric training.label_smoothing training.clip_norm
training.feature_views training.deterministic training.checkpoint_seconds
tracking.log_images tracking.keep_weights
study.name study.trials study.repeats study.sampler study.pruner study.storage study.target
study.evaluate study.only study.hours
"""
FIRST_COLUMNS = """
run_id run_name state model weights freeze optimizer lr schedule weight_decay seed epochs best_epoch
val_accuracy val_loss
test_accuracy test_accuracy_low test_accuracy_high parameters seconds config_hash data_digest
"""


def test_fields_keep_their_names() -> None:
    assert set(FIELDS.split()) <= set(field_names())


def test_steps_keep_their_names() -> None:
    assert {
        "main",
        "prepare",
        "train",
        "tune",
        "evaluate",
        "summary",
        "register",
        "predict",
        "reconcile",
        "init",
    } <= set(STEPS)


def test_tags_states_and_artifacts_keep_their_names() -> None:
    tags = {"step", "uid", "config_hash", "data_digest", "trial", "state", "experiment", "joins"}
    assert {f"pipeline.{tag}" for tag in tags} <= {
        value for value in vars(names).values() if isinstance(value, str)
    }
    states = {
        "running": None,
        "complete": "FINISHED",
        "pruned": "FINISHED",
        "failed": "FAILED",
        "interrupted": "KILLED",
    }
    assert {state: names.STATUS_OF_STATE.get(state) for state in states} == states
    kept = ("checkpoint/best.safetensors", "config.yaml", "classes.json", "model")
    assert kept == (names.CHECKPOINT, names.CONFIG, names.CLASSES, names.MODEL)


def test_the_comparison_keeps_its_columns() -> None:
    assert FIRST_COLUMNS.split() == COLUMNS
