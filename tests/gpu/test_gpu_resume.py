"""A training on a GPU that is taken up again.

There the same step need not give the same numbers twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline import metrics
from pipeline.data.prepared import Prepared
from pipeline.models.state_dicts import load_state
from pipeline.training.callback import Callback
from pipeline.training.checkpoint import Checkpoints, State
from pipeline.training.epoch_log import EpochLog
from pipeline.training.fit import fit
from pipeline.training.inference import predict_logits
from pipeline.training.precision import Numerics
from tests.gpu.conftest import Tell
from tests.gpu.engine import ON_GPU, configuration_of, setting_of, train
from tests.training.small_training import ends_by

EPOCHS = 6


class Run:
    """What a run keeps of its metrics, in the order of logging, and how MLflow reads it."""

    def __init__(self) -> None:
        self.logged: list[tuple[str, int, float]] = []

    def write(self, values: Mapping[str, float], step: int) -> None:
        self.logged += [(name, step, value) for name, value in values.items()]

    def latest(self, name: str) -> float:
        """Return the value of the highest step, and of that the last one."""
        return max(
            enumerate(self.logged), key=lambda entry: (entry[1][0] == name, entry[1][1], entry[0])
        )[1][2]

    def history(self) -> dict[int, dict[str, float]]:
        """Return the last value of each metric at each epoch."""
        found: dict[int, dict[str, float]] = {}
        for name, step, value in self.logged:
            if not name.startswith("best/"):
                found.setdefault(step, {})[name] = value
        return found

    def log(self) -> EpochLog:
        """Return what goes on logging to it."""
        told = {name: self.latest(name) for name, _, _ in self.logged if name.startswith("best/")}
        return EpochLog(self.write, {}, "val/accuracy", self.history(), told)


class Early(Checkpoints):
    """Writes no checkpoint after the second epoch.

    So it is if a kill comes long after the last checkpoint.
    """

    def save(self, state: State, number: int, best: Path | None = None) -> None:
        if state["epoch"] <= 2:
            super().save(state, number, best)


class StoppedError(Exception):
    """A kill."""


class Stop(Callback):
    """Kills a training after an epoch."""

    def on_epoch(self, epoch: int, values: dict[str, float], is_best: bool) -> None:
        if epoch == EPOCHS - 1:
            raise StoppedError


class TakenUp(Callback):
    """Notes after which epoch a training goes on."""

    epoch = -1

    def on_resume(self, steps: int, history: Sequence[dict[str, float]]) -> None:
        self.epoch = len(history)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_training_taken_up_tells_the_scores_of_the_weights_that_it_keeps(
    digits: Prepared, tmp_path: Path, tell: Tell, device: torch.device, precision: str
) -> None:
    # On a processor the same numbers would come again: there another format stands for a GPU.
    configuration = configuration_of(
        model={"dropout": 0.2},
        training={"epochs": EPOCHS, "checkpoint_seconds": 0, "precision": precision},
        optimizer={"lr": 1e-2},
    )
    run, from_where = Run(), TakenUp()
    with setting_of(configuration, digits, tmp_path) as setting, ends_by(StoppedError):
        fit(
            configuration,
            replace(setting, resume=Early(tmp_path)),
            [run.log(), Stop()],
        )
    before = run.history()
    assert list(before) == list(range(1, EPOCHS))
    with setting_of(configuration, digits, tmp_path) as setting:
        setting = replace(setting, numerics=Numerics("bf16"))
        log = run.log()
        fitted = fit(configuration, setting, [from_where, log])
        log.conclude()
        load_state(setting.network.module, setting.checkpoint, configuration.model.name)
        labels, logits = predict_logits(
            setting.network.module, setting.val, setting.preprocessing, device, setting.numerics
        )
    kept = metrics.score(labels, logits)
    history = run.history()
    again = [epoch for epoch in before if before[epoch] != history[epoch]]
    tell(
        f"epochs {again} came out otherwise; best/val_accuracy "
        f"{run.latest('best/val_accuracy'):.4f}, of the weights {kept['accuracy']:.4f}"
    )
    assert from_where.epoch <= 1 and again
    assert [
        step for name, step, _ in run.logged if name == "val/loss" and step <= from_where.epoch
    ] == list(range(1, from_where.epoch + 1))
    assert [history[epoch]["val/loss"] for epoch in range(1, EPOCHS + 1)] == [
        values["val/loss"] for values in fitted.history
    ]
    assert run.latest("best/epoch") == fitted.best_epoch
    assert run.latest("best/val_accuracy") == pytest.approx(kept["accuracy"], abs=2 / len(labels))
    assert run.latest("best/val_loss") == pytest.approx(kept["loss"], rel=0.02)


def test_stopped_and_taken_up_with_deterministic_kernels_it_ends_with_the_same_bits(
    digits: Prepared, tmp_path: Path
) -> None:
    changes = {"epochs": 3, "checkpoint_seconds": 0, "deterministic": True}
    configuration = configuration_of(
        model={"dropout": 0.2}, training={**changes, "precision": "fp16" if ON_GPU else "fp32"}
    )

    class StopEarly(Callback):
        def on_step(self, epoch: int, loss: float, accuracy: float, lr: float) -> None:
            if epoch == 2:
                raise StoppedError

    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = train(configuration, digits, tmp_path / "whole")
    with ends_by(StoppedError):
        train(configuration, digits, tmp_path / "parts", [StopEarly()])
    assert list((tmp_path / "parts").glob("resume-*.pt"))
    parts = train(configuration, digits, tmp_path / "parts")
    assert [epoch["val/loss"] for epoch in parts.fitted.history] == [
        epoch["val/loss"] for epoch in whole.fitted.history
    ]
    assert parts.checkpoint.read_bytes() == whole.checkpoint.read_bytes()
