"""A training that is stopped and taken up again ends as one that was never stopped."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from pipeline.config import Configuration, merge
from pipeline.data.loader import Loader
from pipeline.data.prepare_data import prepare
from pipeline.data.prepared import Prepared
from pipeline.errors import Paused
from pipeline.training.callback import Callback
from pipeline.training.checkpoint import Checkpoints, State, random_states, set_random_states
from pipeline.training.fit import fit
from pipeline.training.fit_result import FitResult
from pipeline.training.imbalance import balanced_probabilities
from tests.conftest import PROJECT
from tests.training.small_training import BASE, TIMES, build_context, ends_by

pytestmark = pytest.mark.slow

EVERY_STEP: dict[str, Any] = {"training": {"checkpoint_seconds": 0}}


class StoppedError(Exception):
    """An exception of the outside."""


class StopAfter(Callback):
    """Ends the training after so many steps."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    def on_step(self, epoch: int, loss: float, accuracy: float, lr: float) -> None:
        self._left -= 1
        if self._left < 0:
            raise StoppedError


class Remember(Callback):
    """Keeps a count of its own across lives."""

    def __init__(self) -> None:
        self.steps = 0
        self.resumed_after = -1

    def on_step(self, epoch: int, loss: float, accuracy: float, lr: float) -> None:
        self.steps += 1

    def on_resume(self, steps: int, history: Any) -> None:
        self.resumed_after = len(history)

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state(self, state: dict[str, Any]) -> None:
        self.steps = state.get("steps", 0)


class Written(Checkpoints):
    """Counts the checkpoints that are on the disk."""

    count = 0

    def save(self, state: State, number: int, best: Path | None = None) -> None:
        super().save(state, number, best)
        self.count += 1


class Wait(Callback):
    """Waits for the disk before the training goes on, so that no checkpoint is left out."""

    def __init__(self, checkpoints: Written) -> None:
        self._checkpoints, self._taken = checkpoints, 0

    def state(self) -> dict[str, Any]:
        self._taken += 1
        return {}

    def on_step(self, epoch: int, loss: float, accuracy: float, lr: float) -> None:
        deadline = time.monotonic() + 60
        while self._checkpoints.count < self._taken and time.monotonic() < deadline:
            time.sleep(0.001)


def trained(
    digits: Prepared,
    folder: Path,
    changes: dict[str, Any],
    *callbacks: Callback,
    resume: bool = True,
) -> FitResult:
    """Train in a folder, going on from what is there.

    Fill `weights` with the weights of the best epoch and of the last.
    """
    folder.mkdir(exist_ok=True)
    configuration = Configuration.model_validate(merge(BASE, EVERY_STEP, changes))
    setting = build_context(configuration, digits, folder)
    if configuration.training.sampler == "balanced":
        probabilities = balanced_probabilities(setting.train.labels.numpy())
        images = setting.train._loader.dataset
        setting = setting.__class__(
            **{
                **vars(setting),
                "train": Loader(
                    images,
                    configuration.data.batch_size,
                    shuffle_seed=0,
                    probabilities=probabilities,
                ),
            }  # type: ignore[arg-type]
        )
    checkpoints = Written(folder)
    setting = setting.__class__(**{**vars(setting), "resume": checkpoints if resume else None})
    fitted = fit(configuration, setting, [Wait(checkpoints), *callbacks])
    safetensors.torch.save_file(
        {
            name: value.clone().contiguous()
            for name, value in setting.network.module.state_dict().items()
        },
        folder / "last.safetensors",
    )
    return fitted


def results(fitted: FitResult, folder: Path) -> tuple[Any, ...]:
    history = [
        {name: value for name, value in epoch.items() if name not in TIMES}
        for epoch in fitted.history
    ]
    files = [(folder / name).read_bytes() for name in ("best.safetensors", "last.safetensors")]
    return history, fitted.lrs, fitted.best_epoch, fitted.logits.tobytes(), *files


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(Configuration.model_validate(BASE).data, tmp_path_factory.mktemp("prepared"))


CASES: dict[str, dict[str, Any]] = {
    "adam": {},
    "momentum and plateau": {
        "optimizer": {"name": "sgd", "lr": 0.05},
        "schedule": {"name": "plateau", "plateau_epochs": 1, "warmup_epochs": 0.5},
    },
    "dropout and augmentation": {
        "model": {"dropout": 0.3},
        "data": {"augment": [{"RandomRotation": 10}]},
    },
    "batch norm": {
        "model": {"name": "resnet18"},
        "training": {"epochs": 2},
        "data": {"batch_size": 64},
    },
    "balanced sampler": {"training": {"sampler": "balanced"}},
    "class weights, smoothing, clipping": {
        "training": {"class_weights": "balanced", "label_smoothing": 0.1, "clip_norm": 0.5}
    },
    "workers": {"data": {"workers": 2, "augment": ["RandomHorizontalFlip"]}},
}


