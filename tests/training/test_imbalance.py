"""Classes of unequal frequency: the weights, and small real trainings with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from pipeline import models
from pipeline.config import Configuration, merge
from pipeline.data.loader import Images, Loader
from pipeline.data.transforms import Preprocessing
from pipeline.jobs.summary import summarise
from pipeline.tracking import artifacts, names
from pipeline.tracking.workspace import Workspace
from pipeline.training.callback import Callback
from pipeline.training.context import TrainingContext
from pipeline.training.fit import fit
from pipeline.training.fit_result import FitResult
from pipeline.training.imbalance import balanced_class_weights, balanced_probabilities
from pipeline.training.inference import predict_logits
from tests.conftest import Cli, write_digits

some_labels = st.lists(st.integers(0, 9), min_size=1, max_size=200).map(
    lambda labels: np.array(labels, dtype=np.int64)
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(some_labels)
def test_class_weights_are_scikit_learns(labels: NDArray[np.int64]) -> None:
    present = np.unique(labels)
    weights = balanced_class_weights(labels, num_classes=10)
    assert (weights.shape, weights.dtype) == ((10,), np.float32)
    assert weights[present] == pytest.approx(
        compute_class_weight("balanced", classes=present, y=labels)
    )
    assert weights[labels].mean() == pytest.approx(1)


def test_class_weights_worked_out_by_hand() -> None:
    labels = np.array([0] * 6 + [1] * 3 + [2] * 1)
    assert balanced_class_weights(labels, 3) == pytest.approx([10 / 18, 10 / 9, 10 / 3])


@pytest.mark.filterwarnings("error")
def test_a_class_without_training_images_weighs_nothing() -> None:
    assert balanced_class_weights(np.array([0, 0, 2, 2]), 4).tolist() == [1, 0, 1, 0]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(some_labels)
def test_each_class_is_drawn_with_the_same_probability(labels: NDArray[np.int64]) -> None:
    probabilities = balanced_probabilities(labels)
    present = np.unique(labels)
    assert probabilities.sum() == pytest.approx(1)
    assert [probabilities[labels == label].sum() for label in present] == pytest.approx(
        [1 / len(present)] * len(present)
    )
    assert all(np.ptp(probabilities[labels == label]) == 0 for label in present)


BASE: dict[str, Any] = {
    "data": {"image_size": 8, "store_size": 8, "batch_size": 50},
    "model": {"name": "small_cnn"},
    "optimizer": {"name": "adam", "lr": 3e-3},
    "training": {"epochs": 6, "device": "cpu"},
}
COMMON, RARE = 0, 1


def grey(labels: NDArray[np.int64], seed: int) -> NDArray[np.uint8]:
    """Grey images of two classes that overlap.

    With label 1 they are brighter by one standard deviation of their brightness.
    """
    rng = np.random.default_rng(seed)
    brightness = 120 + 20 * (labels + rng.normal(size=len(labels)))
    images = np.broadcast_to(brightness[:, None, None, None], (len(labels), 3, 8, 8))
    return images.clip(0, 255).astype(np.uint8)


def setting_of(configuration: Configuration, folder: Path) -> TrainingContext:
    """Training images 95 to 5, validation images half and half."""
    train_labels = np.repeat(np.array([COMMON, RARE]), [760, 40])
    val_labels = np.repeat(np.array([COMMON, RARE]), [200, 200])
    labels = np.concatenate([train_labels, val_labels])
    store = grey(labels, seed=0)
    torch.manual_seed(configuration.training.seed)
    balanced = configuration.training.sampler == "balanced"
    train = Images(store, np.arange(800), labels, 8)
    return TrainingContext(
        models.build(configuration.model, 2, 8),
        Preprocessing(8, 8, "bilinear", (0.5, 0.5, 0.5), (0.1, 0.1, 0.1)),
        Loader(
            train,
            50,
            shuffle_seed=0,
            probabilities=balanced_probabilities(train_labels) if balanced else None,
        ),
        Loader(Images(store, np.arange(800, 1200), labels, 8), 50),
        torch.device("cpu"),
        folder / "best.safetensors",
    )


def trained(
    folder: Path, changes: dict[str, Any], *callbacks: Callback
) -> tuple[TrainingContext, FitResult]:
    configuration = Configuration.model_validate(merge(BASE, changes))
    setting = setting_of(configuration, folder)
    fitted = fit(configuration, setting, callbacks)
    return setting, fitted


def recall_of_the_rare(setting: TrainingContext) -> float:
    labels, logits = predict_logits(
        setting.network.module, setting.val, setting.preprocessing, setting.device
    )
    return float((logits.argmax(axis=1)[labels == RARE] == RARE).mean())


@pytest.mark.parametrize("choice", [{"class_weights": "balanced"}, {"sampler": "balanced"}])
def test_balancing_finds_a_rare_class_that_is_missed_otherwise(
    tmp_path: Path, choice: dict[str, str]
) -> None:
    plain, _ = trained(tmp_path, {})
    balanced, _ = trained(tmp_path, {"training": {**BASE["training"], **choice}})
    assert recall_of_the_rare(plain) < 0.15
    assert recall_of_the_rare(balanced) > 0.5


STANDING_STILL = {"optimizer": {"name": "sgd", "lr": 1e-12, "weight_decay": 0.0}}


@pytest.mark.parametrize("class_weights", ["none", "balanced"])
def test_the_losses_of_an_epoch_are_means_over_all_images(
    tmp_path: Path, class_weights: str
) -> None:
    """The training loss is weighed by class, the validation loss is not.

    So it is although batches of 50 differ in their weights.
    """
    setting, fitted = trained(
        tmp_path,
        {
            **STANDING_STILL,
            "training": {"epochs": 1, "class_weights": class_weights, "device": "cpu"},
        },
    )
    weights = (
        torch.from_numpy(balanced_class_weights(setting.train.labels.numpy(), 2))
        if class_weights == "balanced"
        else None
    )
    for loader, name, weight in (
        (setting.train, "train/loss", weights),
        (setting.val, "val/loss", None),
    ):
        labels, logits = predict_logits(
            setting.network.module, loader, setting.preprocessing, setting.device
        )
        expected = functional.cross_entropy(
            torch.from_numpy(logits), torch.from_numpy(labels), weight=weight
        ).item()
        assert fitted.history[0][name] == pytest.approx(expected, rel=1e-5)


def test_class_weights_change_the_training_and_no_accuracy_of_a_network_that_stands_still(
    tmp_path: Path,
) -> None:
    (_, plain), (_, weighed) = (
        trained(
            tmp_path,
            {**STANDING_STILL, "training": {"epochs": 1, "class_weights": name, "device": "cpu"}},
        )
        for name in ("none", "balanced")
    )
    assert plain.history[0]["train/accuracy"] == weighed.history[0]["train/accuracy"]
    assert plain.history[0]["train/loss"] != weighed.history[0]["train/loss"]


class Losses(Callback):
    """Notes the running means."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_step(self, epoch: int, loss: float, accuracy: float, lr: float) -> None:
        self.losses.append(loss)


