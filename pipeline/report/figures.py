"""Figures, drawn without a display; each function writes one PNG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from pipeline import metrics, ranking
from pipeline.natural_order import natural_order
from pipeline.report.fonts import cover, drawable, families, is_drawable

_BLUE, _ORANGE, _GREY = "#2b6cb0", "#dd6b20", "#8a939e"
_MOST_ANNOTATED = 25
"""Classes up to which every cell of a confusion matrix carries its number."""
_MOST_CONFUSED = 24
_MOST_NAMED = 100
_LONGEST_NAME = 24
MOST_COMPARED = 100
"""Runs of a comparison that have a row of their own: 1,000 of them would be a picture of eight metres."""


@contextmanager
def foreign_figures(texts: Iterable[str] = ()) -> Iterator[None]:
    """Contain what a library draws through pyplot: no display, no style and no open figure remains of it.

    Args:
        texts: What it will write, for which fonts are found.
    """
    from matplotlib import pyplot

    backend = matplotlib.get_backend()
    pyplot.switch_backend("Agg")
    open_before = set(pyplot.get_fignums())
    try:
        with matplotlib.rc_context({"font.family": families(texts)}):
            yield
    finally:
        for number in set(pyplot.get_fignums()) - open_before:
            pyplot.close(number)
        pyplot.switch_backend(backend)


def save(figure: Figure, file: Path) -> None:
    """Write a figure as PNG, a tenth larger than it could be and in half the time."""
    cover(figure)
    figure.savefig(file, pil_kwargs={"compress_level": 3})


def draw_confusion_matrix(
    file: Path, counts: NDArray[np.int64], classes: Sequence[str], title: str
) -> None:
    """Draw counts and row-normalised shares of a confusion matrix, readable from 2 to 100 classes; of more, some are named.

    Args:
        file: PNG to write.
        counts: Shape (classes, classes), rows true, columns predicted.
        classes: Names on both axes.
        title: Above both panels.
    """
    order = natural_order(classes)
    counts, classes = counts[np.ix_(order, order)], [classes[place] for place in order]
    # Of more classes some are named, or the names would stand on top of each other.
    named = range(0, len(classes), math.ceil(len(classes) / _MOST_NAMED))
    _matrix(
        file,
        counts,
        counts.sum(axis=1),
        dict(zip(named, _names(classes, named), strict=True)),
        title,
    )


def draw_most_confused(file: Path, cells: pd.DataFrame, classes: Sequence[str], title: str) -> None:
    """Draw the part of a large confusion matrix in which most images are confused; the title says that it is a part.

    Args:
        file: PNG to write.
        cells: Of `pipeline.metrics.list_confusions`.
        classes: All names.
        title: Above both panels.
    """
    numbers = metrics.most_confused(cells, _MOST_CONFUSED)
    totals = np.bincount(cells["true"], cells["count"], minlength=len(classes)).astype(np.int64)[
        numbers
    ]
    names = dict(enumerate(_names(classes, numbers.tolist())))
    part = f"the {len(numbers)} of {len(classes):,} classes most often taken for one another"
    _matrix(file, metrics.matrix_of(cells, numbers), totals, names, f"{title}\n{part}")


def _matrix(
    file: Path,
    counts: NDArray[np.int64],
    totals: NDArray[np.int64],
    named: Mapping[int, str],
    title: str,
) -> None:
    """Draw a confusion matrix.

    Args:
        file: PNG to write.
        counts: Shape (classes, classes).
        totals: Images of each true class, of which the shares are taken, shape (classes,).
        named: What stands at some of the rows and columns.
        title: Above both panels; one line or more.
    """
    n, names = len(counts), list(named.values())
    font = 9 if n <= 15 else 8
    # In inches, and measured: letting matplotlib find the margins takes longer than drawing.
    longest = _width_of_longest(names, font)
    is_upright = n > 12 or max(map(len, names)) > 3
    side = float(np.clip(0.5 * n if n <= _MOST_ANNOTATED else 0.2 * n, 3.2, 22))
    left, right, top = longest + 0.45, 0.2 if n <= _MOST_ANNOTATED else 1.0, 0.3
    bottom = 0.4 + (longest if is_upright else 0.15)
    # Side by side, the rows' names on the left serve both panels.
    columns, rows = (2, 1) if n <= 15 else (1, 2)
    lefts = [left, 0.35][:columns]
    width, height = (
        sum(lefts) + columns * (side + right),
        rows * (top + side + bottom) + 0.4 + 0.2 * title.count("\n"),
    )
    figure = Figure(figsize=(width, height), dpi=110 if n <= 40 else 90)
    shares = counts / np.maximum(totals, 1)[:, None]
    panels = (
        (counts, "images", "{:d}", float(max(counts.max(), 1))),
        (shares, "share of the true class", "{:.0%}", 1.0),
    )
    for number, (values, name, form, highest) in enumerate(panels):
        row, column = divmod(number, columns)
        x, y = (
            sum(lefts[: column + 1]) + column * (side + right),
            (rows - 1 - row) * (top + side + bottom) + bottom,
        )
        axes = figure.add_axes((x / width, y / height, side / width, side / height))
        _cells(axes, values, name, form, highest, font - 1)
        # As texts: a tick takes six times as long, and is no easier to read.
        axes.set(xticks=[], yticks=[])
        for place, text in named.items():
            axes.text(
                place,
                n - 0.5 + 0.06 * n / side,
                text,
                rotation=90 if is_upright else 0,
                fontsize=font,
                ha="center",
                va="top",
            )
            if column == 0:
                axes.text(
                    -0.5 - 0.06 * n / side, place, text, fontsize=font, ha="right", va="center"
                )
        axes.text(
            0.5,
            -(bottom - 0.05) / side,
            "predicted",
            transform=axes.transAxes,
            ha="center",
            va="bottom",
        )
        if column == 0:
            axes.text(
                -(left - 0.1) / side,
                0.5,
                "true",
                transform=axes.transAxes,
                rotation=90,
                ha="left",
                va="center",
            )
        if n > _MOST_ANNOTATED:
            figure.colorbar(
                axes.images[0], cax=axes.inset_axes((1 + 0.2 / side, 0.25, 0.25 / side, 0.5))
            )
    figure.suptitle(title, y=1 - 0.12 / height, va="top")
    save(figure, file)


def _width_of_longest(texts: Sequence[str], size: float) -> float:
    """Return the width of the longest text in inches, at a font size in points."""
    figure = Figure(dpi=72)
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    family = families(texts)
    extents = (
        figure.text(0, 0, text, fontsize=size, family=family).get_window_extent(renderer)
        for text in texts
    )
    return max(float(extent.width) for extent in extents) / 72


def _names(classes: Sequence[str], numbers: Sequence[int]) -> list[str]:
    """Return the names of some classes for an axis; the number stands before one of which only a part can be drawn."""
    drawable([classes[number] for number in numbers])
    return drawable(
        [
            _short(
                classes[number] if is_drawable(classes[number]) else f"{number} {classes[number]}"
            )
            for number in numbers
        ]
    )


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def _cells(
    axes: Axes, values: NDArray[Any], title: str, form: str, top: float, font: float
) -> None:
    n = len(values)
    # Without numbers in the cells, few confusions must be seen beside many right ones.
    scale = Normalize(0, top) if n <= _MOST_ANNOTATED else PowerNorm(0.5, 0, top)
    axes.imshow(values, cmap="Blues", norm=scale)
    axes.set_title(title, fontsize=10, y=1)
    if n > _MOST_ANNOTATED:
        return
    for row, column in np.ndindex(values.shape):
        value = values[row, column]
        if value:
            colour = "white" if value > top / 2 else "black"
            axes.text(
                column,
                row,
                form.format(value),
                ha="center",
                va="center",
                fontsize=font,
                color=colour,
            )


def draw_learning_curves(
    file: Path,
    history: Sequence[Mapping[str, float]],
    best_epoch: int,
    majority: float | None = None,
) -> None:
    """Draw loss and accuracy of training and validation over epochs, the best epoch marked.

    Args:
        file: PNG to write.
        history: Metrics by name, one entry per epoch.
        best_epoch: From 1.
        majority: Validation accuracy of always answering the largest class, drawn as a line where it is near the curves.
    """
    # Margins and the titles' heights are fixed: finding them takes longer than all else, and every training draws these.
    figure = Figure(figsize=(10, 4), dpi=110)
    margins = {"left": 0.07, "right": 0.985, "bottom": 0.13, "top": 0.92, "wspace": 0.17}
    epochs = range(1, len(history) + 1)
    for axes, name in zip(
        figure.subplots(1, 2, gridspec_kw=margins), ("loss", "accuracy"), strict=True
    ):
        for part, colour in (("train", _BLUE), ("val", _ORANGE)):
            axes.plot(
                epochs,
                [values[f"{part}/{name}"] for values in history],
                marker="o",
                markersize=3,
                color=colour,
                label={"train": "training", "val": "validation"}[part],
            )
        axes.axvline(best_epoch, color=_GREY, linestyle=":", label=f"best, epoch {best_epoch}")
        axes.set_xlabel("epoch")
        axes.set_title(name, y=1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        if name == "accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(1))
            if majority is not None:
                majority_beside_curves(axes, majority)
        axes.legend(fontsize="small")
    save(figure, file)


def majority_beside_curves(axes: Axes, majority: float) -> None:
    """Draw the accuracy of always answering the largest class as a line, or tell it in the legend where it lies far off."""
    low, high = axes.get_ylim()
    if _is_near(majority, low, high):
        axes.axhline(
            majority, color=_GREY, linestyle="--", linewidth=1, label=_majority_text(majority)
        )
        return
    # Far away it would press the curves together: the legend alone tells it.
    axes.plot(
        [], [], " ", label=f"{_majority_text(majority)} ({'below' if majority < low else 'above'})"
    )


def _majority_text(majority: float) -> str:
    return f"always the largest class, {majority:.1%}"


def _is_near(value: float, low: float, high: float) -> bool:
    """Whether an axis from `low` to `high` that is extended to `value` stays below twice its length."""
    return max(high, value) - min(low, value) <= 2 * (high - low)


def draw_learning_rate(file: Path, lrs: Sequence[float], steps_per_epoch: int) -> None:
    """Draw the learning rate of every step, over epochs."""
    figure = Figure(figsize=(7, 3.5), dpi=110)
    axes = figure.subplots(gridspec_kw={"left": 0.13, "right": 0.975, "bottom": 0.14, "top": 0.91})
    axes.plot(np.arange(len(lrs)) / steps_per_epoch, lrs, color=_BLUE)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("epoch")
    axes.set_title("learning rate", y=1)
    axes.grid(alpha=0.3)
    save(figure, file)


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
        "validation": (_BLUE, [], []),
        "validation, not complete": (_GREY, [], []),
        f"test{interval}": (_ORANGE, [], []),
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
    axes.hlines(bars[:, 0], bars[:, 1], bars[:, 2], color=_ORANGE, alpha=0.45, linewidth=4)
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
        axes.hlines(len(dots), *span, color=_GREY, alpha=0.45, linewidth=4)
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


def _span(dots: Sequence[_Dots]) -> tuple[float, float] | None:
    values = [dot.val for dot in dots if math.isfinite(dot.val)]
    return (min(values), max(values)) if values else None


def _rest_text(rest: Sequence[_Dots], metric: str) -> str:
    span = _span(rest)
    return f"and {len(rest):,} more" + (
        f", {ranking.text(span[0], metric)} to {ranking.text(span[1], metric)}" if span else ""
    )


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
        color=_GREY,
    )


def _majority_beside_runs(axes: Axes, majority: float) -> None:
    left, right = axes.get_xlim()
    # To the right the axis is extended a little: that all runs are worse than one class is worth seeing.
    if left <= majority and _is_near(majority, left, right):
        axes.axvline(
            majority, color=_GREY, linestyle="--", linewidth=1, label=_majority_text(majority)
        )
        axes.set_xlim(right=max(right, majority + 0.05 * (majority - left)))
        return
    below = majority < left
    text = f"◂ {_majority_text(majority)}" if below else f"{_majority_text(majority)} ▸"
    axes.set_xlabel(text, loc="left" if below else "right", fontsize=8, color=_GREY)


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


def draw_augmentation_preview(
    file: Path,
    originals: Sequence[NDArray[np.uint8]],
    views: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
    names: Sequence[str],
) -> None:
    """Draw one row per image: as it is stored, and how the network sees it, epoch after epoch.

    Args:
        file: PNG to write.
        originals: One per row, each of shape (3, height, width).
        views: Shape (rows, epochs, 3, size, size); the first is of epoch 1.
        names: Class of each row.
    """
    num_rows, num_columns = len(originals), 1 + len(views[0])
    figure = Figure(
        figsize=(1.15 * num_columns + 1.2, 1.15 * num_rows + 0.4), layout="constrained", dpi=130
    )
    grid = figure.subplots(num_rows, num_columns, squeeze=False)
    shown = drawable([_short(name) for name in names])
    for row, (original, augmented, name) in enumerate(zip(originals, views, shown, strict=True)):
        for axes, pixels in zip(grid[row], (original, *augmented), strict=True):
            axes.imshow(pixels.transpose(1, 2, 0))
            height, width = pixels.shape[1:]
            side = max(height, width)
            # The same square for every cell, or names and titles would not stand in line beside tall and wide images.
            axes.set(
                xticks=[],
                yticks=[],
                xlim=((width - side) / 2, (width + side) / 2),
                ylim=((height + side) / 2, (height - side) / 2),
            )
            axes.spines[:].set_visible(False)
        grid[row, 0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    for axes, title in zip(
        grid[0], ("stored", *(f"epoch {epoch}" for epoch in range(1, num_columns))), strict=True
    ):
        axes.set_title(title, fontsize=9)
    save(figure, file)
