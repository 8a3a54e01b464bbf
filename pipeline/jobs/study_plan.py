"""Choose a study that fits into some hours: pure arithmetic on images and speeds.

What a study may be is a ladder: each rung has one thing more than the rung below it, such as a
larger image size or another network. The plan is the highest rung that fits. So twice the hours
never plan less of anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.jobs.image_survey import SIZES
from pipeline.jobs.network_speeds import Speed, Speeds
from pipeline.jobs.study_seconds import (
    Images,
    StudySeconds,
    Trainings,
    study_seconds,
    training_seconds,
)

SMALLEST = 3.5
"""From random weights, the smallest size of a plan is that of the pictures divided by this."""
SMALLEST_TRAINED = 2.0
"""The same for trained weights, which have seen pictures of 224 pixels."""
EPOCHS = (2, 3, 4, 6, 8, 10, 13, 16, 20, 25, 30)
"""Numbers of epochs from random weights."""
FINE_TUNING_EPOCHS = (3, 4, 5, 6, 8, 10)
"""Numbers of epochs from trained weights."""
LEAST_STEPS = 40
"""Steps before which no network has learned anything."""
HEAD_EPOCHS = 20
"""Number of epochs if only a head is trained."""
NETWORKS = (2, 3, 4, 5)
"""Numbers of networks."""
SETTINGS = (2, 3, 4)
"""Entries of the list for each network. The first two differ in the learning rate."""
SEARCHED = (0, 4, 6, 8, 10, 12, 14, 16, 18, 20)
"""Numbers of searched trials."""
PRUNED_FROM = 4
"""Number of epochs from which giving up after the first one saves more than half of them."""


@dataclass(frozen=True)
class Rung:
    """What a study has.

    Attributes:
        image_size: Side of the square that the networks see, in pixels.
        epochs: Number of epochs of each training.
        num_networks: Number of networks.
        num_settings: Number of entries of the list for each network.
        num_searched: Number of searched trials.
        saves_epochs: Whether searched trials that are behind may be given up.
        is_frozen: Whether only heads are trained.
    """

    image_size: int
    epochs: int
    num_networks: int
    num_settings: int
    num_searched: int
    saves_epochs: bool = True
    is_frozen: bool = False

    @property
    def num_listed(self) -> int:
        """Number of entries of the list."""
        return self.num_networks * self.num_settings

    @property
    def pruner(self) -> str:
        """Value of ``study.pruner``: a name of `pipeline.jobs.study_seconds.PRUNERS`."""
        is_of_use = self.num_searched and self.epochs >= PRUNED_FROM and not self.is_frozen
        return "one_epoch" if self.saves_epochs and is_of_use else "none"


@dataclass(frozen=True)
class Subject:
    """What a study is planned for.

    Attributes:
        images: Its images.
        image_size: Side of the square, in pixels, that shows what the pictures have, of `SIZES`.
        has_weights: Whether trained weights can be had.
        is_cpu: Whether a CPU trains.
    """

    images: Images
    image_size: int
    has_weights: bool
    is_cpu: bool

    def batch_size(self, image_size: int) -> int:
        """Return the number of images per step."""
        if self.images.train < 500:
            return 16
        if not self.is_cpu or image_size <= 64:
            return 64
        return 16 if self.images.train < 1000 else 32


@dataclass(frozen=True)
class Plan:
    """A study, and what it takes.

    Attributes:
        rung: What the study has.
        best: What it would have if time did not matter.
        batch_size: Number of images per step.
        networks: Seconds of one training of each network, the quickest first.
        left_out: Seconds of one training of each network that is left out; all take at least as
            long as those that are taken.
        seconds: Seconds of the study.
        fits: Whether it fits into the hours. If nothing does, the plan is the least study.
    """

    rung: Rung
    best: Rung
    batch_size: int
    networks: dict[str, float]
    left_out: dict[str, float]
    seconds: StudySeconds
    fits: bool = True


def make_plan(hours: float, subject: Subject, speeds: Speeds) -> Plan:
    """Return the largest study that fits into some hours, or the least one if none does.

    Args:
        hours: The hours.
        subject: Images and machine.
        speeds: The networks to choose from, of which at least one is measured.
    """
    rungs = list_rungs(subject, len(speeds.multiply_adds))
    plans = [_plan_rung(rung, subject, speeds) for rung in rungs]
    best = rungs[-1]
    fitting = [plan for plan in plans if plan.seconds.total <= 3600 * hours]
    if not fitting:
        least = min(plans, key=lambda plan: plan.seconds.total)
        return replace(least, best=best, fits=False)
    return replace(fitting[-1], best=best)


def _plan_rung(rung: Rung, subject: Subject, speeds: Speeds) -> Plan:
    batch_size = subject.batch_size(rung.image_size)
    found: dict[str, Speed] = {}
    seconds: dict[str, float] = {}
    for name in speeds.multiply_adds:
        found[name] = speeds.of(name, rung.image_size)
        seconds[name] = training_seconds(found[name], subject.images, rung.epochs, rung.is_frozen)
    ordered = sorted(seconds, key=lambda name: (found[name].step, name))
    taken, left_out = ordered[: rung.num_networks], ordered[rung.num_networks :]
    speeds_taken = [found[name] for name in taken]
    trainings = Trainings(
        rung.epochs,
        rung.is_frozen,
        batch_size,
        rung.num_settings,
        rung.num_searched,
        rung.pruner,
    )
    return Plan(
        rung=rung,
        best=rung,
        batch_size=batch_size,
        networks=_pick(seconds, taken),
        left_out=_pick(seconds, left_out),
        seconds=study_seconds(speeds_taken, subject.images, trainings),
    )


def _pick(seconds: dict[str, float], names: Sequence[str]) -> dict[str, float]:
    return {name: seconds[name] for name in names}


def list_rungs(subject: Subject, num_networks: int) -> list[Rung]:
    """Return what a study may have, from the least to what is wanted if time does not matter.

    If trained weights can be had, studies that train heads only come before those that train whole
    networks.

    Args:
        subject: Images and machine.
        num_networks: Number of networks that there are.
    """
    sizes = list_sizes(subject.image_size, subject.has_weights)
    networks = [number for number in NETWORKS if number <= num_networks] or [num_networks]
    common = {
        "image_size": _Steps(sizes, 0.0, 0.85),
        "num_networks": _Steps(networks, 0.25, 0.8),
        "num_settings": _Steps(SETTINGS, 0.35, 0.9),
        "num_searched": _Steps(SEARCHED, 0.3, 0.95),
    }
    all_epochs = FINE_TUNING_EPOCHS if subject.has_weights else EPOCHS
    images_seen = LEAST_STEPS * subject.batch_size(sizes[0])
    epochs = [number for number in all_epochs if number * subject.images.train >= images_seen]
    epochs = epochs or [all_epochs[-1]]
    whole = _climb({**common, "epochs": _Steps(epochs, 0.0, 0.9), "saves_epochs": _PRUNING})
    if not subject.has_weights:
        return whole
    heads = _climb({**common, "epochs": _Steps([HEAD_EPOCHS], 0.0, 0.0)})
    return [*(replace(rung, is_frozen=True) for rung in heads), *whole]


def list_sizes(image_size: int, has_weights: bool) -> list[int]:
    """Return the image sizes that a plan may have.

    Args:
        image_size: Side of the square, in pixels, that shows what the pictures have, of `SIZES`.
        has_weights: Whether trained weights can be had.
    """
    least = image_size / (SMALLEST_TRAINED if has_weights else SMALLEST)
    return [size for size in SIZES if least <= size <= image_size]


@dataclass(frozen=True)
class _Steps:
    """The values that one thing takes on a ladder.

    Attributes:
        values: The values, from the least.
        first: The height from 0 to 1 at which it begins to rise.
        last: The height at which it has its last value.
    """

    values: Sequence[Any]
    first: float
    last: float

    def height(self, number: int) -> float:
        """Return the height at which it takes its value of a number, from 1."""
        return self.first + (self.last - self.first) * number / (len(self.values) - 1)


_PRUNING = _Steps((True, False), 0.99, 1.0)
"""That all searched trials are trained to their end is the last thing that time is given to."""


def _climb(things: dict[str, _Steps]) -> list[Rung]:
    """Return the rungs of a ladder."""
    rises = []
    for name, steps in things.items():
        for number, value in enumerate(steps.values[1:], start=1):
            rises.append((steps.height(number), name, value))
    reached: dict[str, Any] = {name: steps.values[0] for name, steps in things.items()}
    rungs = [Rung(**reached)]
    for _, name, value in sorted(rises, key=lambda rise: rise[:2]):
        reached[name] = value
        rungs.append(Rung(**reached))
    return rungs
