"""Number format and memory format of a training, and the measurement that finds the fastest."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice, product
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config import Training
from pipeline.errors import first_line

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
WARM_UP = 1
"""Steps before the clock runs, which choose and compile kernels."""
STEPS = 3
"""Steps that are timed."""
_HOPELESS = 1.5
"""If the first timed step takes more than this many times the best time so far, it is the last."""
_HOPELESS_AT_ONCE = 4.0
"""On a CPU, a step of the warm-up is the last if it takes more than this many times that time."""
_GAIN = 0.95
"""Another form must take at most this part of the plain form's time, or the gain may be noise."""
_CLOSE = 0.05
"""Largest relative difference of a close loss from that of fp32, as means over the same steps."""

OneStep = Callable[[Tensor, Tensor], float]
"""From images and labels to the loss of an optimizer step at learning rate 0.

The step does all the work of a real one, but the weights stay as they are. At a real learning rate
the losses of deep networks lie far apart after two steps of different rounding, however good each
of them is. If a gradient is not finite, the next step's loss still shows it, since 0 times such a
number is not a number.
"""


@dataclass(frozen=True)
class Numerics:
    """How numbers are computed and laid out.

    Attributes:
        precision: ``fp32``, or ``bf16`` or ``fp16`` under autocast: weights stay fp32.
        channels_last: Images and convolution weights in NHWC order in memory.
    """

    precision: str = "fp32"
    channels_last: bool = False

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """Return the context of the forward pass."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(device.type, dtype=_TYPES[self.precision])

    @property
    def memory_format(self) -> torch.memory_format:
        """The memory format of images and weights."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def arrange(self, images: Tensor) -> Tensor:
        """Return images (batch, channels, height, width) in the memory format.

        A tensor that does not have four dimensions stays as it is.
        """
        return images.contiguous(memory_format=self.memory_format) if images.ndim == 4 else images

    def __str__(self) -> str:
        return f"{self.precision} {'channels_last' if self.channels_last else 'contiguous'}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


PLAIN = Numerics()


@dataclass(frozen=True)
class Choice:
    """The number format and memory format that were chosen, and why.

    Attributes:
        numerics: The formats that were chosen.
        seconds: Seconds of one step, by the text of the candidate.
        refused: Reasons why candidates were not taken in spite of their speed, by their text.
    """

    numerics: Numerics
    seconds: dict[str, float]
    refused: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Choice:
        """Return the choice from the values of `to_dict`."""
        return cls(Numerics(**raw["numerics"]), raw["seconds"], raw["refused"])


def list_candidates(training: Training, device: torch.device) -> list[Numerics]:
    """Return the forms that the configuration allows on a device, the plainest first.

    `training.precision` and `training.memory_format` decide. fp16 needs a range that only the loss
    scaling of GPUs gives, so ``auto`` tries it on CUDA only.
    """
    precisions: list[str] = [training.precision]
    if training.precision == "auto":
        precisions = ["fp32", "bf16"]
        if device.type == "cuda":
            precisions.append("fp16")
    formats = [training.memory_format == "channels_last"]
    if training.memory_format == "auto":
        formats = [False, True]
    forms = product(precisions, formats)
    return [Numerics(precision, channels_last) for precision, channels_last in forms]


def find_fastest(
    forms: Sequence[Numerics],
    module: nn.Module,
    stepper: Callable[[nn.Module, Numerics], OneStep],
    batches: Sequence[tuple[Tensor, Tensor]],
    device: torch.device,
) -> Choice:
    """Time real steps of each form, and take the fastest one whose loss stays finite and close.

    The steps are done on copies of the network. The network and all random numbers are as before
    afterwards.

    Args:
        forms: The forms to choose from. The first is the reference: if it works here, the losses of
            the others must come close to its loss.
        module: The network, on the device; it is copied.
        stepper: A function that makes a `OneStep` for a copy and a form.
        batches: Images and labels, used in turn.
        device: The device of the training.
    """
    plain = forms[0]
    if len(forms) == 1:
        return Choice(plain, {}, {})
    seconds: dict[str, float] = {}
    refused: dict[str, str] = {}
    reference: list[float] = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for form in forms:
            torch.manual_seed(0)
            try:
                # The copy gets no name: that would keep it in memory until the next one is made.
                losses, taken = time_steps(
                    stepper(copy.deepcopy(module), form),
                    batches,
                    device,
                    min(seconds.values(), default=math.inf),
                )
            except (RuntimeError, ValueError, MemoryError) as error:
                # Memory does not suffice, the device lacks an operation in this form, or the share
                # of the batch is too small for a BatchNorm that will see all of it. If no form
                # works, the training itself will fail and say so.
                refused[str(form)] = first_line(error)
                continue
            seconds[str(form)] = taken
            if form is plain:
                reference = losses
                continue
            reason = _compare_losses(losses, reference, plain)
            if reason:
                refused[str(form)] = reason
    allowed = [form for form in forms if str(form) not in refused]
    best = min(allowed, key=lambda form: seconds[str(form)], default=plain)
    if str(plain) in seconds and seconds[str(best)] > _GAIN * seconds[str(plain)]:
        best = plain
    return Choice(best, seconds, refused)


def _compare_losses(losses: list[float], reference: list[float], plain: Numerics) -> str:
    """Return why a form of these losses is refused; empty if it is not.

    Args:
        losses: Loss of each step.
        reference: Losses of the plain form; empty if it does not work here.
        plain: The plain form.
    """
    if not all(map(math.isfinite, losses)):
        return "the loss is not finite"
    if not reference:
        return ""
    loss = fmean(losses)
    # The means are over the same steps: a slow form's measurement ends early.
    plain_loss = fmean(reference[: len(losses)])
    # A plain loss that is not finite compares as False, and refuses the form too.
    if abs(loss - plain_loss) <= _CLOSE * max(abs(plain_loss), 1.0):
        return ""
    return f"the loss is {loss:.4g}, {plain_loss:.4g} in {plain}"


def time_steps(
    step: OneStep, batches: Sequence[tuple[Tensor, Tensor]], device: torch.device, best: float
) -> tuple[list[float], float]:
    """Return the loss of each step, and the shortest time of a step in seconds.

    The shortest is taken since disturbances only make a step longer.
    """
    losses = []
    shortest = math.inf
    for number in range(WARM_UP + STEPS):
        images, labels = batches[number % len(batches)]
        started = time.perf_counter()
        losses.append(step(images, labels))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken = time.perf_counter() - started
        # On a GPU the first steps prepare. A CPU that must emulate a number format is as slow in
        # the first step as in the others.
        is_hopeless = device.type == "cpu" and taken > _HOPELESS_AT_ONCE * best
        if number >= WARM_UP or is_hopeless:
            shortest = min(shortest, taken)
            if shortest > _HOPELESS * best:
                break
    return losses, shortest


def take_batches(batches: Any, most: int = WARM_UP + STEPS) -> list[tuple[Tensor, Tensor]]:
    """Return the first full batches of an epoch."""
    found = list(islice(batches, most))
    return [batch for batch in found if len(batch[1]) == len(found[0][1])]
