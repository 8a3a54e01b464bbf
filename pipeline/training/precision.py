"""Number format and memory format of a training, and which of them is fastest here, by measurement."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config import Training
from pipeline.errors import first_line

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
WARM_UP, STEPS = 1, 3
"""Steps before the clock runs, which choose and compile kernels; steps that are timed."""
_HOPELESS, _HOPELESS_AT_ONCE = 1.5, 4.0
"""A first timed step so much slower than the best so far ends a candidate's measurement."""
_GAIN = 0.95
"""Another form than the plain one must take at most this part of its time, or the measurement may be noise."""
_CLOSE = 0.05
"""Relative difference of the mean loss over the same steps from that of fp32 up to which it is close."""


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
        """Of images and weights."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def arrange(self, images: Tensor) -> Tensor:
        """Return images (batch, channels, height, width) in the memory format; what has no such shape stays as it is."""
        return images.contiguous(memory_format=self.memory_format) if images.ndim == 4 else images

    def __str__(self) -> str:
        return f"{self.precision} {'channels_last' if self.channels_last else 'contiguous'}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


PLAIN = Numerics()


@dataclass(frozen=True)
class Choice:
    """What was chosen, and why.

    Attributes:
        numerics: The choice.
        seconds: Of one step by candidate, as its text.
        refused: Why candidates were not taken in spite of their speed.
    """

    numerics: Numerics
    seconds: dict[str, float]
    refused: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Choice:
        """Rebuild from `to_dict`."""
        return cls(Numerics(**raw["numerics"]), raw["seconds"], raw["refused"])


def list_candidates(training: Training, device: torch.device) -> list[Numerics]:
    """Return the forms that `training.precision` and `training.memory_format` allow on a device, the plainest first.

    fp16 needs a range that only the loss scaling of GPUs gives, so that ``auto`` tries it on CUDA only.
    """
    precisions = (
        [training.precision]
        if training.precision != "auto"
        else ["fp32", "bf16", *(["fp16"] if device.type == "cuda" else [])]
    )
    formats = (
        [training.memory_format == "channels_last"]
        if training.memory_format != "auto"
        else [False, True]
    )
    return [
        Numerics(precision, channels_last) for precision in precisions for channels_last in formats
    ]


OneStep = Callable[[Tensor, Tensor], float]
"""From images and labels to the loss of an optimizer step at learning rate 0: all of a step's work, but weights stay as they are.

At a real learning rate the losses of deep networks lie far apart after two steps of different rounding, however good each of them is.
What is not finite in a gradient shows in the next step's loss all the same, since 0 times it is not a number.
"""


def find_fastest(
    forms: Sequence[Numerics],
    module: nn.Module,
    stepper: Callable[[nn.Module, Numerics], OneStep],
    batches: Sequence[tuple[Tensor, Tensor]],
    device: torch.device,
) -> Choice:
    """Time real steps of each form on copies of the network, and take the fastest whose loss stays finite and close.

    The network, and all random numbers, are as before afterwards.

    Args:
        forms: To choose from; the first is the reference, whose loss others must come close to, where it works here.
        module: On the device; copied.
        stepper: Makes such a function for a copy.
        batches: Images and labels, used in turn.
        device: Of the training.
    """
    if len(forms) == 1:
        return Choice(forms[0], {}, {})
    seconds: dict[str, float] = {}
    refused: dict[str, str] = {}
    reference: list[float] = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for form in forms:
            torch.manual_seed(0)
            try:
                losses, taken = _time(
                    stepper(copy.deepcopy(module), form),
                    batches,
                    device,
                    min(seconds.values(), default=math.inf),
                )
            except (RuntimeError, ValueError, MemoryError) as error:
                # Out of memory, an operation that this device has not in this form, or a share of the batch that is too small for a
                # BatchNorm that will see all of it. Where no form works, the training itself will tell.
                refused[str(form)] = first_line(error)
                continue
            seconds[str(form)] = taken
            if form is forms[0]:
                reference = losses
            elif not all(map(math.isfinite, losses)):
                refused[str(form)] = "the loss is not finite"
            elif reference:
                # Of the same steps: a slow form's measurement ends early.
                loss, plain_loss = fmean(losses), fmean(reference[: len(losses)])
                if not abs(loss - plain_loss) <= _CLOSE * max(abs(plain_loss), 1.0):
                    refused[str(form)] = f"the loss is {loss:.4g}, {plain_loss:.4g} in {forms[0]}"
    allowed = [form for form in forms if str(form) not in refused]
    best = min(allowed, key=lambda form: seconds[str(form)], default=forms[0])
    plain = str(forms[0])
    hardly = plain in seconds and seconds[str(best)] > _GAIN * seconds[plain]
    return Choice(forms[0] if hardly else best, seconds, refused)


def _time(
    step: OneStep, batches: Sequence[tuple[Tensor, Tensor]], device: torch.device, best: float
) -> tuple[list[float], float]:
    """Return the loss of each step, and the shortest time of a step in seconds: what disturbs only makes it longer."""
    losses, shortest = [], math.inf
    for number in range(WARM_UP + STEPS):
        images, labels = batches[number % len(batches)]
        started = time.perf_counter()
        losses.append(step(images, labels))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken = time.perf_counter() - started
        # On a GPU the first steps prepare; a processor that must emulate a number is as slow in the first step as in the others.
        if number >= WARM_UP or (device.type == "cpu" and taken > _HOPELESS_AT_ONCE * best):
            shortest = min(shortest, taken)
            if shortest > _HOPELESS * best:
                break
    return losses, shortest


def take_batches(batches: Any, most: int = WARM_UP + STEPS) -> list[tuple[Tensor, Tensor]]:
    """Return the first full batches of an epoch."""
    found = list(islice(batches, most))
    return [batch for batch in found if len(batch[1]) == len(found[0][1])]
