"""Small real trainings."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import safetensors.torch
import torch

from pipeline import metrics, models
from pipeline.config import Configuration, merge
from pipeline.data.prepare_data import prepare
from pipeline.data.prepared import Prepared
from pipeline.errors import OutOfMemory, TakenOver, TrainingFailed
from pipeline.models.state_dicts import load_state
from pipeline.training.callback import Callback
from pipeline.training.checkpoint import Checkpoints, save_weights, weights_of
from pipeline.training.context import TrainingContext
from pipeline.training.fit import fit
from pipeline.training.fit_result import FitResult
from pipeline.training.inference import main_output, predict_logits
from pipeline.training.precision import Numerics
from pipeline.training.schedule import lr_at
from tests.conftest import PROJECT
from tests.training.small_training import BASE, METRICS, TIMES, build_context, ends_by


class Trained(NamedTuple):
    fitted: FitResult
    setting: TrainingContext
    configuration: Configuration

    @property
    def history(self) -> list[dict[str, float]]:
        return [
            {name: value for name, value in epoch.items() if name not in TIMES}
            for epoch in self.fitted.history
        ]


Train = Callable[..., Trained]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(Configuration.model_validate(BASE).data, tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def train(digits: Prepared, tmp_path: Path) -> Train:
    def run(changes: dict[str, Any] | None = None, *callbacks: Callback) -> Trained:
        configuration = Configuration.model_validate(merge(BASE, changes or {}))
        setting = build_context(configuration, digits, tmp_path)
        return Trained(fit(configuration, setting, callbacks), setting, configuration)

    return run


def test_a_small_network_learns_the_digits(train: Train) -> None:
    trained = train({"training": {"epochs": 6}})
    losses = [epoch["train/loss"] for epoch in trained.history]
    assert losses[-1] < losses[0] / 2
    assert trained.fitted.best["val/accuracy"] > 0.6


def test_each_epoch_has_all_metrics(train: Train) -> None:
    fitted = train().fitted
    assert [set(epoch) for epoch in fitted.history] == [METRICS] * 3
    assert all(np.isfinite(list(epoch.values())).all() for epoch in fitted.history)
    assert all(
        0 <= epoch[name] <= 1
        for epoch in fitted.history
        for name in METRICS
        if name.endswith(("accuracy", "f1_macro"))
    )
    assert fitted.seconds >= sum(epoch["epoch_seconds"] for epoch in fitted.history) > 0


def test_the_same_seed_gives_the_same_history_bit_for_bit(train: Train) -> None:
    changes = {"data": {"augment": [{"RandomRotation": 10}]}, "model": {"dropout": 0.3}}
    first, second = train(changes), train(changes)
    assert first.history == second.history
    assert np.array_equal(first.fitted.logits, second.fitted.logits)


def test_workers_do_not_change_the_history(train: Train) -> None:
    changes: dict[str, Any] = {
        "data": {"augment": [{"RandomRotation": 10}]},
        "model": {"dropout": 0.3},
        "training": {"epochs": 2},
    }
    alone, helped = train(changes), train(merge(changes, {"data": {"workers": 2}}))
    assert alone.history == helped.history


def test_another_seed_gives_another_history(train: Train) -> None:
    assert train().history != train({"training": {"seed": 1}}).history


def test_equal_scores_keep_the_later_epoch(train: Train) -> None:
    trained = train({"optimizer": {"name": "sgd", "lr": 1e-12}})
    assert len({epoch["val/accuracy"] for epoch in trained.history}) == 1
    assert trained.fitted.best_epoch == 3


def test_the_best_epoch_is_the_last_of_those_with_the_highest_accuracy(train: Train) -> None:
    trained = train({"optimizer": {"lr": 0.03}, "training": {"epochs": 6}})
    accuracies = [epoch["val/accuracy"] for epoch in trained.history]
    assert trained.fitted.best_epoch == max(
        range(1, 7), key=lambda epoch: (accuracies[epoch - 1], epoch)
    )
    assert trained.fitted.best == trained.fitted.history[trained.fitted.best_epoch - 1]


class KeepBest(Callback):
    """Keeps a copy of the weights of each best epoch."""

    def __init__(self, setting: TrainingContext) -> None:
        self.module = setting.network.module
        self.kept: dict[int, dict[str, torch.Tensor]] = {}

    def on_epoch(self, epoch: int, values: dict[str, float], is_best: bool) -> None:
        if is_best:
            self.kept[epoch] = {
                name: value.clone() for name, value in self.module.state_dict().items()
            }


def test_the_checkpoint_is_the_best_epoch(digits: Prepared, tmp_path: Path) -> None:
    configuration = Configuration.model_validate(
        merge(BASE, {"optimizer": {"name": "adam", "lr": 0.03}, "training": {"epochs": 6}})
    )
    setting = build_context(configuration, digits, tmp_path)
    best = KeepBest(setting)
    fitted = fit(configuration, setting, [best])
    state = safetensors.torch.load_file(setting.checkpoint)
    kept = best.kept[fitted.best_epoch]
    assert max(best.kept) == fitted.best_epoch
    assert state.keys() == kept.keys() and all(
        torch.equal(state[name], kept[name]) for name in state
    )
    assert [file.name for file in tmp_path.iterdir()] == ["best.safetensors"]


def test_the_checkpoint_gives_the_logits_of_the_best_epoch(train: Train) -> None:
    fitted, setting, configuration = train({"training": {"epochs": 4}})
    load_state(setting.network.module, setting.checkpoint, configuration.model.name)
    labels, logits = predict_logits(
        setting.network.module, setting.val, setting.preprocessing, setting.device
    )
    assert np.array_equal(labels, fitted.labels) and np.array_equal(logits, fitted.logits)
    assert logits.shape == (setting.val.num_images, 10)
    scores = metrics.score(labels, logits)
    assert {f"val/{name}": value for name, value in scores.items()}.items() <= fitted.best.items()


def relabelled(digits: Prepared, folder: Path, changes: dict[str, Any], epochs: int = 3) -> Trained:
    """Train, and then go on with labels that are all wrong."""
    configuration = Configuration.model_validate(merge(BASE, {"training": {"epochs": epochs}}))
    setting = build_context(configuration, digits, folder)
    fit(configuration, setting)
    wrong = Configuration.model_validate(merge(BASE, changes))
    setting_wrong = build_context(wrong, digits, folder, labels=(digits.labels() + 1) % 10)
    load_state(setting_wrong.network.module, setting.checkpoint, "small_cnn")
    fitted = fit(wrong, setting_wrong)
    return Trained(fitted, setting_wrong, wrong)


@pytest.mark.parametrize("patience", [1, 2])
def test_patience_stops_after_so_many_worse_epochs(
    digits: Prepared, tmp_path: Path, patience: int
) -> None:
    changes = {
        "optimizer": {"name": "adam", "lr": 1e-3},
        "training": {"epochs": 12, "patience": patience},
    }
    trained = relabelled(digits, tmp_path, changes)
    assert len(trained.history) == trained.fitted.best_epoch + patience < 12
    after = trained.history[trained.fitted.best_epoch :]
    assert all(epoch["val/accuracy"] < trained.fitted.best["val/accuracy"] for epoch in after)


def test_equal_scores_do_not_use_up_patience(train: Train) -> None:
    trained = train(
        {"optimizer": {"name": "sgd", "lr": 1e-12}, "training": {"epochs": 4, "patience": 1}}
    )
    assert len(trained.history) == 4


def test_no_patience_trains_all_epochs(digits: Prepared, tmp_path: Path) -> None:
    assert len(relabelled(digits, tmp_path, {"training": {"epochs": 4}}).history) == 4


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_each_optimizer_trains(train: Train, name: str) -> None:
    lr = {"sgd": 0.05, "adam": 3e-3, "adamw": 3e-3}[name]
    losses = [
        epoch["train/loss"]
        for epoch in train(
            {"optimizer": {"name": name, "lr": lr}, "training": {"epochs": 4}}
        ).history
    ]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["none", "exponential", "step", "cosine", "plateau"])
def test_each_schedule_trains_at_its_learning_rates(train: Train, name: str) -> None:
    trained = train(
        {"schedule": {"name": name, "warmup_epochs": 0.5, "step_epochs": 1, "plateau_epochs": 9}}
    )
    schedule, steps = trained.configuration.schedule, len(trained.setting.train)
    assert trained.fitted.lrs == [
        lr_at(step, schedule, 3e-3, steps, 3 * steps) for step in range(3 * steps)
    ]
    assert [epoch["lr"] for epoch in trained.history] == trained.fitted.lrs[steps - 1 :: steps]
    assert trained.history[-1]["train/loss"] < trained.history[0]["train/loss"]


def test_plateau_decays_when_the_loss_stands_still(train: Train) -> None:
    schedule = {"name": "plateau", "plateau_epochs": 1, "gamma": 0.5, "min_lr": 2e-13}
    trained = train(
        {"optimizer": {"name": "sgd", "lr": 1e-12}, "schedule": schedule, "training": {"epochs": 5}}
    )
    steps = len(trained.setting.train)
    assert len({epoch["val/loss"] for epoch in trained.history}) == 1
    assert trained.fitted.lrs[::steps] == pytest.approx(
        [1e-12, 1e-12, 5e-13, 2.5e-13, 2e-13], abs=0
    )


def test_a_loss_that_is_not_finite_ends_the_training_with_its_step(train: Train) -> None:
    with ends_by(
        TrainingFailed,
        r"the loss is not finite at step \d+ of epoch 1 \((nan|inf)\); "
        r"a lower optimizer\.lr may help; no weights are kept",
    ) as ended:
        train({"optimizer": {"name": "sgd", "lr": 1e12}})
    assert ended.result.history == []


class Spoil(Callback):
    """Makes the weights NaN after an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.parameters: list[torch.nn.Parameter] = []

    def on_epoch(self, epoch: int, values: dict[str, float], is_best: bool) -> None:
        if epoch == self.epoch:
            for parameter in self.parameters:
                parameter.data.fill_(float("nan"))


