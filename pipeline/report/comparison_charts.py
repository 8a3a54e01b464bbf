"""Charts of a comparison: learning curves overlaid, accuracy against cost, what settings do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import (
    LogLocator,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
    StrMethodFormatter,
)

from pipeline import ranking
from pipeline.report.figures import BLUE, GREY, ORANGE, save
from pipeline.report.fonts import drawable
from pipeline.report.format import format_short
from pipeline.scores.effects import Effect

MOST_CURVES = 10
"""Trainings whose curves are drawn over one another: more cannot be told apart."""
MOST_EFFECTS = 14
"""Effects that have a row: those of the most pairs."""
_LABELLED = 8
_LONGEST = 46


class Curves(NamedTuple):
    """The epochs of a training.

    Attributes:
        label: What it is called.
        values: The metric that ranks, by epoch.
        learning_rates: The learning rate, by epoch.
    """

    label: str
    values: Mapping[int, float]
    learning_rates: Mapping[int, float]


def draw_curves(file: Path, trainings: Sequence[Curves], metric: str) -> None:
    """Draw the metric that ranks and the learning rate of several trainings, by epoch.

    Args:
        file: PNG to write.
        trainings: The trainings, the best first.
        metric: The metric that ranks them.
    """
    figure = Figure(figsize=(11, 4.4), layout="constrained", dpi=110)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    colours = matplotlib.colormaps["tab10"]
    labels = drawable([_shorten(training.label) for training in trainings])
    for number, (training, label) in enumerate(zip(trainings, labels, strict=True)):
        style = {"color": colours(number % 10), "linewidth": 2.4 if number == 0 else 1.2}
        left.plot(*_points(training.values), label=label, marker=".", **style)
        # A schedule may end at zero, for which a logarithmic axis has no place.
        above = {epoch: rate for epoch, rate in training.learning_rates.items() if rate > 0}
        right.plot(*_points(above), marker=".", **style)
    if ranking.is_share(metric):
        left.yaxis.set_major_formatter(PercentFormatter(1))
    left.set_title(ranking.title(metric))
    right.set_title("learning rate")
    if any(max(training.learning_rates.values(), default=0.0) > 0 for training in trainings):
        right.set_yscale("log")
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    save(figure, file)


def _points(values: Mapping[int, float]) -> tuple[list[int], list[float]]:
    # MLflow stores infinity as 1.8e308.
    epochs = sorted(epoch for epoch, value in values.items() if abs(value) < 1e300)
    return epochs, [values[epoch] for epoch in epochs]


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def draw_cost(file: Path, rows: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> None:
    """Draw test accuracy against speed; a line joins those that no other one beats in both.

    Args:
        file: PNG to write.
        rows: Results of `pipeline.report.merged.merge_repeats` that are evaluated and measured.
        labels: What they are called; the first ones, and those on the line, are written.
    """
    figure = Figure(figsize=(9, 4.6), layout="constrained", dpi=110)
    axes = figure.subplots()
    speeds = np.array([row["images_per_second"] for row in rows], float)
    accuracies = np.array([row["test_accuracy"] for row in rows], float)
    lows = np.array([_number(row["test_accuracy_low"]) for row in rows])
    highs = np.array([_number(row["test_accuracy_high"]) for row in rows])
    axes.vlines(speeds, lows, highs, color=ORANGE, alpha=0.3, linewidth=3)
    front = [number for number, row in enumerate(rows) if row["is_pareto"]]
    front.sort(key=speeds.__getitem__)
    axes.plot(speeds[front], accuracies[front], color=BLUE, linewidth=1, drawstyle="steps-pre")
    rest = [number for number in range(len(rows)) if number not in front]
    axes.scatter(speeds[rest], accuracies[rest], color=GREY, zorder=3, s=28)
    axes.scatter(speeds[front], accuracies[front], color=BLUE, zorder=4, s=36)
    shown = drawable([_shorten(label) for label in labels])
    middle = math.sqrt(float(speeds.min() * speeds.max()))
    for number in {0, *front[-_LABELLED:]}:
        is_left = speeds[number] <= middle
        axes.annotate(
            shown[number],
            (speeds[number], accuracies[number]),
            # The leader's name stands below its dot, so that it meets no other one.
            xytext=(6 if is_left else -6, 5 if number else -12),
            textcoords="offset points",
            ha="left" if is_left else "right",
            fontsize=8,
        )
    if speeds.max() > 3 * speeds.min():
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set(xlabel="images a second (further right is cheaper)", ylabel="test accuracy")
    axes.grid(alpha=0.3, which="both")
    axes.margins(x=0.12)
    save(figure, file)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def draw_effects(file: Path, effects: Sequence[Effect], names: Mapping[str, str]) -> None:
    """Draw by how much each change of a setting changes the scores: mean, and each pair.

    Args:
        file: PNG to write.
        effects: The effects, those of the most pairs first.
        names: What settings are called, by dotted name.
    """
    drawn = effects[:MOST_EFFECTS]
    figure = Figure(figsize=(9, 1.5 + 0.38 * len(drawn)), layout="constrained", dpi=110)
    axes = figure.subplots()
    labels = []
    for place, effect in enumerate(drawn):
        for metric, colour, shift in (("validation", BLUE, -0.14), ("test", ORANGE, 0.14)):
            found = np.array(effect.differences.get(metric, ())) * 100
            label = metric if place == 0 else None
            if len(found):
                heights = np.full(len(found), place + shift)
                axes.scatter(found, heights, color=colour, alpha=0.35, s=14)
                mean = float(found.mean())
                axes.scatter(mean, place + shift, color=colour, s=60, marker="|", label=label)
        pairs = "1 pair" if effect.num_pairs == 1 else f"{effect.num_pairs} pairs"
        name = names.get(effect.setting, effect.setting)
        values = f"{format_short(effect.before)} → {format_short(effect.after)}"
        labels.append(_shorten(f"{name} {values}") + f" ({pairs})")
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_yticks(range(len(drawn)), drawable(labels), fontsize=8)
    axes.set_ylim(len(drawn) - 0.5, -0.5)
    axes.set_xlabel("points gained (a dot for each pair, a bar for their mean)")
    axes.grid(alpha=0.3, axis="x")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
    save(figure, file)
