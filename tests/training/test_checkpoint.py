"""Resume checkpoints: what they cost in memory, and that those of the last release are read."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash

from pipeline.config import Configuration, merge
from pipeline.data.prepare_data import prepare
from pipeline.data.prepared import Prepared
from pipeline.training.callback import Callback
from pipeline.training.checkpoint import Checkpoints, State, packed
from pipeline.training.fit import fit
from tests.conftest import PROJECT
from tests.training.small_training import BASE, build_context

STATE: State = {
    "network": {"weight": torch.arange(6.0).view(2, 3)},
    "epoch": 3,
    "random": ["MT19937", [1, 2]],
}


def same(state: State | None) -> bool:
    return (
        state is not None
        and torch.equal(state["network"]["weight"], STATE["network"]["weight"])
        and state["epoch"] == 3
    )


def test_the_best_weights_of_that_moment_come_back_with_the_state(tmp_path: Path) -> None:
    checkpoints, best = Checkpoints(tmp_path), tmp_path / "best.safetensors"
    best.write_bytes(b"weights of epoch 1" * 100_000)
    checkpoints.save(STATE, 1, best)
    best.write_bytes(b"weights of epoch 2")
    assert same(checkpoints.load(best))
    assert best.read_bytes() == b"weights of epoch 1" * 100_000


def test_before_the_first_epoch_is_over_there_are_no_best_weights(tmp_path: Path) -> None:
    checkpoints, best = Checkpoints(tmp_path), tmp_path / "best.safetensors"
    checkpoints.save(STATE, 1)
    # Of an epoch that will be trained again.
    best.write_bytes(b"weights of epoch 1")
    assert same(checkpoints.load(best))
    assert not best.exists()


@pytest.mark.parametrize("weights", [b"", b"weights of epoch 1"])
def test_a_checkpoint_of_release_0_1_0_is_read(tmp_path: Path, weights: bytes) -> None:
    best = tmp_path / "best.safetensors"
    inside = torch.frombuffer(bytearray(weights), dtype=torch.uint8) if weights else None
    content = packed({**STATE, "best_weights": inside})
    (tmp_path / "resume-000000007.pt").write_bytes(xxhash.xxh3_128_digest(content) + content)
    state = Checkpoints(tmp_path).load(best)
    assert state is not None and same(state) and state.keys() == STATE.keys()
    assert best.read_bytes() == weights if weights else not best.exists()


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(Configuration.model_validate(BASE).data, tmp_path_factory.mktemp("prepared"))


class Slow(Checkpoints):
    """On a disk that takes longer than many steps of the training."""

    written = 0

    def save(self, state: State, number: int, best: Path | None = None) -> None:
        time.sleep(0.3)
        super().save(state, number, best)
        self.written += 1


class Taken(Callback):
    """Counts the states that were taken and are not written yet."""

    def __init__(self, checkpoints: Slow) -> None:
        self.checkpoints, self.taken, self.most_waiting = checkpoints, 0, 0

    def state(self) -> dict[str, Any]:
        self.taken += 1
        self.most_waiting = max(self.most_waiting, self.taken - self.checkpoints.written)
        return {}


def test_where_the_disk_is_slow_one_state_waits_for_it(digits: Prepared, tmp_path: Path) -> None:
    configuration = Configuration.model_validate(
        merge(BASE, {"training": {"checkpoint_seconds": 0, "epochs": 12}})
    )
    checkpoints = Slow(tmp_path)
    setting, taken = (
        replace(build_context(configuration, digits, tmp_path), resume=checkpoints),
        Taken(checkpoints),
    )
    fit(configuration, setting, [taken])
    assert taken.taken == checkpoints.written > 1
    assert taken.most_waiting == 1


def test_a_state_that_has_been_written_is_followed_by_the_next(
    digits: Prepared, tmp_path: Path
) -> None:
    configuration = Configuration.model_validate(
        merge(BASE, {"training": {"checkpoint_seconds": 0.02, "epochs": 12}})
    )
    setting = replace(build_context(configuration, digits, tmp_path), resume=Checkpoints(tmp_path))
    fit(configuration, setting)
    assert len(list(tmp_path.glob("resume-*.pt"))) == 2


MEMORY = """
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline.config import Configuration
from pipeline.data.loader import Images, Loader
from pipeline.data.transforms import Preprocessing
from pipeline.models import Network
from pipeline.training.callback import Callback
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.fit import fit
from pipeline.training.malloc import settle_memory
from pipeline.training.context import TrainingContext
from pipeline.training.fit_result import FitResult


def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


class Peak(Callback):
    # Beyond what is there after the first step, whose state has not been taken yet, or at the
    # beginning of a training that goes on.
    def __init__(self, step):
        self.step = step

    def begin(self):
        Path("/proc/self/clear_refs").write_text("5")
        self.before = memory("VmRSS")

    def on_step(self, epoch, loss, accuracy, lr):
        self.step -= 1
        if self.step == 0:
            self.begin()

    def on_resume(self, steps, history):
        if self.step < 0:
            self.taken_up = memory("VmHWM") - self.before


settle_memory()
torch.set_num_threads(1)
folder = Path(sys.argv[1])
labels = np.arange(40) % 3
pixels = [np.full((3, 8, 8), 6 * number, np.uint8) for number in range(40)]
configuration = Configuration.model_validate({
    "data": {"image_size": 8, "batch_size": 12},
    "optimizer": {"name": "adam", "lr": 1e-5},
    "training": {"epochs": 4, "checkpoint_seconds": 0, "device": "cpu"},
})
hidden = [layer for _ in range(24) for layer in (nn.Linear(1000, 1000), nn.ReLU())]
network = nn.Sequential(nn.Flatten(), nn.Linear(192, 1000), *hidden, nn.Linear(1000, 3))
weights = sum(4 * parameter.numel() for parameter in network.parameters())
setting = TrainingContext(
    Network(network, "14", None),
    Preprocessing(8, 8, "bilinear", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
    Loader(Images(pixels, np.arange(36), labels, 8), 12, shuffle_seed=0),
    Loader(Images(pixels, np.arange(36, 40), labels, 8), 4),
    torch.device("cpu"),
    folder / "best.safetensors",
    resume=Checkpoints(folder),
)
goes_on = any(folder.glob("resume-*.pt"))
peak = Peak(-1 if goes_on else 1)
if goes_on:
    peak.begin()
    fit(configuration, setting, [peak])
    print(peak.taken_up / weights)
else:
    # The heap grows by a gradient or two while a training is young, whatever is written beside it.
    fit(configuration, replace(setting, checkpoint=folder / "warm.safetensors", resume=None))
    fit(configuration, setting, [peak])
    print((memory("VmHWM") - peak.before) / weights)
"""


@pytest.mark.skipif(
    platform.system() != "Linux", reason="needs Linux's account of a process's memory"
)
@pytest.mark.thorough
def test_writing_and_reading_a_checkpoint_take_little_memory_beside_the_training(
    tmp_path: Path,
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}

    def multiple_of_the_weights() -> float:
        arguments = [sys.executable, "-c", MEMORY, str(tmp_path)]
        return float(
            subprocess.run(
                arguments, capture_output=True, text=True, env=environment, cwd=tmp_path, check=True
            ).stdout
        )

    # Weights, and the two moments of each that Adam keeps, are three times the weights; the best
    # weights wait beside them.
    assert multiple_of_the_weights() <= 4.5
    assert multiple_of_the_weights() <= 4.5
