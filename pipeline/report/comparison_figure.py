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
"""Runs that have a row of their own: 1,000 of them would be a picture of eight metres."""


def draw_comparison(
    file: Path,
    rows: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
    majority: float | None = None,
    metric: str = ranking.DEFAULT,
) -> None:
    """Draw what each run is ranked by, on validation and test images, best at the top; of accuracy the test's 95% interval as a bar.

    Runs that are not complete are grey; where they are far worse than the others, their number stands at the edge instead. Of many runs
    the first `MOST_COMPARED` have a row each; the last row says how many more there are, and where they lie.

    Args:
        file: PNG to write.
        rows: In order, with state, val_accuracy, test_accuracy, test_accuracy_low and test_accuracy_high; where the metric is another
            one, with value and test_value.
        labels: One per run.
        majority: Validation accuracy of always answering the largest class: a line where the axis has it, else a note at its end.
        metric: What the runs are ranked by.
    """
    is_accuracy = metric == ranking.DEFAULT
    dots, rest = [
        [_Dots.of(row, is_accuracy) for row in part]
        for part in (rows[:MOST_COMPARED], rows[MOST_COMPARED:])
    ]
    names = [*labels[:MOST_COMPARED], *([_rest_text(rest, metric)] if rest else [])]
    figure = Figure(figsize=(9, 1.4 + 0.3 * max(len(names), 3)), layout="constrained", dpi=110)
    axes = figure.subplots()
    interval = ", with its 95% interval" if is_accuracy else ""
    edge = _edge(dots, metric)
    groups: dict[str, tuple[str, list[float], list[int]]] = {
        "validation": (BLUE, [], []),
        "validation, not complete": (GREY, [], []),
        f"test{interval}": (ORANGE, [], []),
    }
    for place, dot in enumerate(dots):
        if ranking.score(dot.val, metric) < ranking.score(edge, metric):
            _note_at_edge(axes, place, dot.val, metric)
        else:
            _, values, places = groups[
                "validation" if dot.is_complete else "validation, not complete"
            ]
            values.append(dot.val)
            places.append(place)
        if dot.test is not None:
            _, values, places = groups[f"test{interval}"]
            values.append(dot.test)
            places.append(place)
    # At once: each bar an artist of its own takes as long as all else.
    bars = np.array(
        [(place, dot.low, dot.high) for place, dot in enumerate(dots) if dot.test is not None]
    ).reshape(-1, 3)
    axes.hlines(bars[:, 0], bars[:, 1], bars[:, 2], color=ORANGE, alpha=0.45, linewidth=4)
    for name, (colour, values, places) in groups.items():
        if values:
            axes.scatter(values, places, color=colour, label=name, zorder=3, s=28)
    axes.set_yticks(range(len(names)), drawable(names), fontsize=8)
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
    if ranking.is_lower_better(metric):
        axes.set_xlim(right=edge)
    else:
        axes.set_xlim(left=edge)
    if span := _span(rest):
        axes.hlines(len(dots), *span, color=GREY, alpha=0.45, linewidth=4)
    if majority is not None and is_accuracy:
        _majority_beside_runs(axes, majority)
    if ranking.is_share(metric):
        axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_title(ranking.title(metric).removeprefix("validation "))
    axes.grid(alpha=0.3, axis="x")
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    save(figure, file)


def _edge(dots: Sequence[_Dots], metric: str) -> float:
    """Return where the axis ends on its worse side: somewhat beyond the worst complete run."""
    complete = [dot for dot in dots if dot.is_complete]
    shown = [
        value for dot in complete for value in (dot.val, dot.test, dot.low) if value is not None
    ]
    known = [value for value in shown if math.isfinite(value)]
    if ranking.is_lower_better(metric):
        highest = max(
            known, default=max((dot.val for dot in dots if math.isfinite(dot.val)), default=1.0)
        )
        return highest + 0.25 * (highest - min(known, default=0.0)) + 0.02 * highest + 1e-9
    lowest = min(known, default=0.0)
    return max(0.0, lowest - 0.25 * (1.02 - lowest))


def _majority_beside_runs(axes: Axes, majority: float) -> None:
    left, right = axes.get_xlim()
    # To the right the axis is extended a little: that all runs are worse than one class is worth seeing.
    if left <= majority and is_near(majority, left, right):
        axes.axvline(
            majority, color=GREY, linestyle="--", linewidth=1, label=majority_text(majority)
        )
        axes.set_xlim(right=max(right, majority + 0.05 * (majority - left)))
        return
    below = majority < left
    text = f"◂ {majority_text(majority)}" if below else f"{majority_text(majority)} ▸"
    axes.set_xlabel(text, loc="left" if below else "right", fontsize=8, color=GREY)


def _note_at_edge(axes: Axes, place: int, value: float, metric: str) -> None:
    is_left = not ranking.is_lower_better(metric)
    shown = f"◂ {value:.0%}" if ranking.is_share(metric) else f"{value:.3g} ▸"
    axes.annotate(
        shown,
        (0 if is_left else 1, place),
        xycoords=axes.get_yaxis_transform(),
        xytext=(4 if is_left else -4, 0),
        textcoords="offset points",
        va="center",
        ha="left" if is_left else "right",
        fontsize=8,
        color=GREY,
    )


def _rest_text(rest: Sequence[_Dots], metric: str) -> str:
    span = _span(rest)
    return f"and {len(rest):,} more" + (
        f", {ranking.text(span[0], metric)} to {ranking.text(span[1], metric)}" if span else ""
    )


def _span(dots: Sequence[_Dots]) -> tuple[float, float] | None:
    values = [dot.val for dot in dots if math.isfinite(dot.val)]
    return (min(values), max(values)) if values else None


class _Dots(NamedTuple):
    """What is drawn of one run."""

    is_complete: bool
    val: float
    test: float | None
    low: float
    high: float

    @classmethod
    def of(cls, row: Mapping[str, Any], is_accuracy: bool) -> _Dots:
        val, test = (
            (row["val_accuracy"], row.get("test_accuracy"))
            if is_accuracy
            else (row["value"], row.get("test_value"))
        )
        low, high = (
            row.get(name) if is_accuracy else None
            for name in ("test_accuracy_low", "test_accuracy_high")
        )
        return cls(
            row["state"] == "complete",
            float(val),
            None if test is None else float(test),
            math.nan if low is None else float(low),
            math.nan if high is None else float(high),
        )
