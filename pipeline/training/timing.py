"""Measure how long the training steps of a network take on this machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from pipeline.config import Configuration
from pipeline.models import Network
from pipeline.training.device import is_out_of_memory
from pipeline.training.inference import set_training_mode
from pipeline.training.precision import (
    STEPS,
    WARM_UP,
    Numerics,
    OneStep,
    find_fastest,
    time_steps,
)
from pipeline.training.stepper import Stepper


@dataclass(frozen=True)
class StepTimes:
    """Seconds of a training step on one batch.

    Attributes:
        form: The form that ``training.precision: auto`` would take.
        fastest: Seconds in that form.
        plain: Seconds in fp32.
        choice: Seconds of all steps that find the form.
    """

    form: Numerics
    fastest: float
    plain: float
    choice: float


def measure_steps(
    network: Network, images: Tensor, device: torch.device, forms: Sequence[Numerics]
) -> StepTimes | None:
    """Time real training steps.

    Args:
        network: The network, which is moved to the device.
        images: Normalised images, shape (batch, 3, size, size); random ones do.
        device: The device of the training.
        forms: The number formats and memory formats to choose from, the plainest first.

    Returns:
        The times; None if a batch does not fit in the device's memory.
    """
    set_training_mode(network, frozen=False)
    module = network.module.to(device)
    batches = [(images, torch.zeros(len(images), dtype=torch.long))]
    steps = WARM_UP + STEPS
    if len(forms) > 1:
        choice = find_fastest(forms, module, partial(_make_step, device), batches, device)
        seconds = choice.seconds
        fastest = seconds.get(str(choice.numerics))
        if fastest is None:
            return None
        plain = seconds.get(str(forms[0]), fastest)
        return StepTimes(choice.numerics, fastest, plain, steps * sum(seconds.values()))
    try:
        shortest = time_steps(_make_step(device, module, forms[0]), batches, device, math.inf)[1]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    return StepTimes(forms[0], shortest, shortest, steps * shortest)


def _make_step(device: torch.device, module: nn.Module, form: Numerics) -> OneStep:
    stepper = Stepper(Configuration(), module, form, device, None)

    def step(images: Tensor, labels: Tensor) -> float:
        loss, _ = stepper.forward(images.to(device), labels.to(device))
        stepper.backward(loss)
        stepper.update(0.0)
        return loss.item()

    return step
