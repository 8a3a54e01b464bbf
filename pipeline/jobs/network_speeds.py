"""How long networks take per image: as measured, or estimated from what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Speed:
    """Seconds that a network takes per image of one size.

    Attributes:
        step: A training step in the fastest form: number format and memory format.
        plain: A training step in fp32, in which networks are evaluated.
        choice: All steps that find the fastest form, once a study.
    """

    step: float
    plain: float
    choice: float

    def scaled(self, factor: float) -> Speed:
        """Return the speed of something that takes `factor` times as long."""
        return Speed(self.step * factor, self.plain * factor, self.choice * factor)

    def least(self, step: float) -> Speed:
        """Return the speed after a further measurement, of which the least counts.

        What disturbs a measurement only makes it longer.
        """
        return self.scaled(step / self.step) if step < self.step else self


@dataclass(frozen=True)
class Speeds:
    """Speeds of networks, measured or estimated.

    Attributes:
        multiply_adds: Multiply-adds of each network that may be taken, per pixel of an image.
        measured: Speeds by network and image size.
    """

    multiply_adds: Mapping[str, float]
    measured: Mapping[tuple[str, int], Speed] = field(default_factory=dict)

    def with_measured(self, network: str, image_size: int, speed: Speed) -> Speeds:
        """Return these speeds with one more that is measured."""
        return Speeds(self.multiply_adds, {**self.measured, (network, image_size): speed})

    def without(self, network: str) -> Speeds:
        """Return these speeds without a network that cannot be taken."""
        others = {name: count for name, count in self.multiply_adds.items() if name != network}
        kept = {key: speed for key, speed in self.measured.items() if key[0] != network}
        return Speeds(others, kept)

    def without_measured(self, network: str, image_size: int) -> Speeds:
        """Return these speeds with one less that is measured."""
        kept = {key: speed for key, speed in self.measured.items() if key != (network, image_size)}
        return Speeds(self.multiply_adds, kept)

    def of(self, network: str, image_size: int) -> Speed:
        """Return what a network takes per image.

        What is not measured takes as long per multiply-add as the most similar that is: best the
        same network at another size, else one of its family, else any other, and of several the one
        with the most similar number of them.

        Raises:
            ValueError: Nothing is measured.
        """
        nearest = self.nearest(network, image_size)
        factor = self.count(network, image_size) / self.count(*nearest)
        return self.measured[nearest].scaled(factor)

    def nearest(self, network: str, image_size: int) -> tuple[str, int]:
        """Return which of the measured networks and sizes is the most similar.

        Raises:
            ValueError: Nothing is measured.
        """
        wanted = self.count(network, image_size)

        def distance(cell: tuple[str, int]) -> tuple[bool, bool, float]:
            other = family(cell[0]) != family(network)
            return other, cell[0] != network, abs(math.log(self.count(*cell) / wanted))

        return min(self.measured, key=distance)

    def count(self, network: str, image_size: int) -> float:
        """Return the multiply-adds of one image."""
        return self.multiply_adds[network] * image_size**2


def family(network: str) -> str:
    """Return the name of a network without its depth: ``resnet`` of ``resnet18``."""
    return network.rstrip("0123456789")
