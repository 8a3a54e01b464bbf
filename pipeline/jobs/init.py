"""Look at a user's images and write an experiment file for them."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
"""Tried in this order until five fit."""
NUM_NETWORKS, NUM_CONFIGURATIONS, NUM_SEARCHED = 5, 20, 10
SAMPLE = 60
VALIDATION_COST = 0.35
"""A forward pass over a forward and backward one, roughly."""
TOO_LONG = 3600.0
"""Seconds of one training on the CPU beyond which a network is left out, as long as three others are in."""

_SHARED = {name for name, field in Data.model_fields.items() if facts_of(field).shared}


@dataclass(frozen=True)
class Plan:
    """What was found out about images and machine."""

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
        return (
            self.seconds[network]
            * self.epochs
            * (self.train_images + VALIDATION_COST * self.val_images)
        )


def write_experiment(data: Data, out: Path, device: str, progress: Callable[[str], None]) -> Plan:
    """Write a commented experiment file for the images that `data.source` names.

    Args:
        data: Source and fractions of the split; sizes are chosen here.
        out: File to write; it must not exist yet.
        device: Value of ``training.device``.
        progress: Told what is looked at.

    Raises:
        UserError: The file exists, or the images cannot be used.
    """
    if out.exists():
        raise UserError(f"out: {str(out)!r} exists already; give another --out, or remove it")
    if not out.parent.is_dir():
        raise UserError(f"out: folder {str(out.parent)!r} does not exist")
    if problem := unwritable(out.parent):
        raise Unwritable(f"out: {str(out)!r} cannot be written: {problem}")
    source = open_source(data)
    items = sample_images(source.items, data)
    plan = _look(data, source, items, Counter(assign_splits(items, data)), device, progress)
    with new_file(out) as partial:
        partial.write_text(_text(plan, out), encoding="utf-8")
        load_experiment(str(partial), {})
    return plan


def _look(
    data: Data,
    source: Source,
    items: Sequence[Item],
    splits: Mapping[str, int],
    device_name: str,
    progress: Callable[[str], None],
) -> Plan:
    progress(f"{len(items)} images; looking at up to {SAMPLE} of them")
    sizes = _sizes(data, source, items)
    is_long = sum(max(size) > LONG * min(size) for size in sizes) > MANY * len(sizes)
    side = int(np.median([min(size) for size in sizes]))
    # Kept whole, a picture is as long as the square.
    seen = int(np.median([max(size) for size in sizes])) if is_long else side
    image_size = min(SIZES, key=lambda size: abs(np.log(size / max(seen, 1))))
    device = resolve_device(device_name)
    batch_size = (
        (16 if splits["train"] < 1000 else 32) if device.type == "cpu" and image_size > 64 else 64
    )
    weights, comment = _weights()
    epochs = 10 if weights != "none" else 30
    seconds: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for name in CANDIDATES:
        if len(seconds) == NUM_NETWORKS:
            break
        progress(f"timing {name} on {device} at {image_size} pixels, batches of {batch_size}")
        network = models.build(Model(name=name), len({item.label for item in items}), image_size)
        measured = seconds_per_image(network, batch_size, image_size, device)
        training = (measured or 0) * epochs * splits["train"]
        if measured is None:
            left_out[name] = f"a batch of {batch_size} does not fit in the memory of {device}"
        elif training > TOO_LONG and len(seconds) >= 3:
            left_out[name] = f"about {format_duration(training)} a training here"
        else:
            seconds[name] = measured
    if not seconds:
        raise UserError(f"no network fits in the memory of {device} with batches of {batch_size}")
    counts = dict(
        sorted(Counter(item.label for item in items).items(), key=lambda item: natural_key(item[0]))
    )
    changed = {
        name: value
        for name, value in data.model_dump(include=_SHARED).items()
        if name != "source" and value != getattr(Data(), name)
    }
    return Plan(
        data.name,
        data.source,
        changed,
        is_long,
        counts,
        splits["train"],
        splits["val"],
        side,
        image_size,
        batch_size,
        epochs,
        weights,
        comment,
        str(device),
        seconds,
        left_out,
    )


def _sizes(data: Data, source: Source, items: Sequence[Item]) -> list[tuple[int, int]]:
    chosen = [items[int(i)] for i in np.linspace(0, len(items) - 1, min(len(items), SAMPLE))]
    sizes, unreadable = [], []
    decoding = Decoding.of(data)
    for item in chosen:
        try:
            sizes.append(source.reader.image(source.reader.read(item.path), decoding).image.size)
        except UNREADABLE:
            unreadable.append(item.path)
    if not sizes:
        raise UserError(
            f"{len(unreadable)} of {len(chosen)} images looked at cannot be read", unreadable
        )
    return sizes


def _weights() -> tuple[str, str]:
    try:
        models.fetch(Model(name="resnet18", weights="DEFAULT"))
    except UserError:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        return (
            "none",
            f"ImageNet weights cannot be downloaded here; with their files in {folder}, DEFAULT learns faster and better",
        )
    return "DEFAULT", "torchvision's ImageNet weights; none starts from random ones"


def _text(plan: Plan, out: Path) -> str:
    entries = _entries(plan)
    listed = sum(plan.training_seconds(name) for name, _, _ in entries)
    searched = NUM_SEARCHED * float(np.mean([plan.training_seconds(name) for name in plan.seconds]))
    least, most = (
        min(plan.counts, key=plan.counts.__getitem__),
        max(plan.counts, key=plan.counts.__getitem__),
    )
    total = sum(plan.counts.values())
    times = [
        f"#   {name:<12} {format_duration(plan.training_seconds(name)):>7} a training, {1 / plan.seconds[name]:.0f} images a second"
        for name in plan.seconds
    ]
    times += [f"#   {name:<12} left out: {reason}" for name, reason in plan.left_out.items()]
    first_lr = [1e-4, 3e-4] if plan.weights != "none" else [5e-4, 1e-3]
    lines = [
        f"# Which ResNet or DenseNet classifies {plan.source} best?",
        "#",
        f"#   python -m pipeline main --config {shlex.quote(str(out))}",
        "#   (a first look in minutes: add --fast true)",
        "#",
        f"# {total} images of {len(plan.counts)} classes, from {plan.counts[least]} of {least!r} to {plan.counts[most]} of {most!r};",
        f"# always saying {most!r} would be right in {plan.counts[most] / total:.1%}.",
        f"# Median of the shorter sides: {plan.median_side} pixels.",
        f"# Measured on this machine ({plan.device}), {plan.epochs} epochs:",
        *times,
        f"# So the list of {NUM_CONFIGURATIONS} takes about {format_duration(listed)}, and the {NUM_SEARCHED} searched after it",
        f"# about {format_duration(searched)}.",
        f"experiment: {_quoted(plan.name)}   # names runs, folders and the registered model",
        "base:",
        "  data:",
        f"    source: {_quoted(plan.source)}",
        *(
            f"    {name}: {_quoted(value) if isinstance(value, str) else value}"
            for name, value in plan.changed.items()
        ),
        *(
            [
                "    fit: pad      # over a tenth are more than twice as long as wide: crop cuts their ends"
            ]
            if plan.is_long
            else []
        ),
        f"    image_size: {plan.image_size}      # pixels; larger shows more and takes longer",
        f"    batch_size: {plan.batch_size}       # halve it where memory runs out",
        "    augment: [RandomHorizontalFlip]   # remove it where left and right differ, as in letters; see torchvision v2 for more",
        "  model:",
        f"    weights: {plan.weights}      # {plan.weights_comment}",
        f"  optimizer: {{name: adamw, lr: {first_lr[0]:.1e}, weight_decay: 1.0e-4}}",
        "  schedule: {name: cosine, warmup_epochs: 1}",
        f"  training: {{epochs: {plan.epochs}}}",
        f"configs:   # {NUM_CONFIGURATIONS} trainings; delete what does not interest you",
        *(
            f"  - {{model: {{name: {name}}}, optimizer: {{lr: {lr:.1e}}}, schedule: {{name: {schedule}}}}}"
            for name, lr, schedule in entries
        ),
        "space:     # searched after the list",
        f"  model.name: [{', '.join(plan.seconds)}]",
        f"  optimizer.lr: {{low: {first_lr[0] / 10:.1e}, high: {first_lr[1] * 10:.1e}, log: true}}",
        "  schedule.name: [none, exponential, cosine]",
        f"study: {{trials: {NUM_CONFIGURATIONS + NUM_SEARCHED}}}   # list and search together",
    ]
    return "\n".join(lines) + "\n"


def _entries(plan: Plan) -> list[tuple[str, float, str]]:
    lrs = (1e-4, 3e-4, 1e-3, 3e-5) if plan.weights != "none" else (1e-3, 5e-4, 2e-3, 2e-4)
    settings = [
        (lr, schedule)
        for lr_pair in (lrs[:2], lrs[2:])
        for lr, schedule in product(
            lr_pair, ("cosine", "none", "exponential")[: 2 if lr_pair == lrs[:2] else 3]
        )
    ]
    chosen = [(name, lr, schedule) for lr, schedule in settings for name in plan.seconds]
    if len(chosen) < NUM_CONFIGURATIONS:
        chosen += [(name, lr, "step") for lr in lrs for name in plan.seconds]
    return sorted(chosen[:NUM_CONFIGURATIONS], key=lambda entry: list(plan.seconds).index(entry[0]))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
