"""A process keeps its memory while it trains.

It gives the memory back when a training has ended, in whatever way.
"""

from __future__ import annotations

import gc
import platform
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from pipeline.config import Configuration, merge
from pipeline.data.prepare_data import prepare
from pipeline.data.prepared import Prepared
from pipeline.errors import Interrupted, LossNotFinite
from pipeline.training.build_context import open_context
from pipeline.training.callback import Callback
from pipeline.training.fit import fit
from pipeline.training.malloc import clear_frames
from tests.training.small_training import BASE

pytestmark = pytest.mark.slow

STEPS = """
import resource
import numpy as np
from pipeline.training.malloc import settle_memory

if {settled}:
    settle_memory()
for step in range(12):
    if step == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    # As large as activations, all alive at once, all freed at the end of the step.
    activations = [np.full(1_000_000, step, np.float32) for _ in range(20)]
    del activations
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / 10)
"""


def bytes_asked_for_per_step(settled: bool) -> float:
    done = subprocess.run(
        [sys.executable, "-c", STEPS.format(settled=settled)],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back after each step"
)
def test_what_a_step_frees_is_kept_for_the_next() -> None:
    assert bytes_asked_for_per_step(settled=False) > 10e6, "there is nothing to spare any more"
    assert bytes_asked_for_per_step(settled=True) < 1e6


def test_what_imports_have_made_is_not_collected() -> None:
    program = (
        "import gc, pipeline.training.malloc as memory; memory.settle_memory(); "
        "print(gc.get_freeze_count())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) > 1000


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(Configuration.model_validate(BASE).data, tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class GivenUpError(Exception):
    """An exception of the outside."""


class Raises(Callback):
    """Ends a training in the middle of an epoch, or after one."""

    def __init__(self, error: BaseException | None, in_epoch: bool) -> None:
        self._error, self._in_epoch = error, in_epoch

    def on_step(self, epoch: int, loss: float, accuracy: float, lr: float) -> None:
        if self._error is not None and self._in_epoch:
            raise self._error

    def on_epoch(self, epoch: int, values: dict[str, float], is_best: bool) -> None:
        if self._error is not None:
            raise self._error


ENDINGS = {
    "complete": (None, False),
    "given up": (GivenUpError(), False),
    "given up in an epoch": (GivenUpError(), True),
    "failed": (LossNotFinite(), True),
    "interrupted": (Interrupted(), True),
}


def trained(
    digits: Prepared, folder: Path, error: BaseException | None, in_epoch: bool
) -> list[weakref.ref[torch.nn.Module]]:
    """Train with processes that load; return a reference to the network.

    If the training failed, let go of the error.
    """
    configuration = Configuration.model_validate(
        merge(BASE, {"data": {"workers": 2}, "training": {"epochs": 2}})
    )
    seen: list[weakref.ref[torch.nn.Module]] = []

    def train() -> None:
        with open_context(configuration, digits, folder / "best.safetensors") as setting:
            seen.append(weakref.ref(setting.network.module))
            fit(configuration, setting, [Raises(error, in_epoch)])

    try:
        train()
    except (GivenUpError, LossNotFinite, Interrupted) as raised:
        clear_frames(raised)
    return seen


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("how", ENDINGS)
def test_a_training_that_has_ended_leaves_neither_network_nor_process(
    digits: Prepared, tmp_path: Path, how: str
) -> None:
    error, in_epoch = ENDINGS[how]
    before = len(psutil.Process().children())
    (network,) = trained(digits, tmp_path, error, in_epoch)
    # The error is kept, here by the table above: a study keeps it too.
    assert network() is None
    assert len(psutil.Process().children()) == before


@pytest.mark.usefixtures("uncollected")
def test_an_error_lets_go_of_what_led_to_it_too() -> None:
    class Large:
        pass

    references = []

    def fail() -> None:
        large = Large()
        references.append(weakref.ref(large))
        raise OSError

    def fail_again() -> None:
        large = Large()
        references.append(weakref.ref(large))
        try:
            fail()
        except OSError as error:
            raise ExceptionGroup("", [error, ValueError()]) from None

    kept: list[BaseException] = []
    try:
        fail_again()
    except ExceptionGroup as error:
        error.__cause__ = error.exceptions[0]
        kept.append(error)
    assert [reference() is None for reference in references] == [False, False]
    clear_frames(kept[0])
    assert [reference() is None for reference in references] == [True, True]


RELEASED = """
import numpy as np, psutil
from pipeline.training.malloc import release_memory, settle_memory

settle_memory()
before = psutil.Process().memory_info().rss
activations = [np.full(1_000_000, 1, np.float32) for _ in range(50)]
last = np.full(1000, 1, np.float32)
del activations
held = psutil.Process().memory_info().rss
release_memory()
print(held - before, psutil.Process().memory_info().rss - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps memory so")
def test_what_a_training_has_needed_is_given_back_when_it_has_ended() -> None:
    done = subprocess.run(
        [sys.executable, "-c", RELEASED], capture_output=True, text=True, check=True
    )
    held, kept = map(int, done.stdout.split())
    assert held > 150e6
    assert kept < 20e6
