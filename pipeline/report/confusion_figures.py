"""Confusion matrices, from two classes to thousands."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
"""Number of classes up to which every cell of a confusion matrix carries its number."""
_MOST_SIDE_BY_SIDE = 15
"""Number of classes up to which the two panels stand side by side, and names are larger."""
_MOST_CONFUSED = 24
_MOST_NAMED = 100
_LONGEST_NAME = 24


def draw_most_confused(file: Path, cells: pd.DataFrame, classes: Sequence[str], title: str) -> None:
    """Draw the part of a large confusion matrix in which most images are confused.

    The title says that it is a part.

    Args:
        file: PNG to write.
        cells: Result of `pipeline.metrics.list_confusions`.
        classes: Names of all classes.
        title: Title above both panels.
    """
    numbers = metrics.most_confused(cells, _MOST_CONFUSED)
    images = np.bincount(cells["true"], cells["count"], minlength=len(classes)).astype(np.int64)
    names = dict(enumerate(_make_names_drawable(classes, numbers.tolist())))
    part = f"the {len(numbers)} of {len(classes):,} classes most often taken for one another"
    counts = metrics.matrix_of(cells, numbers)
    _draw_matrix(file, counts, images[numbers], names, f"{title}\n{part}")


def draw_confusion_matrix(
    file: Path, counts: NDArray[np.int64], classes: Sequence[str], title: str
) -> None:
    """Draw counts and row-normalised shares of a confusion matrix.

    It is readable from 2 to 100 classes; of more classes only some are named.

    Args:
        file: PNG to write.
        counts: Number of images of each true and each predicted class, shape (classes, classes),
            rows true, columns predicted.
        classes: Names on both axes.
        title: Title above both panels.
    """
    order = natural_order(classes)
    counts = counts[np.ix_(order, order)]
    classes = [classes[place] for place in order]
    # If all of more classes were named, the names would stand on top of each other.
    numbers = range(0, len(classes), math.ceil(len(classes) / _MOST_NAMED))
    names = dict(zip(numbers, _make_names_drawable(classes, numbers), strict=True))
    _draw_matrix(file, counts, counts.sum(axis=1), names, title)


def shorten(name: str) -> str:
    """Return a name, cut off with an ellipsis if it is too long for an axis."""
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def _make_names_drawable(classes: Sequence[str], numbers: Sequence[int]) -> list[str]:
    """Return the names of some classes for an axis.

    The number of the class stands before a name of which only a part can be drawn.
    """
    names = [classes[number] for number in numbers]
    # Fonts are looked for in all names at once: so what no font has is said in one line.
    drawable(names)
    shown = []
    for number, name in zip(numbers, names, strict=True):
        shown.append(shorten(name if is_drawable(name) else f"{number} {name}"))
    return drawable(shown)


class _Layout(NamedTuple):
    """Sizes of a figure with two square panels, in inches if nothing else is said.

    Attributes:
        num_classes: Number of rows and columns of a panel.
        font: Size of the names in points.
        is_upright: Whether the names below a panel are turned by 90 degrees.
        rows: Number of panels below each other, 1 or 2.
        columns: Number of panels side by side, 2 or 1.
        side: Width and height of a panel.
        lefts: Room to the left of each panel of a row; the first has the names of the rows.
        right: Room to the right of a panel, which may have a colour bar.
        bottom: Room below a panel.
        row_height: Height of a panel with the room above and below it.
        width: Width of the figure.
        height: Height of the figure.
    """

    num_classes: int
    font: int
    is_upright: bool
    rows: int
    columns: int
    side: float
    lefts: Sequence[float]
    right: float
    bottom: float
    row_height: float
    width: float
    height: float

    def rectangle(self, row: int, column: int) -> tuple[float, float, float, float]:
        """Return left, bottom, width and height of a panel as parts of the figure."""
        x = sum(self.lefts[: column + 1]) + column * (self.side + self.right)
        y = (self.rows - 1 - row) * self.row_height + self.bottom
        return x / self.width, y / self.height, self.side / self.width, self.side / self.height


def _lay_out(num_classes: int, names: Sequence[str], title: str) -> _Layout:
    """Return the sizes for a number of classes, some of which are named.

    They are measured here: it takes longer to let matplotlib find the margins than to draw.
    """
    font = 9 if num_classes <= _MOST_SIDE_BY_SIDE else 8
    longest = _measure_longest(names, font)
    is_upright = num_classes > 12 or max(map(len, names)) > 3
    left = longest + 0.45
    bottom = 0.4 + (longest if is_upright else 0.15)
    if num_classes <= _MOST_ANNOTATED:
        side = 0.5 * num_classes
        right = 0.2
    else:
        side = 0.2 * num_classes
        right = 1.0
    side = float(np.clip(side, 3.2, 22))
    if num_classes <= _MOST_SIDE_BY_SIDE:
        # Side by side, the names of the rows on the left serve both panels.
        rows = 1
        columns = 2
        lefts = [left, 0.35]
    else:
        rows = 2
        columns = 1
        lefts = [left]
    row_height = 0.3 + side + bottom
    width = sum(lefts) + columns * (side + right)
    height = rows * row_height + 0.4 + 0.2 * title.count("\n")
    return _Layout(
        num_classes=num_classes,
        font=font,
        is_upright=is_upright,
        rows=rows,
        columns=columns,
        side=side,
        lefts=lefts,
        right=right,
        bottom=bottom,
        row_height=row_height,
        width=width,
        height=height,
    )


def _measure_longest(texts: Sequence[str], size: float) -> float:
    """Return the width of the longest text in inches, at a font size in points."""
    figure = Figure(dpi=72)
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    family = families(texts)
    extents = (
        figure.text(0, 0, text, fontsize=size, family=family).get_window_extent(renderer)
        for text in texts
    )
    return max(float(extent.width) for extent in extents) / 72


def _draw_matrix(
    file: Path,
    counts: NDArray[np.int64],
    totals: NDArray[np.int64],
    names: Mapping[int, str],
    title: str,
) -> None:
    """Draw a confusion matrix.

    Args:
        file: PNG to write.
        counts: Number of images of each true and each predicted class, shape (classes, classes).
        totals: Number of images of each true class, of which the shares are taken, shape
            (classes,).
        names: Names of some rows and columns, by the number of the row.
        title: Title above both panels, one line or more.
    """
    num_classes = len(counts)
    layout = _lay_out(num_classes, list(names.values()), title)
    size = (layout.width, layout.height)
    figure = Figure(figsize=size, dpi=110 if num_classes <= 40 else 90)
    shares = counts / np.maximum(totals, 1)[:, None]
    panels = (
        (counts, "images", "{:d}", float(max(counts.max(), 1))),
        (shares, "share of the true class", "{:.0%}", 1.0),
    )
    for number, (values, name, form, highest) in enumerate(panels):
        row, column = divmod(number, layout.columns)
        axes = figure.add_axes(layout.rectangle(row, column))
        _draw_cells(axes, values, name, form, highest, layout.font - 1)
        _write_names(axes, names, layout, column == 0)
        if num_classes > _MOST_ANNOTATED:
            side = layout.side
            bar = axes.inset_axes((1 + 0.2 / side, 0.25, 0.25 / side, 0.5))
            figure.colorbar(axes.images[0], cax=bar)
    figure.suptitle(title, y=1 - 0.12 / layout.height, va="top")
    save(figure, file)


def _draw_cells(
    axes: Axes, values: NDArray[Any], title: str, form: str, highest: float, font: float
) -> None:
    num_classes = len(values)
    if num_classes <= _MOST_ANNOTATED:
        scale = Normalize(0, highest)
    else:
        # Without numbers in the cells, few confusions must be seen beside many right answers.
        scale = PowerNorm(0.5, 0, highest)
    axes.imshow(values, cmap="Blues", norm=scale)
    axes.set_title(title, fontsize=10, y=1)
    if num_classes > _MOST_ANNOTATED:
        return
    for row, column in np.ndindex(values.shape):
        value = values[row, column]
        if value:
            colour = "white" if value > highest / 2 else "black"
            text = form.format(value)
            axes.text(column, row, text, ha="center", va="center", fontsize=font, color=colour)


def _write_names(axes: Axes, names: Mapping[int, str], layout: _Layout, is_first: bool) -> None:
    """Write the names of classes and the titles of the axes around a panel.

    The rows are named beside the first panel of a line only. Names are texts: a tick takes six
    times as long, and is no easier to read.
    """
    axes.set(xticks=[], yticks=[])
    side = layout.side
    font = layout.font
    gap = 0.06 * layout.num_classes / side
    turn = 90 if layout.is_upright else 0
    for place, name in names.items():
        below = layout.num_classes - 0.5 + gap
        axes.text(place, below, name, rotation=turn, fontsize=font, ha="center", va="top")
        if is_first:
            axes.text(-0.5 - gap, place, name, fontsize=font, ha="right", va="center")
    below = -(layout.bottom - 0.05) / side
    place_in_panel = axes.transAxes
    axes.text(0.5, below, "predicted", transform=place_in_panel, ha="center", va="bottom")
    if is_first:
        left = -(layout.lefts[0] - 0.1) / side
        axes.text(left, 0.5, "true", transform=place_in_panel, rotation=90, ha="left", va="center")