@pytest.mark.parametrize("name", CASES)
def test_stopped_and_resumed_it_ends_with_the_same_bits(
    digits: Prepared, tmp_path: Path, name: str
) -> None:
    whole = trained(digits, tmp_path / "whole", CASES[name], resume=False)
    steps = len(whole.lrs)
    for after in (0, steps // 3, steps // 3 - 1, steps // 4):
        with ends_by(StoppedError):
            trained(digits, tmp_path / "parts", CASES[name], StopAfter(after))
        torch.manual_seed(after)
        random.seed(after)
    resumed = trained(digits, tmp_path / "parts", CASES[name])
    assert results(resumed, tmp_path / "parts") == results(whole, tmp_path / "whole")


class PauseAfter(Callback):
    """Has a training wait after an epoch."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch

    def on_epoch(self, epoch: int, values: dict[str, float], is_best: bool) -> None:
        if epoch == self._epoch:
            raise Paused("waits")


@pytest.mark.parametrize("seconds", [0, 1000])
def test_paused_after_an_epoch_it_goes_on_from_there_to_the_same_bits(
    digits: Prepared, tmp_path: Path, seconds: int
) -> None:
    changes = {"training": {"checkpoint_seconds": seconds}}
    whole = trained(digits, tmp_path / "whole", changes, resume=False)
    with ends_by(Paused):
        trained(digits, tmp_path / "parts", changes, PauseAfter(1))
    seen = Remember()
    resumed = trained(digits, tmp_path / "parts", changes, seen)
    assert seen.resumed_after == 1
    assert seen.steps == len(whole.lrs) * 2 // 3
    assert results(resumed, tmp_path / "parts") == results(whole, tmp_path / "whole")


def test_callbacks_get_back_what_they_had(digits: Prepared, tmp_path: Path) -> None:
    first, second = Remember(), Remember()
    with ends_by(StoppedError):
        trained(digits, tmp_path / "parts", {}, first, StopAfter(10))
    fitted = trained(digits, tmp_path / "parts", {}, second, Callback())
    assert (first.resumed_after, second.resumed_after) == (0, 10 // (len(fitted.lrs) // 3))
    assert second.steps == len(fitted.lrs)


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    digits: Prepared, tmp_path: Path, damage: str
) -> None:
    whole = trained(digits, tmp_path / "whole", {}, resume=False)
    with ends_by(StoppedError):
        trained(digits, tmp_path / "parts", {}, StopAfter(12))
    before, last = sorted((tmp_path / "parts").glob("resume-*.pt"))
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(
        {"cut": content[: len(content) // 2], "changed": bytes(content), "empty": b""}[damage]
    )
    state = Checkpoints(tmp_path / "parts").load()
    assert state is not None and len(state["lrs"]) == int(before.stem.removeprefix("resume-"))
    assert results(trained(digits, tmp_path / "parts", {}), tmp_path / "parts") == results(
        whole, tmp_path / "whole"
    )


def test_without_a_whole_checkpoint_it_starts_anew(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "nothing").load() is None
    (tmp_path / "resume-000000001.pt").write_bytes(b"not a checkpoint at all")
    assert Checkpoints(tmp_path).load() is None


def test_checkpoints_are_as_seldom_as_asked(digits: Prepared, tmp_path: Path) -> None:
    trained(digits, tmp_path / "parts", {"training": {"checkpoint_seconds": 1000}})
    assert list((tmp_path / "parts").glob("resume-*")) == []


def test_random_states_are_put_back() -> None:
    state = random_states()
    drawn = (
        torch.rand(3).tolist(),
        np.random.rand(3).tolist(),
        [random.random() for _ in range(3)],
    )
    set_random_states(state)
    assert (
        torch.rand(3).tolist(),
        np.random.rand(3).tolist(),
        [random.random() for _ in range(3)],
    ) == drawn


SCRIPT = """
import sys
from pathlib import Path
from pipeline.config import Configuration
from pipeline.data.prepare_data import prepare
from tests.training.small_training import BASE, ends_by
from tests.training.test_fit_resumed import trained
if __name__ == "__main__":
    digits = prepare(Configuration.model_validate(BASE).data, Path(sys.argv[2]))
    print("starts", flush=True)
    trained(digits, Path(sys.argv[1]), {"training": {"epochs": 12}})
    print("done", flush=True)
"""


@pytest.mark.thorough
def test_killed_at_random_moments_and_resumed_it_ends_with_the_same_bits(
    digits: Prepared, tmp_path: Path
) -> None:
    trained(digits, tmp_path / "whole", {"training": {"epochs": 12}}, resume=False)
    rng = random.Random(0)
    kills = 0
    for _ in range(20):
        arguments = [
            sys.executable,
            "-c",
            SCRIPT,
            str(tmp_path / "parts"),
            str(tmp_path / "prepared"),
        ]
        environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
        with subprocess.Popen(
            arguments, stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
        ) as process:
            assert process.stdout is not None and process.stdout.readline() == "starts\n"
            if kills < 2:
                time.sleep(rng.uniform(0.05, 0.4))
                process.send_signal(signal.SIGKILL)
                kills += process.wait() == -signal.SIGKILL
            elif process.wait() == 0:
                break
    assert kills == 2
    for name in ("best.safetensors", "last.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
