"""Memory of a GPU: if it does not suffice, and what given-up trainings leave behind."""

from __future__ import annotations

import os
import re
from pathlib import Path

import psutil
import pytest
import torch

from pipeline.data.prepared import Prepared
from pipeline.errors import OutOfMemory
from pipeline.training.callback import Callback
from pipeline.training.malloc import clear_frames, release_memory, settle_memory
from tests.gpu.conftest import Tell
from tests.gpu.engine import GIB, NETWORK, ON_GPU, at_most, configuration_of, train

HUNGRY = """
import torch
from torch import nn


class Hungry(torch.autograd.Function):
    # Takes 96 MiB for each image, for a moment, in one of the two passes.
    @staticmethod
    def forward(ctx, images, where):
        ctx.where = where
        if where == "forward":
            torch.empty((len(images), 96, 2**20), dtype=torch.uint8, device=images.device)
        return images.clone()

    @staticmethod
    def backward(ctx, gradients):
        if ctx.where == "backward":
            torch.empty((len(gradients), 96, 2**20), dtype=torch.uint8, device=gradients.device)
        return gradients, None


class Network(nn.Module):
    def __init__(self, num_classes, where):
        super().__init__()
        self.first, self.where = nn.Linear(3 * 32 * 32, 8), where
        # The moments that an optimizer keeps of it are larger than all else.
        self.wide = nn.Linear(2**14, WIDE if where == "step" else 1)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, images):
        hidden = Hungry.apply(self.first(images.flatten(1)), self.where)
        # Every weight gets a gradient, at next to no work.
        return self.fc(hidden) + 0 * self.wide.weight.sum() + 0 * self.wide.bias.sum()


def forward(num_classes):
    return Network(num_classes, "forward")


def backward(num_classes):
    return Network(num_classes, "backward")


def step(num_classes):
    return Network(num_classes, "step")
"""


_WIDE = 2**15 if ON_GPU else 2**13
"""Width of the layer.

On a GPU it does not fit into what torch keeps reserved there, which may be more than a GiB.
"""


class Passed(Callback):
    """Counts the backward passes that have succeeded."""

    backward = 0

    def on_backward(self, epoch: int, step: int) -> None:
        self.backward += 1


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("where", ["forward", "backward", "step"])
def test_out_of_memory_is_told_with_the_batch_that_fits(
    digits: Prepared, tmp_path: Path, tell: Tell, where: str, precision: str
) -> None:
    network = tmp_path / "hungry.py"
    network.write_text(HUNGRY.replace("WIDE", str(_WIDE)))
    configuration = configuration_of(
        model={"name": f"file:{network}:{where}"},
        training={"precision": precision},
        optimizer={"name": "adam", "lr": 1e-3},
    )
    passed = Passed()
    # Weights and gradients of the wide layer take as much each, Adam's moments twice that; there is
    # room for three of the four.
    room = 2 * GIB if where != "step" else 3 * 4 * 2**14 * _WIDE
    with pytest.raises(OutOfMemory) as caught, at_most(room):
        train(configuration, digits, tmp_path, [passed])
    tell(str(caught.value))
    clear_frames(caught.value)
    found = re.fullmatch(
        r"out of memory at data\.batch_size 64 \(step 1 of epoch 1\); (.*)", str(caught.value)
    )
    assert found is not None
    if where == "step":
        assert passed.backward == 1
        assert found[1] == "not even one image fits; a smaller data.image_size or network may"
    else:
        assert passed.backward == 0
        assert found[1] in ("data.batch_size 16 fits", "data.batch_size 8 fits")
    # The next training has all the memory again.
    (tmp_path / "next").mkdir()
    assert (
        len(
            train(
                configuration_of(training={"epochs": 1}), digits, tmp_path / "next"
            ).fitted.history
        )
        == 1
    )


class GivenUpError(Exception):
    """What a study raises in a training that it gives up."""


class GiveUp(Callback):
    """Gives a training up after its first epoch."""

    def on_epoch(self, epoch: int, values: dict[str, float], is_best: bool) -> None:
        raise GivenUpError


def test_ten_trainings_that_were_given_up_leave_no_memory_and_no_process(
    digits: Prepared, tmp_path: Path, tell: Tell
) -> None:
    settle_memory()
    configuration = configuration_of(
        model={"name": "resnet50" if ON_GPU else NETWORK},
        data={"workers": 2, "limit": 300},
        training={"epochs": 3},
    )
    process, kept, seen = psutil.Process(), [], []
    for number in range(11):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(GivenUpError) as caught:
            train(configuration, digits, folder, [GiveUp()])
        clear_frames(caught.value)
        # As Optuna does, in a cycle of its own.
        kept.append(caught.value)
        del caught
        release_memory()
        device = torch.cuda.memory_allocated() if ON_GPU else 0
        seen.append(
            (
                process.memory_info().rss,
                device,
                torch.cuda.memory_reserved() if ON_GPU else 0,
                len(process.children()),
            )
        )
    (first_rss, first_device, first_reserved, _), (rss, device, reserved, children) = (
        seen[0],
        seen[-1],
    )
    tell(
        "after one and after eleven: "
        f"{first_rss / 1e6:.0f} and {rss / 1e6:.0f} MB of this process, "
        f"{first_device / 1e6:.1f} and {device / 1e6:.1f} MB of the GPU, "
        f"{first_reserved / 1e6:.0f} and {reserved / 1e6:.0f} MB reserved; "
        f"{children} processes left"
    )
    assert len(kept) == 11
    assert rss <= 1.05 * first_rss
    assert device <= 1.05 * first_device + 1e6
    assert reserved <= 1.05 * first_reserved + 1e6
    assert children == 0
    assert os.getpid() == process.pid
