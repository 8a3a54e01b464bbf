"""Confusion matrices, from two classes to thousands."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline import metrics
from pipeline.natural_order import natural_order
from pipeline.report.figures import save
from pipeline.report.fonts import drawable, families, is_drawable

_MOST_ANNOTATED = 25
"""Classes up to which every cell of a confusion matrix carries its number."""
_MOST_CONFUSED = 24
_MOST_NAMED = 100
_LONGEST_NAME = 24


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


def _names(classes: Sequence[str], numbers: Sequence[int]) -> list[str]:
    """Return the names of some classes for an axis; the number stands before one of which only a part can be drawn."""
    drawable([classes[number] for number in numbers])
    return drawable(
        [
            shorten(
                classes[number] if is_drawable(classes[number]) else f"{number} {classes[number]}"
            )
            for number in numbers
        ]
    )


def shorten(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


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