def test_the_step_of_a_failure_is_counted_within_its_epoch(
    digits: Prepared, tmp_path: Path
) -> None:
    configuration = Configuration.model_validate(BASE)
    setting, spoil = build_context(configuration, digits, tmp_path), Spoil(epoch=1)
    spoil.parameters = list(setting.network.module.parameters())
    with ends_by(TrainingFailed, "step 1 of epoch 2 "):
        fit(configuration, setting, [spoil])


def test_a_failure_leaves_the_best_weights_so_far(digits: Prepared, tmp_path: Path) -> None:
    configuration = Configuration.model_validate(BASE)
    setting, spoil = build_context(configuration, digits, tmp_path), Spoil(epoch=2)
    spoil.parameters = list(setting.network.module.parameters())
    with ends_by(TrainingFailed, r"the weights of epoch [12], the best so far, are kept") as ended:
        fit(configuration, setting, [spoil])
    assert len(ended.result.history) == 2
    assert all(
        value.isfinite().all() for value in safetensors.torch.load_file(setting.checkpoint).values()
    )


class Recorder(Callback):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.steps: list[tuple[int, float, float]] = []

    def on_start(self, epochs: int, steps_per_epoch: int) -> None:
        self.events.append(("start", epochs, steps_per_epoch))

    def on_step(self, epoch: int, loss: float, accuracy: float, lr: float) -> None:
        self.steps.append((epoch, loss, accuracy))

    def on_epoch(self, epoch: int, values: dict[str, float], is_best: bool) -> None:
        self.events.append(("epoch", epoch, is_best))


