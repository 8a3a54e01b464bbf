"""Look at a user's images and write an experiment file for them."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import models
from pipeline.config import Data, Model, facts_of
from pipeline.data.decode import UNREADABLE, Decoding
from pipeline.data.picture_warnings import LONG, MANY
from pipeline.data.sources import Item, Source, open_source
from pipeline.data.splits import assign_splits, sample_images
from pipeline.errors import Unwritable, UserError
from pipeline.experiment import load_experiment
from pipeline.files import new_file, unwritable
from pipeline.natural_order import natural_key
from pipeline.report.format import format_duration
from pipeline.training.device import resolve_device
from pipeline.training.timing import seconds_per_image

SIZES = (32, 64, 96, 128, 160, 224)
CANDIDATES = (
    "resnet18",
    "resnet34",
    "densenet121",
    "resnet50",
    "densenet169",
    "resnet101",
    "densenet201",
)
"""Networks that are tried in this order until five fit."""
NUM_NETWORKS = 5
NUM_CONFIGURATIONS = 20
NUM_SEARCHED = 10
SAMPLE = 60
VALIDATION_COST = 0.35
"""Time of a forward pass over that of a forward and backward one, roughly."""
TOO_LONG = 3600.0
"""Seconds of one training on the CPU beyond which a network is left out, if three others are in."""

_SHARED = {name for name, field in Data.model_fields.items() if facts_of(field).shared}


@dataclass(frozen=True)
class Plan:
    """What was found out about images and machine, and what was chosen from it.

    Attributes:
        name: Name of the images.
        source: The images, as ``data.source`` names them.
        changed: Options on the images that differ from their defaults, by field of `Data`.
        is_long: Whether so many pictures are long and narrow that they are kept whole.
        counts: Number of images of each class, in natural order.
        train_images: Number of training images.
        val_images: Number of validation images.
        median_side: Median of the shorter sides of the pictures, in pixels.
        image_size: Side of the square that the network sees, in pixels.
        batch_size: Number of images per step.
        epochs: Number of epochs of one training.
        weights: Value of ``model.weights``.
        weights_comment: Comment that stands beside the weights.
        device: The device on which the times were measured.
        seconds: Seconds per training image of each network that is taken.
        left_out: Reason for each network that is left out.
    """

    name: str
    source: str
    changed: dict[str, Any]
    is_long: bool
    counts: dict[str, int]
    train_images: int
    val_images: int
    median_side: int
    image_size: int
    batch_size: int
    epochs: int
    weights: str
    weights_comment: str
    device: str
    seconds: dict[str, float]
    left_out: dict[str, str]

    def training_seconds(self, network: str) -> float:
        """Return the estimated time of one training."""
        images = self.train_images + VALIDATION_COST * self.val_images
        return self.seconds[network] * self.epochs * images


def write_experiment(data: Data, out: Path, device: str, progress: Callable[[str], None]) -> Plan:
    """Write a commented experiment file for the images that `data.source` names.

    Args:
        data: Source and fractions of the split; sizes are chosen here.
        out: The experiment file, which must not exist yet.
        device: Value of ``training.device``.
        progress: Called with a line that says what is looked at.

    Raises:
        UserError: The file exists, or the images cannot be used.
    """
    if out.exists():
        raise UserError(f"out: {str(out)!r} exists already; give another --out, or remove it")
    if not out.parent.is_dir():
        raise UserError(f"out: folder {str(out.parent)!r} does not exist")
    problem = unwritable(out.parent)
    if problem:
        raise Unwritable(f"out: {str(out)!r} cannot be written: {problem}")
    source = open_source(data)
    items = sample_images(source.items, data)
    splits = Counter(assign_splits(items, data))
    plan = _look_at_images(data, source, items, splits, device, progress)
    plan = _time_networks(plan, progress)
    with new_file(out) as partial:
        partial.write_text(_compose_text(plan, out), encoding="utf-8")
        load_experiment(str(partial), {})
    return plan


def _look_at_images(
    data: Data,
    source: Source,
    items: Sequence[Item],
    splits: Mapping[str, int],
    device_name: str,
    progress: Callable[[str], None],
) -> Plan:
    """Choose all but the networks."""
    progress(f"{len(items)} images; looking at up to {SAMPLE} of them")
    sizes = _read_sizes(data, source, items)
    is_long = sum(max(size) > LONG * min(size) for size in sizes) > MANY * len(sizes)
    median_side = int(np.median([min(size) for size in sizes]))
    seen = median_side
    if is_long:
        # Kept whole, a picture is as long as the square.
        seen = int(np.median([max(size) for size in sizes]))
    image_size = min(SIZES, key=lambda size: abs(np.log(size / max(seen, 1))))
    device = resolve_device(device_name)
    batch_size = 64
    if device.type == "cpu" and image_size > 64:
        batch_size = 16 if splits["train"] < 1000 else 32
    weights, weights_comment = _choose_weights()
    labels = Counter(item.label for item in items)
    return Plan(
        name=data.name,
        source=data.source,
        changed=_find_changed(data),
        is_long=is_long,
        counts={label: labels[label] for label in sorted(labels, key=natural_key)},
        train_images=splits["train"],
        val_images=splits["val"],
        median_side=median_side,
        image_size=image_size,
        batch_size=batch_size,
        epochs=10 if weights != "none" else 30,
        weights=weights,
        weights_comment=weights_comment,
        device=str(device),
        seconds={},
        left_out={},
    )


def _read_sizes(data: Data, source: Source, items: Sequence[Item]) -> list[tuple[int, int]]:
    """Return the sizes in pixels of some of the images, spread evenly."""
    places = np.linspace(0, len(items) - 1, min(len(items), SAMPLE))
    chosen = [items[int(place)] for place in places]
    sizes = []
    unreadable = []
    decoding = Decoding.of(data)
    for item in chosen:
        try:
            content = source.reader.read(item.path)
            sizes.append(source.reader.image(content, decoding).image.size)
        except UNREADABLE:
            unreadable.append(item.path)
    if not sizes:
        raise UserError(
            f"{len(unreadable)} of {len(chosen)} images looked at cannot be read", unreadable
        )
    return sizes


def _choose_weights() -> tuple[str, str]:
    """Return the value of ``model.weights``, and a comment on it."""
    try:
        models.fetch(Model(name="resnet18", weights="DEFAULT"))
    except UserError:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        return "none", (
            f"ImageNet weights cannot be downloaded here; with their files in {folder}, "
            "DEFAULT learns faster and better"
        )
    return "DEFAULT", "torchvision's ImageNet weights; none starts from random ones"


def _find_changed(data: Data) -> dict[str, Any]:
    defaults = Data()
    return {
        name: value
        for name, value in data.model_dump(include=_SHARED).items()
        if name != "source" and value != getattr(defaults, name)
    }


def _time_networks(plan: Plan, progress: Callable[[str], None]) -> Plan:
    """Return the plan with the networks that are taken, and those that are left out.

    Raises:
        UserError: No network fits in the memory.
    """
    device = torch.device(plan.device)
    seconds: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for name in CANDIDATES:
        if len(seconds) == NUM_NETWORKS:
            break
        progress(
            f"timing {name} on {device} at {plan.image_size} pixels, batches of {plan.batch_size}"
        )
        network = models.build(Model(name=name), len(plan.counts), plan.image_size)
        measured = seconds_per_image(network, plan.batch_size, plan.image_size, device)
        training = (measured or 0) * plan.epochs * plan.train_images
        if measured is None:
            left_out[name] = f"a batch of {plan.batch_size} does not fit in the memory of {device}"
        elif training > TOO_LONG and len(seconds) >= 3:
            left_out[name] = f"about {format_duration(training)} a training here"
        else:
            seconds[name] = measured
    if not seconds:
        raise UserError(
            f"no network fits in the memory of {device} with batches of {plan.batch_size}"
        )
    return replace(plan, seconds=seconds, left_out=left_out)


def _compose_text(plan: Plan, out: Path) -> str:
    """Return the content of the experiment file."""
    entries = _list_entries(plan)
    low, high = (1e-4, 3e-4) if plan.weights != "none" else (5e-4, 1e-3)
    lines = [
        *_header(plan, out, entries),
        f"experiment: {_quote(plan.name)}   # names runs, folders and the registered model",
        "base:",
        *_data_section(plan),
        "  model:",
        f"    weights: {plan.weights}      # {plan.weights_comment}",
        f"  optimizer: {{name: adamw, lr: {low:.1e}, weight_decay: 1.0e-4}}",
        "  schedule: {name: cosine, warmup_epochs: 1}",
        f"  training: {{epochs: {plan.epochs}}}",
        f"configs:   # {NUM_CONFIGURATIONS} trainings; delete what does not interest you",
    ]
    for name, lr, schedule in entries:
        lines.append(
            f"  - {{model: {{name: {name}}}, optimizer: {{lr: {lr:.1e}}}, "
            f"schedule: {{name: {schedule}}}}}"
        )
    lines += [
        "space:     # searched after the list",
        f"  model.name: [{', '.join(plan.seconds)}]",
        f"  optimizer.lr: {{low: {low / 10:.1e}, high: {high * 10:.1e}, log: true}}",
        "  schedule.name: [none, exponential, cosine]",
        f"study: {{trials: {NUM_CONFIGURATIONS + NUM_SEARCHED}}}   # list and search together",
    ]
    return "\n".join(lines) + "\n"


def _header(plan: Plan, out: Path, entries: Sequence[tuple[str, float, str]]) -> list[str]:
    """Return the comment that opens the file: the question, the command, images and times."""
    least = min(plan.counts, key=plan.counts.__getitem__)
    most = max(plan.counts, key=plan.counts.__getitem__)
    spread = f"from {plan.counts[least]} of {least!r} to {plan.counts[most]} of {most!r}"
    if plan.counts[least] == plan.counts[most]:
        spread = f"{plan.counts[most]} of each"
    total = sum(plan.counts.values())
    listed = sum(plan.training_seconds(name) for name, _, _ in entries)
    mean = float(np.mean([plan.training_seconds(name) for name in plan.seconds]))
    searched = NUM_SEARCHED * mean
    times = []
    for name in plan.seconds:
        training = format_duration(plan.training_seconds(name))
        speed = 1 / plan.seconds[name]
        times.append(f"#   {name:<12} {training:>7} a training, {_count(speed)} images a second")
    times += [f"#   {name:<12} left out: {reason}" for name, reason in plan.left_out.items()]
    return [
        f"# Which ResNet or DenseNet classifies {plan.source} best?",
        "#",
        f"#   python -m pipeline main --config {shlex.quote(str(out))}",
        "#   (a first look in minutes: add --fast true)",
        "#",
        f"# {total} images of {len(plan.counts)} classes, {spread};",
        f"# always saying {most!r} would be right in {plan.counts[most] / total:.1%}.",
        f"# Median of the shorter sides: {plan.median_side} pixels.",
        f"# Measured on this machine ({plan.device}), {plan.epochs} epochs:",
        *times,
        f"# So the list of {NUM_CONFIGURATIONS} takes about {format_duration(listed)}, "
        f"and the {NUM_SEARCHED} searched after it",
        f"# about {format_duration(searched)}.",
    ]


def _count(speed: float) -> str:
    return f"{speed:.0f}" if speed >= 10 else f"{speed:.1f}"


def _data_section(plan: Plan) -> list[str]:
    lines = ["  data:", f"    source: {_quote(plan.source)}"]
    for name, value in plan.changed.items():
        lines.append(f"    {name}: {_quote(value) if isinstance(value, str) else value}")
    if plan.is_long:
        lines.append(
            "    fit: pad      "
            "# over a tenth are more than twice as long as wide: crop cuts their ends"
        )
    lines += [
        f"    image_size: {plan.image_size}      # pixels; larger shows more and takes longer",
        f"    batch_size: {plan.batch_size}       # halve it where memory runs out",
        "    augment: [RandomHorizontalFlip]   # remove it where left and right differ, "
        "as in letters; see torchvision v2 for more",
    ]
    return lines


def _list_entries(plan: Plan) -> list[tuple[str, float, str]]:
    """Return network, learning rate and schedule of each training of the list."""
    lrs = (1e-4, 3e-4, 1e-3, 3e-5) if plan.weights != "none" else (1e-3, 5e-4, 2e-3, 2e-4)
    settings = [
        *product(lrs[:2], ("cosine", "none")),
        *product(lrs[2:], ("cosine", "none", "exponential")),
    ]
    entries: list[tuple[str, float, str]] = []
    for lr, schedule in settings:
        entries += [(name, lr, schedule) for name in plan.seconds]
    if len(entries) < NUM_CONFIGURATIONS:
        for lr in lrs:
            entries += [(name, lr, "step") for name in plan.seconds]
    networks = list(plan.seconds)
    return sorted(entries[:NUM_CONFIGURATIONS], key=lambda entry: networks.index(entry[0]))


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
