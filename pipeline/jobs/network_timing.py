"""Time networks on this machine, the least of several rounds, within a minute."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from pipeline import models
from pipeline.config import Model, Training
from pipeline.jobs.cost import count_multiply_adds
from pipeline.jobs.network_speeds import Speed, Speeds
from pipeline.training.precision import STEPS, WARM_UP, Numerics, list_candidates
from pipeline.training.timing import measure_steps

CANDIDATES = (
    "resnet18",
    "resnet34",
    "densenet121",
    "resnet50",
    "densenet169",
    "resnet101",
    "densenet201",
)
"""Networks that a plan may have."""
TOTAL_SECONDS = 60.0
"""Seconds after which nothing more is timed."""
ROUNDS = 3
"""How often the networks of a plan are timed, if there is time."""
DISTURBED = 1.3
"""Between two rounds, times of one network that differ by this factor show other work."""
BUSY = 0.6
"""Threads that run for less than this part of the time are kept waiting by other work."""

_COUNTED_SIZE = 64
"""Image size, in pixels, at which multiply-adds are counted; they grow with its square."""
_BATCH_MULTIPLY_ADDS = 4e9
"""Multiply-adds of a batch that a CPU is timed on: a larger one takes seconds a step."""
_LEAST_BATCH = 4
"""It also serves for the first look, by which is known what there is time for."""

Cell = tuple[str, int]
"""A network, and an image size."""


def count_candidates(num_classes: int) -> dict[str, float]:
    """Return the multiply-adds of each candidate, per pixel of an image."""
    counts = {}
    for name in CANDIDATES:
        # On this device nothing is computed.
        module = models.build(Model(name=name), num_classes, _COUNTED_SIZE).module.to("meta")
        image = torch.zeros(1, 3, _COUNTED_SIZE, _COUNTED_SIZE, device="meta")
        counts[name] = count_multiply_adds(module.eval(), image) / _COUNTED_SIZE**2
    return counts


@dataclass
class Stopwatch:
    """Times networks, as long as its minute lasts.

    Attributes:
        device: The device that is timed.
        num_classes: Outputs of the networks.
        speeds: What is known by now.
        progress: Called with a line that says what is timed.
        left_out: Reason for each network that cannot be taken.
        is_disturbed: Whether times of one network differed much.
    """

    device: torch.device
    num_classes: int
    speeds: Speeds
    progress: Callable[[str], None]
    left_out: dict[str, str] = field(default_factory=dict)
    is_disturbed: bool = False

    def __post_init__(self) -> None:
        self._ends = time.monotonic() + TOTAL_SECONDS
        self._forms: dict[Cell, tuple[Numerics, int]] = {}
        self._first_look: Cell | None = None

    def look_first(self, image_size: int) -> None:
        """Time the network of the fewest multiply-adds that fits, on few images and in one form."""
        form = list_candidates(Training(), self.device)[0]
        counts = self.speeds.multiply_adds
        for name in sorted(counts, key=counts.__getitem__):
            speed = self._measure((name, image_size), _LEAST_BATCH, [form])
            if speed is not None:
                forms = len(list_candidates(Training(), self.device))
                self._take((name, image_size), replace(speed, choice=forms * speed.choice))
                self._first_look = (name, image_size)
                return

    def time_next(self, cells: Sequence[Cell], batch_size: int) -> bool:
        """Time the first of some networks that is not timed yet and that there is time for.

        Returns:
            False if there is none.
        """
        for cell in cells:
            is_timed = cell in self.speeds.measured and cell != self._first_look
            if not is_timed and self._time(cell, batch_size):
                return True
        return False

    def time_again(self, cells: Sequence[Cell]) -> None:
        """Time what is timed once more, if there is time.

        Args:
            cells: What comes first.
        """
        for cell in dict.fromkeys([*cells, *self.speeds.measured]):
            if cell in self.speeds.measured and time.monotonic() < self._ends:
                self.progress(f"timing {cell[0]} again")
                self._repeat(cell)

    def _time(self, cell: Cell, batch_size: int) -> bool:
        """Time a network in all forms, or in one if there is no time for more, or not at all."""
        batch = self._batch(cell, batch_size)
        forms = self._choose_forms(cell, batch)
        if not forms:
            return False
        self.progress(f"timing {cell[0]} on {self.device} at {cell[1]} pixels")
        speed = self._measure(cell, batch, forms)
        if speed is None:
            return True
        if len(forms) == 1:
            estimate = self.speeds.of(*cell)
            speed = estimate.scaled(speed.step / estimate.step)
        if self._first_look is not None:
            # On so few images it took too long for each.
            self.speeds = self.speeds.without_measured(*self._first_look)
            self._first_look = None
        self._take(cell, speed)
        return True

    def _batch(self, cell: Cell, batch_size: int) -> int:
        """Return the number of images that a network is timed on."""
        if self.device.type != "cpu":
            return batch_size
        fitting = int(_BATCH_MULTIPLY_ADDS / self.speeds.count(*cell))
        return min(batch_size, max(_LEAST_BATCH, fitting))

    def _choose_forms(self, cell: Cell, batch: int) -> list[Numerics]:
        """Return the forms that there is time to measure a network in."""
        remaining = self._ends - time.monotonic()
        estimate = self.speeds.of(*cell)
        if estimate.choice * batch < remaining:
            return list_candidates(Training(), self.device)
        nearest = self._forms[self.speeds.nearest(*cell)][0]
        is_time = (WARM_UP + STEPS) * estimate.step * batch < remaining
        # The first look alone says too little to plan by.
        return [nearest] if is_time or self._first_look is not None else []

    def _measure(self, cell: Cell, batch: int, forms: Sequence[Numerics]) -> Speed | None:
        """Return the speed of a network; None, and the network is left out, if it does not fit."""
        name, size = cell
        network = models.build(Model(name=name), self.num_classes, size)
        images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
        started, worked = time.perf_counter(), time.process_time()
        times = measure_steps(network, images, self.device, forms)
        if times is None:
            self.left_out[name] = f"a batch of {batch} does not fit in the memory of {self.device}"
            self.speeds = self.speeds.without(name)
            return None
        share = (time.process_time() - worked) / (time.perf_counter() - started)
        if self.device.type == "cpu" and share < BUSY * torch.get_num_threads():
            self.is_disturbed = True
        self._forms[cell] = times.form, batch
        return Speed(times.fastest / batch, times.plain / batch, times.choice / batch)

    def _take(self, cell: Cell, speed: Speed) -> None:
        self.speeds = self.speeds.with_measured(*cell, speed)

    def _repeat(self, cell: Cell) -> None:
        form, batch = self._forms[cell]
        speed = self._measure(cell, batch, [form])
        if speed is None:
            return
        known = self.speeds.measured[cell]
        if max(speed.step, known.step) > DISTURBED * min(speed.step, known.step):
            self.is_disturbed = True
        self._take(cell, known.least(speed.step))