def test_callbacks_are_told_of_each_step_and_epoch(train: Train) -> None:
    recorder, plain = Recorder(), Callback()
    trained = train({}, recorder, plain)
    steps = len(trained.setting.train)
    assert recorder.events[0] == ("start", 3, steps)
    assert [event[:2] for event in recorder.events[1:]] == [("epoch", epoch) for epoch in (1, 2, 3)]
    assert [epoch for _, epoch, is_best in recorder.events[1:] if is_best][
        -1
    ] == trained.fitted.best_epoch
    assert [epoch for epoch, _, _ in recorder.steps] == [
        epoch for epoch in (1, 2, 3) for _ in range(steps)
    ]
    assert recorder.steps[steps - 1][1:] == (
        trained.history[0]["train/loss"],
        trained.history[0]["train/accuracy"],
    )


class GivenUpError(Exception):
    """An exception of the outside."""


class GiveUp(Callback):
    """Ends the training at an epoch, or at the first step where that is 0."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_step(self, epoch: int, loss: float, accuracy: float, lr: float) -> None:
        if self.epoch == 0:
            raise GivenUpError

    def on_epoch(self, epoch: int, values: dict[str, float], is_best: bool) -> None:
        if epoch == self.epoch:
            raise GivenUpError


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_an_exception_of_a_callback_ends_the_training_with_what_there_is(
    train: Train, epoch: int
) -> None:
    with ends_by(GivenUpError) as ended:
        train({}, GiveUp(epoch))
    fitted = ended.result
    assert len(fitted.history) == epoch
    assert (fitted.best_epoch > 0) == (len(fitted.labels) > 0) == (epoch > 0)


def test_a_frozen_backbone_is_trained_in_its_head_only(train: Train) -> None:
    trained = train(
        {"model": {"name": "resnet18", "freeze": "backbone"}, "training": {"epochs": 2}}
    )
    torch.manual_seed(0)
    before = models.build(trained.configuration.model, 10, 16).module.state_dict()
    after = trained.setting.network.module.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        "fc.weight",
        "fc.bias",
    }


@pytest.mark.parametrize("batch_size", [1, 299])
def test_batches_of_any_size_train(train: Train, batch_size: int) -> None:
    trained = train({"data": {"batch_size": batch_size}, "training": {"epochs": 1}})
    assert len(trained.fitted.lrs) == len(trained.setting.train) > 0


def test_weights_that_share_memory_are_saved(tmp_path: Path) -> None:
    module = torch.nn.ModuleDict({"one": torch.nn.Linear(2, 2)})
    module["two"] = module["one"]
    save_weights(weights_of(module), tmp_path / "weights.safetensors")
    state = safetensors.torch.load_file(tmp_path / "weights.safetensors")
    assert torch.equal(state["one.weight"], state["two.weight"])


def test_the_main_output_comes_before_auxiliary_ones() -> None:
    logits = torch.ones(1)
    assert main_output(logits) is logits
    assert main_output((logits, torch.zeros(1))) is logits


def test_a_best_metric_of_another_name_chooses_the_epoch(train: Train) -> None:
    for metric in ("val/f1_macro", "val/balanced_accuracy", "val/loss"):
        trained = train(
            {
                "training": {"epochs": 6, "best_metric": metric},
                "optimizer": {"name": "adam", "lr": 0.03},
            }
        )
        values = [epoch[metric] for epoch in trained.fitted.history]
        best = min(values) if metric == "val/loss" else max(values)
        assert trained.fitted.best_epoch == max(
            number for number, value in enumerate(values, 1) if value == best
        )


def test_label_smoothing_raises_the_training_loss_alone(train: Train) -> None:
    plain, smooth = (
        train({"training": {"epochs": 1}}),
        train({"training": {"epochs": 1, "label_smoothing": 0.3}}),
    )
    logits, labels = torch.from_numpy(smooth.fitted.logits), torch.from_numpy(smooth.fitted.labels)
    assert smooth.history[0]["val/loss"] == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-5
    )
    assert smooth.history[0]["train/loss"] != plain.history[0]["train/loss"]


class Norms(Callback):
    """Takes the norm of the gradients, and how far the weights have moved, at each step."""

    def __init__(self) -> None:
        self.module: torch.nn.Module | None = None
        self.norms: list[float] = []
        self.moved: list[float] = []

    def on_backward(self, epoch: int, step: int) -> None:
        assert self.module is not None
        self.norms.append(
            float(
                torch.nn.utils.get_total_norm(
                    [parameter.grad for parameter in self.module.parameters()]
                )
            )
        )
        self.before = [parameter.detach().clone() for parameter in self.module.parameters()]

    def on_step(self, epoch: int, loss: float, accuracy: float, lr: float) -> None:
        assert self.module is not None
        moved = [
            parameter.detach() - before
            for parameter, before in zip(self.module.parameters(), self.before, strict=True)
        ]
        self.moved.append(float(torch.nn.utils.get_total_norm(moved)))


def test_gradients_are_clipped_to_the_norm(digits: Prepared, tmp_path: Path) -> None:
    sgd = {"name": "sgd", "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0}
    configuration = Configuration.model_validate(
        merge(BASE, {"optimizer": sgd, "training": {"clip_norm": 0.05, "epochs": 1}})
    )
    setting, norms = build_context(configuration, digits, tmp_path), Norms()
    norms.module = setting.network.module
    fit(configuration, setting, [norms])
    assert max(norms.norms) > 0.1
    assert [moved / 0.1 for moved in norms.moved] == pytest.approx(
        [min(norm, 0.05) for norm in norms.norms], rel=1e-3
    )


OUT_OF_MEMORY = """
import resource, sys
from pathlib import Path
from pipeline.config import Configuration, merge
from pipeline.data.prepare_data import prepare
from pipeline.training.fit import fit
from pipeline.errors import TrainingFailed
from tests.training.small_training import BASE, build_context
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    large = {"data": {"image_size": 256, "batch_size": 200}, "model": {"name": "small_cnn"}}
    configuration = Configuration.model_validate(merge(BASE, large))
    setting = build_context(configuration, prepare(configuration.data, folder), folder)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), used + (1 << 30)))
    try:
        fit(configuration, setting)
    except TrainingFailed as error:
        print(error)
