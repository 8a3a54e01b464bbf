"""Event files and histories of real trainings."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.config import Configuration, merge
from pipeline.data.prepare_data import prepare
from pipeline.data.prepared import Prepared
from pipeline.training.callback import Callback
from pipeline.training.checkpoint import Checkpoints, random_states
from pipeline.training.context import TrainingContext
from pipeline.training.fit import fit
from pipeline.training.fit_result import FitResult
from pipeline.training.layer_groups import histogram, kernels, layer_groups, subsample
from pipeline.training.tensorboard import Watch
from tests.conftest import PROJECT
from tests.training.small_training import BASE, TIMES, build_context, ends_by
from tests.training.test_fit_resumed import StopAfter, StoppedError

pytestmark = pytest.mark.slow

SMALL_GROUPS = ["conv1", "conv2", "conv3", "fc"]
# Samples are never left out, however busy the machine is; the time of some tests is too short for
# any to be afforded.
RICH = -1e6


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(Configuration.model_validate(BASE).data, tmp_path_factory.mktemp("prepared"))


class Watched:
    """A training that is watched, and what came of it."""

    def __init__(
        self,
        prepared: Prepared,
        folder: Path,
        changes: dict[str, Any],
        seconds: float = RICH,
        resume: bool = False,
    ) -> None:
        self.configuration = Configuration.model_validate(merge(BASE, changes))
        self.setting = replace(
            build_context(self.configuration, prepared, folder),
            resume=Checkpoints(folder) if resume else None,
        )
        self.fitted, self.folder = FitResult(), folder / "tensorboard"
        self.watch = Watch(self.setting.network.module, self.folder)
        self.watch.seconds = seconds

    def train(self, *callbacks: Callback) -> Watched:
        try:
            self.fitted = fit(self.configuration, self.setting, [self.watch, *callbacks])
        finally:
            self.watch.close()
        return self

    def events(self) -> EventAccumulator:
        events = EventAccumulator(str(self.folder), size_guidance={"scalars": 0, "histograms": 0})
        return events.Reload()

    def contents(self) -> dict[str, Any]:
        """Return steps and values of all that does not depend on time, as TensorBoard reads it."""
        events = self.events()
        tags = events.Tags()
        scalars = {
            tag: [(one.step, one.value) for one in events.Scalars(tag)]
            for tag in tags["scalars"]
            if not tag.startswith("speed/")
        }
        histograms = {
            tag: [(one.step, list(one.histogram_value.bucket)) for one in events.Histograms(tag)]
            for tag in tags["histograms"]
        }
        return scalars | histograms

    @property
    def epochs(self) -> list[list[int]]:
        return [history.epochs for history in self.watch.histories.values()]


class Gradients(Callback):
    """Keeps the norm of all gradients of each step, computed another way."""

    def __init__(self, setting: TrainingContext) -> None:
        self.module = setting.network.module
        self.norms: dict[int, float] = {}

    def on_backward(self, epoch: int, step: int) -> None:
        gradients = [
            parameter.grad for parameter in self.module.parameters() if parameter.grad is not None
        ]
        self.norms[step] = (
            float(sum(gradient.double().square().sum() for gradient in gradients)) ** 0.5
        )


def test_the_event_file_has_lr_gradients_weights_and_metrics(
    digits: Prepared, tmp_path: Path
) -> None:
    watched = Watched(digits, tmp_path, {"schedule": {"name": "cosine"}})
    gradients = Gradients(watched.setting)
    fitted, events = watched.train(gradients).fitted, watched.events()
    tags = events.Tags()
    assert set(tags["histograms"]) == {
        f"{kind}/{group}" for kind in ("weights", "gradients") for group in SMALL_GROUPS
    }
    metrics = {
        name: name if "/" in name else f"speed/{name}" for name in fitted.history[0] if name != "lr"
    }
    assert set(tags["scalars"]) == {"gradient_norm", "lr", *metrics.values()}
    lrs = events.Scalars("lr")
    assert [one.step for one in lrs] == list(range(1, len(fitted.lrs) + 1))
    assert [one.value for one in lrs] == pytest.approx(fitted.lrs)
    for name, tag in metrics.items():
        assert [one.value for one in events.Scalars(tag)] == pytest.approx(
            [epoch[name] for epoch in fitted.history]
        )
        assert [one.step for one in events.Scalars(tag)] == [1, 2, 3]
    for kind, epochs in (("weights", [0, 1, 2, 3]), ("gradients", [1, 2, 3])):
        assert [
            [one.step for one in events.Histograms(f"{kind}/{group}")] for group in SMALL_GROUPS
        ] == [epochs] * 4
    norms = events.Scalars("gradient_norm")
    assert [one.step for one in norms][-1] == len(fitted.lrs)
    assert len(norms) >= 9
    assert [one.value for one in norms] == pytest.approx(
        [gradients.norms[one.step] for one in norms], rel=1e-5
    )


def test_histograms_are_those_of_the_kernels(digits: Prepared, tmp_path: Path) -> None:
    watched = Watched(digits, tmp_path, {"training": {"epochs": 2}}).train()
    events = watched.events()
    for name, parameters in layer_groups(watched.setting.network.module).items():
        values = subsample(kernels(parameters))
        edges, counts = histogram(values)
        history, event = (
            watched.watch.histories[name],
            events.Histograms(f"weights/{name}")[-1].histogram_value,
        )
        assert np.array_equal(history.edges[-1], edges) and np.array_equal(
            history.counts[-1], counts
        )
        assert not np.array_equal(history.counts[0], history.counts[-1])
        assert (event.min, event.max, event.num) == (values.min(), values.max(), len(values))
        assert event.sum == pytest.approx(values.sum(), rel=1e-4)
        assert event.bucket == counts.tolist() and event.bucket_limit == edges[1:].tolist()


@pytest.mark.parametrize("name", ["small_cnn", "resnet18"])
def test_watching_changes_no_bit(digits: Prepared, tmp_path: Path, name: str) -> None:
    changes = {
        "data": {"augment": [{"RandomRotation": 10}], "batch_size": 64},
        "model": {"name": name, "dropout": 0.3},
        "training": {"epochs": 2},
    }
    outcomes = []
    for folder in (tmp_path / "watched", tmp_path / "alone"):
        folder.mkdir()
        watched = Watched(digits, folder, changes)
        callbacks = [watched.watch] if folder.name == "watched" else []
        fitted = fit(watched.configuration, watched.setting, callbacks)
        watched.watch.close()
        history = [
            {name: value for name, value in epoch.items() if name not in TIMES}
            for epoch in fitted.history
        ]
        state = watched.setting.network.module.state_dict()
        outcomes.append(
            (
                history,
                {name: value.numpy().tobytes() for name, value in state.items()},
                str(random_states()),
            )
        )
    assert outcomes[0] == outcomes[1]


def test_a_frozen_backbone_is_not_watched(digits: Prepared, tmp_path: Path) -> None:
    changes = {"model": {"name": "resnet18", "freeze": "backbone"}, "training": {"epochs": 1}}
    watched = Watched(digits, tmp_path, changes).train()
    assert watched.events().Tags()["histograms"] == ["weights/fc", "gradients/fc"]
    assert list(watched.watch.histories) == ["fc"]


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_without_time_left_only_the_first_and_the_last_epoch_are_looked_at(
    digits: Prepared, tmp_path: Path, epochs: int
) -> None:
    watched = Watched(digits, tmp_path, {"training": {"epochs": epochs}}, seconds=1e6).train()
    ends = sorted({1, epochs})
    assert watched.epochs == [[0, *ends]] * 4
    events, steps = watched.events(), len(watched.setting.train)
    assert [one.step for one in events.Histograms("gradients/fc")] == ends
    assert [one.step for one in events.Scalars("gradient_norm")] == [
        epoch * steps for epoch in ends
    ]
    assert len(events.Scalars("lr")) == epochs * steps


def test_many_epochs_are_thinned(digits: Prepared, tmp_path: Path) -> None:
    watched = Watched(
        digits, tmp_path, {"training": {"epochs": 61}, "data": {"batch_size": 300}}
    ).train()
    assert watched.epochs == [[0, 1, *range(4, 61, 3), 61]] * 4
    assert len(watched.events().Scalars("val/accuracy")) == 61


@pytest.mark.parametrize("after", [3, 11])
def test_a_resumed_training_goes_on_with_its_histories(
    digits: Prepared, tmp_path: Path, after: int
) -> None:
    every_step = {"training": {"checkpoint_seconds": 0}}
    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    whole = Watched(digits, tmp_path / "whole", every_step).train()
    with ends_by(StoppedError):
        Watched(digits, tmp_path / "parts", every_step, resume=True).train(StopAfter(after))
    resumed = Watched(digits, tmp_path / "parts", every_step, resume=True).train()
    assert resumed.epochs == whole.epochs == [[0, 1, 2, 3]] * 4
    for name, history in whole.watch.histories.items():
        assert all(map(np.array_equal, history.counts, resumed.watch.histories[name].counts))
        assert all(map(np.array_equal, history.edges, resumed.watch.histories[name].edges))
    assert resumed.contents() == whole.contents()


@pytest.mark.parametrize("from_step", [0, 2, 3])
def test_what_is_done_again_stands_in_the_event_files_once(
    digits: Prepared, tmp_path: Path, from_step: int
) -> None:
    every_step = {"training": {"checkpoint_seconds": 0}, "data": {"batch_size": 100}}
    parts = tmp_path / "parts"
    for folder in (tmp_path / "whole", parts):
        folder.mkdir()
    whole = Watched(digits, tmp_path / "whole", every_step).train()
    with ends_by(StoppedError):
        Watched(digits, parts, every_step, resume=True).train(StopAfter(from_step))
    early = {file: file.read_bytes() for file in parts.glob("resume-*")}
    with ends_by(StoppedError):
        Watched(digits, parts, every_step, resume=True).train(StopAfter(5))
    # Killed before later checkpoints were there, and within a record.
    for file in parts.glob("resume-*"):
        file.unlink()
    for file, content in early.items():
        file.write_bytes(content)
    latest = max((parts / "tensorboard").iterdir(), key=lambda file: file.stat().st_mtime_ns)
    latest.write_bytes(latest.read_bytes()[:-5])
    resumed = Watched(digits, parts, every_step, resume=True).train()
    assert resumed.contents() == whole.contents()


def test_the_state_is_read_back_without_unpickling(digits: Prepared, tmp_path: Path) -> None:
    watched = Watched(digits, tmp_path, {"training": {"epochs": 1}}).train()
    torch.save(watched.watch.state(), tmp_path / "state.pt")
    again = Watch(watched.setting.network.module, tmp_path)
    again.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert str(again.state()) == str(watched.watch.state())
    again.load_state({})
    assert again.histories == {} == again.state()


def test_values_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    module = torch.nn.ModuleDict({"broken": torch.nn.Linear(2, 2), "partly": torch.nn.Linear(2, 2)})
    module["broken"].weight.data.fill_(float("nan"))
    module["partly"].weight.data[0].fill_(float("inf"))
    watch = Watch(module, tmp_path)
    watch.on_start(1, 1)
    watch.on_resume(0, [])
    watch.close()
    assert {name: history.counts[0].sum() for name, history in watch.histories.items()} == {
        "partly": 2
    }


def test_closing_is_allowed_at_any_time(tmp_path: Path) -> None:
    watch = Watch(torch.nn.Linear(2, 2), tmp_path)
    watch.flush()
    watch.close()
    watch.on_start(1, 1)
    watch.on_resume(0, [])
    watch.flush()
    watch.close()
    watch.close()
    assert [file.name.startswith("events.out.tfevents") for file in tmp_path.iterdir()] == [True]


def test_tensorboard_is_imported_when_a_training_starts() -> None:
    code = "import sys, pipeline.training.tensorboard; sys.exit('tensorboard' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=False).returncode == 0
