"""Compose a commented experiment file from what was found out and planned."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from pipeline.jobs.image_survey import Survey
from pipeline.jobs.network_speeds import Speeds
from pipeline.jobs.study_plan import Plan, Rung
from pipeline.report.format import format_duration

Entry = tuple[str, float, str]
"""Network, learning rate and schedule of a training of the list."""


@dataclass(frozen=True)
class Findings:
    """All that an experiment file is written from.

    Attributes:
        survey: What was found out about the images.
        hours: The hours that were asked for.
        plan: The study.
        doubled: The study of twice the hours.
        speeds: Speeds of the networks.
        device: The device on which they were measured.
        is_disturbed: Whether times of one network differed much.
        unfit: Reason for each network that cannot be taken.
        weights_comment: Comment that stands beside the weights.
        has_weights: Whether trained weights can be had.
    """

    survey: Survey
    hours: float
    plan: Plan
    doubled: Plan
    speeds: Speeds
    device: str
    is_disturbed: bool
    unfit: dict[str, str]
    weights_comment: str
    has_weights: bool

    @property
    def lrs(self) -> tuple[float, float]:
        """The two learning rates of the list."""
        if self.plan.rung.is_frozen or not self.has_weights:
            return 1e-3, 5e-4
        return 1e-4, 3e-4


def compose_text(found: Findings, out: Path) -> str:
    """Return the content of the experiment file."""
    rung = found.plan.rung
    lr = found.lrs[0]
    warmup = min(1.0, rung.epochs / 4)
    lines = [
        *_header(found, out),
        f"experiment: {_quote(found.survey.name)}   # names runs, folders and the registered model",
        "base:",
        *_data_section(found),
        *_model_section(found),
        f"  optimizer: {{name: adamw, lr: {lr:.1e}, weight_decay: 1.0e-4}}",
        f"  schedule: {{name: cosine, warmup_epochs: {warmup:g}}}",
        f"  training: {{epochs: {rung.epochs}}}",
        f"configs:   # {rung.num_listed} trainings; delete what does not interest you",
    ]
    for name, entry_lr, schedule in list_entries(found):
        lines.append(
            f"  - {{model: {{name: {name}}}, optimizer: {{lr: {entry_lr:.1e}}}, "
            f"schedule: {{name: {schedule}}}}}"
        )
    lines += _study_section(found)
    return "\n".join(lines) + "\n"


def list_entries(found: Findings) -> list[Entry]:
    """Return the trainings of the list, network by network."""
    settings = [(lr, schedule) for schedule, lr in product(("cosine", "none"), found.lrs)]
    chosen = settings[: found.plan.rung.num_settings]
    return [(name, *setting) for name, setting in product(found.plan.networks, chosen)]


def _header(found: Findings, out: Path) -> list[str]:
    """Return the comment that opens the file."""
    return [
        f"# Which ResNet or DenseNet classifies {found.survey.source} best?",
        "#",
        f"#   python -m pipeline main --config {shlex.quote(str(out))}",
        "#   (a first look in minutes: add --fast true)",
        "#",
        *_describe_images(found.survey),
        "#",
        *_describe_times(found),
        "#",
        *_describe_changes("Given up for these hours", found.plan.best, found.plan.rung),
        *_describe_changes("Twice the time would buy", found.doubled.rung, found.plan.rung),
    ]


def _describe_images(survey: Survey) -> list[str]:
    least = min(survey.counts, key=survey.counts.__getitem__)
    most = max(survey.counts, key=survey.counts.__getitem__)
    spread = f"from {survey.counts[least]} of {least!r} to {survey.counts[most]} of {most!r}"
    if survey.counts[least] == survey.counts[most]:
        spread = f"{survey.counts[most]} of each"
    total = sum(survey.counts.values())
    return [
        f"# {total} images of {len(survey.counts)} classes, {spread};",
        f"# always saying {most!r} would be right in {survey.counts[most] / total:.1%}.",
        f"# Median of the shorter sides: {survey.median_side} pixels.",
    ]


def _describe_times(found: Findings) -> list[str]:
    """Return what the study takes, part by part, and what each network takes."""
    plan = found.plan
    rung = plan.rung
    seconds = plan.seconds
    searched = f"{rung.num_searched} searched {format_duration(seconds.searched)}, "
    if not rung.num_searched:
        searched = ""
    lines = [
        f"# Planned for {found.hours:g} hours on this machine ({found.device}): "
        f"about {format_duration(seconds.total)}.",
        f"# The list of {rung.num_listed} takes {format_duration(seconds.listed)}, {searched}"
        f"evaluation {format_duration(seconds.evaluation)}, all else "
        f"{format_duration(seconds.rest)}.",
        f"# One training of {rung.epochs} epochs at {rung.image_size} pixels:",
    ]
    for name, training in plan.networks.items():
        lines.append(f"#   {name:<12} {_describe_network(found, name, training)}")
    for name, training in plan.left_out.items():
        lines.append(f"#   {name:<12} {_describe_network(found, name, training)}; left out")
    lines += [f"#   {name:<12} left out: {reason}" for name, reason in found.unfit.items()]
    if found.is_disturbed:
        lines.append(
            "# Other work has disturbed the timing: while it goes on, all may take much longer."
        )
    return lines


def _describe_network(found: Findings, name: str, training: float) -> str:
    cell = (name, found.plan.rung.image_size)
    how = "measured" if cell in found.speeds.measured else "estimated by its multiply-adds"
    speed = 1 / found.speeds.of(*cell).step
    shown = f"{speed:.0f}" if speed >= 10 else f"{speed:.1f}"
    return f"{format_duration(training):>7}, {shown} images a second ({how})"


def _describe_changes(title: str, more: Rung, less: Rung) -> list[str]:
    """Return what one study has beyond another, as a comment of one line for each thing."""
    changes = list_changes(more, less)
    if not changes:
        return [f"# {title}: nothing."]
    return [f"# {title}:", *(f"#   {change}" for change in changes)]


def list_changes(more: Rung, less: Rung) -> list[str]:
    """Return what one study has beyond another, in words."""
    things = [
        ("image_size", "pixels as the side of an image"),
        ("epochs", "epochs a training"),
        ("num_networks", "networks"),
        ("num_listed", "configurations in the list"),
        ("num_searched", "searched configurations"),
    ]
    changes = []
    if less.is_frozen and not more.is_frozen:
        changes.append("whole networks that are trained, instead of their heads alone")
        things.remove(("epochs", "epochs a training"))
    for name, words in things:
        wanted, given = getattr(more, name), getattr(less, name)
        if wanted != given:
            changes.append(f"{wanted} {words}, instead of {given}")
    if less.pruner != "none" and more.pruner == "none":
        changes.append("searched trainings to their end, also of those that are behind")
    return changes


def _data_section(found: Findings) -> list[str]:
    survey = found.survey
    lines = ["  data:", f"    source: {_quote(survey.source)}"]
    for name, value in survey.changed.items():
        lines.append(f"    {name}: {_quote(value) if isinstance(value, str) else value}")
    if survey.is_long:
        lines.append(
            "    fit: pad      "
            "# over a tenth are more than twice as long as wide: crop cuts their ends"
        )
    lines += [
        f"    image_size: {found.plan.rung.image_size}      "
        "# pixels; larger shows more and takes longer",
        f"    batch_size: {found.plan.batch_size}       # halve it where memory runs out",
    ]
    if not found.plan.rung.is_frozen:
        lines.append(
            "    augment: [RandomHorizontalFlip]   # remove it where left and right differ, "
            "as in letters; see torchvision v2 for more"
        )
    return lines


def _model_section(found: Findings) -> list[str]:
    weights = "DEFAULT" if found.has_weights else "none"
    lines = ["  model:", f"    weights: {weights}      # {found.weights_comment}"]
    if found.plan.rung.is_frozen:
        lines.append(
            "    freeze: backbone   # trains the head on features that are computed once; "
            "none trains the whole network"
        )
    return lines


def _study_section(found: Findings) -> list[str]:
    """Return space and study."""
    rung = found.plan.rung
    low, high = sorted(found.lrs)
    trials = rung.num_listed + rung.num_searched
    lines = []
    if rung.num_searched:
        lines += [
            "space:     # searched after the list",
            f"  model.name: [{', '.join(found.plan.networks)}]",
            f"  optimizer.lr: {{low: {low / 10:.1e}, high: {high * 10:.1e}, log: true}}",
            "  schedule.name: [none, exponential, cosine]",
        ]
    lines += [
        "study:",
        f"  trials: {trials}   # list and search together",
        f"  pruner: {rung.pruner}   # one_epoch: all searched ones for an epoch, then the best",
        f"  hours: {found.hours:g}   # no training is begun after them; 0 begins them all",
    ]
    return lines


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