"""


@pytest.mark.thorough
def test_out_of_memory_names_the_batch_size_that_fits(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    arguments = [sys.executable, "-c", OUT_OF_MEMORY, str(tmp_path)]
    done = subprocess.run(
        arguments, capture_output=True, text=True, env=environment, cwd=tmp_path, check=True
    )
    found = re.fullmatch(
        (
            r"out of memory at data\.batch_size 200 \(step 1 of epoch 1\); data\.batch_size "
            r"(\d+) fits\n"
        ),
        done.stdout,
    )
    assert found is not None, done.stdout + done.stderr
    assert int(found[1]) in (100, 50, 25, 12, 6, 3)


class NoRoom(Callback):
    """Asks once, where the gradients are there, for more memory than any machine has."""

    def __init__(self) -> None:
        self.asked = 0

    def on_backward(self, epoch: int, step: int) -> None:
        self.asked += 1
        if self.asked == 1:
            torch.empty(2**60, dtype=torch.uint8)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_out_of_memory_in_the_update_is_told_in_every_precision(
    digits: Prepared, tmp_path: Path, precision: str
) -> None:
    configuration = Configuration.model_validate(BASE)
    setting = replace(build_context(configuration, digits, tmp_path), numerics=Numerics(precision))
    no_room = NoRoom()
    with ends_by(
        OutOfMemory,
        r"^out of memory at data\.batch_size 32 \(step 1 of epoch 1\); data\.batch_size 16 fits$",
    ) as ended:
        fit(configuration, setting, [no_room])
    # What is tried to tell the size that fits is no part of the training.
    assert (no_room.asked, ended.result.lrs) == (1, [])


HALF_A_STATE = """
import resource, sys
from dataclasses import replace
from pathlib import Path
from torch import nn
from pipeline.config import Configuration
from pipeline.data.prepare_data import prepare
from pipeline.models import Network
from pipeline.training.fit import fit
from pipeline.errors import TrainingFailed
from tests.training.small_training import BASE, build_context


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide, self.fc = nn.Linear(2**13, 2**13), nn.Linear(3 * 16 * 16, 10)

    def forward(self, images):
        return self.fc(images.flatten(1)) + 0 * self.wide.weight.sum() + 0 * self.wide.bias.sum()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    configuration = Configuration.model_validate(BASE)
    setting = build_context(configuration, prepare(configuration.data, folder), folder)
    setting = replace(setting, network=Network(Wide(), "fc", None))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    # The gradient of 256 MiB and one of Adam's two moments fit, the other one does not.
    resource.setrlimit(resource.RLIMIT_AS, (used + 700 * 2**20, used + 700 * 2**20))
    try:
        fit(configuration, setting)
    except TrainingFailed as error:
        print(error)