def test_the_last_running_loss_is_that_of_the_epoch(tmp_path: Path) -> None:
    noted = Losses()
    _, fitted = trained(
        tmp_path, {"training": {"epochs": 1, "class_weights": "balanced", "device": "cpu"}}, noted
    )
    assert noted.losses[-1] == fitted.history[0]["train/loss"]


@pytest.mark.parametrize("choice", [{"class_weights": "balanced"}, {"sampler": "balanced"}])
def test_a_balanced_training_is_the_same_twice(tmp_path: Path, choice: dict[str, str]) -> None:
    changes = {"training": {"epochs": 2, "device": "cpu", **choice}}
    (_, one), (_, other) = trained(tmp_path, changes), trained(tmp_path, changes)
    assert np.array_equal(one.logits, other.logits)
    assert [epoch["train/loss"] for epoch in one.history] == [
        epoch["train/loss"] for epoch in other.history
    ]


def test_a_class_of_validation_images_only_can_be_scored(tmp_path: Path) -> None:
    configuration = Configuration.model_validate(
        merge(BASE, {"training": {"epochs": 1, "class_weights": "balanced"}})
    )
    labels = np.array([0, 1] * 20 + [2] * 4)
    store = grey(labels, seed=1)
    setting = TrainingContext(
        models.build(configuration.model, 3, 8),
        Preprocessing(8, 8, "bilinear", (0.5, 0.5, 0.5), (0.1, 0.1, 0.1)),
        Loader(Images(store, np.arange(40), labels, 8), 10, shuffle_seed=0),
        Loader(Images(store, np.arange(40, 44), labels, 8), 10),
        torch.device("cpu"),
        tmp_path / "best.safetensors",
    )
    fitted = fit(configuration, setting)
    assert np.isfinite([fitted.history[0]["train/loss"], fitted.history[0]["val/loss"]]).all()


@pytest.mark.thorough
def test_an_uneven_set_is_balanced_as_asked_and_measured_against_its_largest_class(
    cli: Cli, quick: Path, workspace: Workspace, tmp_path: Path
) -> None:
    source = write_digits(tmp_path / "uneven", 60, classes=(0,))
    write_digits(source, 20, classes=(1, 2))
    choices = ({}, {"class_weights": "balanced"}, {"sampler": "balanced"})
    for choice in choices:
        options = [part for name, value in choice.items() for part in (f"--training.{name}", value)]
        done = cli(
            "train",
            "--config",
            quick,
            "--data.source",
            f"folder:{source}",
            "--training.epochs",
            "2",
            *options,
        )
        assert done.code == 0, done.err
    compared = summarise(workspace)
    assert (
        len({row["config_hash"] for row in compared.rows})
        == len({row["val_loss"] for row in compared.rows})
        == len(choices)
    )
    params = [
        {name: row["params"][f"training.{name}"] for name in ("class_weights", "sampler")}
        for row in compared.rows
    ]
    assert all(
        {"class_weights": "none", "sampler": "shuffle", **choice} in params for choice in choices
    )
    table = pd.read_csv(
        artifacts.download_artifact(
            workspace, compared.rows[0]["run_id"], "confusion_matrix/val.csv", tmp_path
        ),
        index_col=0,
    )
    share = table.loc["digit 0"].sum() / table.to_numpy().sum()
    assert 0.5 < share < 0.7
    assert {row["majority_rate"] for row in compared.rows} == {share} == {compared.majority_rate}
    (logged,) = workspace.client.get_metric_history(compared.rows[0]["run_id"], "majority_rate")
    assert logged.step == 1
    assert (
        f"Always answering the largest class would be right in {share:.1%} of the validation "
        "images."
    ) in compared.notes


def test_runs_that_have_not_logged_the_majority_are_compared_without(workspace: Workspace) -> None:
    workspace.client.create_run(
        workspace.experiment_id,
        tags={names.EXPERIMENT: "quick", names.STEP: "train", names.STATE: names.COMPLETE},
    )
    compared = summarise(workspace)
    assert compared.majority_rate is None
    assert not any("largest class" in note for note in compared.notes)
