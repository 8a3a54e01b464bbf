"""The runs of a study side by side, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from pipeline import ranking
from pipeline.report.figures import BLUE, GREY, ORANGE, is_near, majority_text, save
from pipeline.report.fonts import drawable

MOST_COMPARED = 100
"""Number of runs that have a row each: a picture of 1,000 rows would be eight metres high."""


def draw_comparison(
    file: Path,
    rows: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
    majority: float | None = None,
    metric: str = ranking.DEFAULT,
) -> None:
    """Draw each run's value of the metric it is ranked by, on validation and test images.

    The best run is at the top. If the metric is the accuracy, a bar shows the 95% interval of the
    test accuracy. Runs that are not complete are grey; if one is far worse than the others, its
    number stands at the edge instead. Of many runs the first `MOST_COMPARED` have a row each; the
    last row says how many more there are, and shows where their values lie.

    Args:
        file: PNG to write.
        rows: Runs in order, each with state, val_accuracy, test_accuracy, test_accuracy_low and
            test_accuracy_high; for a metric other than the accuracy with value and test_value.
        labels: Names of the runs.
        majority: Validation accuracy of always answering the largest class. It is drawn as a line
            if the axis has it, else it is a note at the end of the axis.
        metric: The metric that the runs are ranked by.
    """
    is_accuracy = metric == ranking.DEFAULT
    dots = [_Dots.of(row, is_accuracy) for row in rows[:MOST_COMPARED]]
    rest = [_Dots.of(row, is_accuracy) for row in rows[MOST_COMPARED:]]
    names = list(labels[:MOST_COMPARED])
    if rest:
        names.append(_rest_text(rest, metric))
    figure = Figure(figsize=(9, 1.4 + 0.3 * max(len(names), 3)), layout="constrained", dpi=110)
    axes = figure.subplots()
    edge = _worse_edge(dots, metric)
    _draw_runs(axes, dots, edge, metric)
    axes.set_yticks(range(len(names)), drawable(names), fontsize=8)
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
    if ranking.is_lower_better(metric):
        axes.set_xlim(right=edge)
    else:
        axes.set_xlim(left=edge)
    span = _span(rest)
    if span is not None:
        axes.hlines(len(dots), *span, color=GREY, alpha=0.45, linewidth=4)
    if majority is not None and is_accuracy:
        _draw_majority(axes, majority)
    if ranking.is_share(metric):
        axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_title(ranking.title(metric).removeprefix("validation "))
    axes.grid(alpha=0.3, axis="x")
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    save(figure, file)


class _Dots(NamedTuple):
    """The values that are drawn of one run; `low` and `high` are NaN if there is no interval."""

    is_complete: bool
    val: float
    test: float | None
    low: float
    high: float

    @classmethod
    def of(cls, row: Mapping[str, Any], is_accuracy: bool) -> _Dots:
        if is_accuracy:
            val = row["val_accuracy"]
            test = row.get("test_accuracy")
            low = row.get("test_accuracy_low")
            high = row.get("test_accuracy_high")
        else:
            val = row["value"]
            test = row.get("test_value")
            low = None
            high = None
        return cls(
            row["state"] == "complete",
            float(val),
            None if test is None else float(test),
            math.nan if low is None else float(low),
            math.nan if high is None else float(high),
        )


def _rest_text(rest: Sequence[_Dots], metric: str) -> str:
    text = f"and {len(rest):,} more"
    span = _span(rest)
    if span is None:
        return text
    low, high = span
    return f"{text}, {ranking.text(low, metric)} to {ranking.text(high, metric)}"


def _span(dots: Sequence[_Dots]) -> tuple[float, float] | None:
    values = [dot.val for dot in dots if math.isfinite(dot.val)]
    return (min(values), max(values)) if values else None


def _worse_edge(dots: Sequence[_Dots], metric: str) -> float:
    """Return where the axis ends on its worse side: somewhat beyond the worst complete run."""
    known: list[float] = []
    for dot in dots:
        if dot.is_complete:
            values = (dot.val, dot.test, dot.low)
            known += [value for value in values if value is not None and math.isfinite(value)]
    if ranking.is_lower_better(metric):
        all_values = [dot.val for dot in dots if math.isfinite(dot.val)]
        highest = max(known or all_values, default=1.0)
        return highest + 0.25 * (highest - min(known, default=0.0)) + 0.02 * highest + 1e-9
    lowest = min(known, default=0.0)
    return max(0.0, lowest - 0.25 * (1.02 - lowest))


def _draw_runs(axes: Axes, dots: Sequence[_Dots], edge: float, metric: str) -> None:
    complete: list[tuple[float, int]] = []
    incomplete: list[tuple[float, int]] = []
    tested: list[tuple[float, int]] = []
    for place, dot in enumerate(dots):
        if ranking.score(dot.val, metric) < ranking.score(edge, metric):
            _note_at_edge(axes, place, dot.val, metric)
        elif dot.is_complete:
            complete.append((dot.val, place))
        else:
            incomplete.append((dot.val, place))
        if dot.test is not None:
            tested.append((dot.test, place))
    _draw_intervals(axes, dots)
    interval = ", with its 95% interval" if metric == ranking.DEFAULT else ""
    _draw_dots(axes, complete, BLUE, "validation")
    _draw_dots(axes, incomplete, GREY, "validation, not complete")
    _draw_dots(axes, tested, ORANGE, f"test{interval}")


def _draw_intervals(axes: Axes, dots: Sequence[_Dots]) -> None:
    # All bars in one call: if each bar is an artist of its own, they take as long as all else.
    bars = [(place, dot.low, dot.high) for place, dot in enumerate(dots) if dot.test is not None]
    places, lows, highs = np.array(bars).reshape(-1, 3).T
    axes.hlines(places, lows, highs, color=ORANGE, alpha=0.45, linewidth=4)


def _draw_dots(axes: Axes, points: Sequence[tuple[float, int]], colour: str, label: str) -> None:
    if points:
        values, places = zip(*points, strict=True)
        axes.scatter(values, places, color=colour, label=label, zorder=3, s=28)


def _note_at_edge(axes: Axes, place: int, value: float, metric: str) -> None:
    if ranking.is_lower_better(metric):
        edge = 1
        indent = -4
        alignment = "right"
    else:
        edge = 0
        indent = 4
        alignment = "left"
    axes.annotate(
        f"◂ {value:.0%}" if ranking.is_share(metric) else f"{value:.3g} ▸",
        (edge, place),
        xycoords=axes.get_yaxis_transform(),
        xytext=(indent, 0),
        textcoords="offset points",
        va="center",
        ha=alignment,
        fontsize=8,
        color=GREY,
    )


def _draw_majority(axes: Axes, majority: float) -> None:
    left, right = axes.get_xlim()
    text = majority_text(majority)
    # To the right the axis is extended a little: it is worth seeing that all runs are worse than
    # one class.
    if left <= majority and is_near(majority, left, right):
        axes.axvline(majority, color=GREY, linestyle="--", linewidth=1, label=text)
        axes.set_xlim(right=max(right, majority + 0.05 * (majority - left)))
    elif majority < left:
        axes.set_xlabel(f"◂ {text}", loc="left", fontsize=8, color=GREY)
    else:
        axes.set_xlabel(f"{text} ▸", loc="right", fontsize=8, color=GREY)