"""


@pytest.mark.thorough
def test_out_of_memory_in_the_midst_of_the_first_update_is_told(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    arguments = [sys.executable, "-c", HALF_A_STATE, str(tmp_path)]
    done = subprocess.run(
        arguments, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert done.stdout == (
        "out of memory at data.batch_size 32 (step 1 of epoch 1); not even one image fits; a "
        "smaller data.image_size or network may\n"
    ), done.stderr


@pytest.mark.slow
def test_a_compiled_network_learns_the_same(train: Train) -> None:
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs g++ on a CPU")
    # One batch size, or all is compiled twice.
    one_step = {"data": {"batch_size": 1000}, "training": {"epochs": 1}}
    plain, compiled = train(one_step), train(merge(one_step, {"training": {"compile": True}}))
    assert np.abs(plain.fitted.logits - compiled.fitted.logits).max() < 1e-3
    assert (
        plain.setting.network.module.state_dict().keys()
        == compiled.setting.network.module.state_dict().keys()
    )


@pytest.mark.slow
def test_without_a_compiler_compiling_is_refused() -> None:
    code = (
        "import torch; from pipeline.training.device import need_compiler\n"
        "try:\n"
        "    need_compiler(torch.device('cpu'))\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)"
    )
    environment = {**os.environ, "PATH": "", "CXX": "", "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.startswith("UserError training.compile: needs a C++ compiler"), (
        done.stdout + done.stderr
    )


@pytest.mark.parametrize("seconds", [0, 3600])
def test_a_training_that_another_process_has_taken_over_writes_no_checkpoint(
    digits: Prepared, tmp_path: Path, seconds: float
) -> None:
    def refuse() -> None:
        raise TakenOver("trial 3 was taken over")

    configuration = Configuration.model_validate(
        merge(BASE, {"training": {"checkpoint_seconds": seconds}})
    )
    setting = build_context(configuration, digits, tmp_path)
    guarded = replace(setting, resume=Checkpoints(tmp_path), guard=refuse)
    with pytest.raises(TakenOver):
        fit(configuration, guarded)
    assert not guarded.checkpoint.exists() and not list(tmp_path.glob("resume-*"))
