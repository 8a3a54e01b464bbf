"""How a network's weights spread while it trained: one ridgeline per layer group."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pipeline.report.figures import save
from pipeline.report.fonts import drawable
from pipeline.training.tensorboard import History

_TAIL = 0.002
"""Share of an epoch's values that may lie beyond either end of the axis.

If the axis had them all, single far values would press all others together.
"""
_PEAK = 2.5
"""Height of the tallest ridge, in distances between two rows."""
_HALF_LINE = 0.0022
"""Half the width of the line around a ridge, as a part of the panel's height."""
_MOST_TICKS = 12
_LONGEST_NAME = 34
_TITLE = "weights by layer and epoch (each row scaled to its own peak)"


def draw_ridgeline(file: Path, histories: Mapping[str, History]) -> None:
    """Draw the weights of each layer group over epochs.

    The first epoch is at the top; the last is in front, dark. Every row is scaled to its own peak,
    so that rows compare in place, width and shape, not in height.

    Args:
        file: PNG to write.
        histories: Histories of one group at least, by the group's name, in the network's order.
    """
    num_columns = min(len(histories), 4)
    num_rows = math.ceil(len(histories) / num_columns)
    title = textwrap.fill(_TITLE, 38 * num_columns)
    width = 3.1 * num_columns + 0.5
    height = 2.9 * num_rows + 0.7
    # Margins in inches: it would take matplotlib longer to find them than to draw.
    top = 0.55 + 0.2 * title.count("\n")
    margins = {
        "left": 0.85 / width,
        "right": 1 - 0.15 / width,
        "bottom": 0.65 / height,
        "top": 1 - top / height - 0.1 / height,
    }
    figure = Figure(figsize=(width, height), dpi=110)
    grid = figure.add_gridspec(num_rows, num_columns, **margins, wspace=0.25, hspace=0.3)
    labelled: list[int] = []
    for number, (name, history) in enumerate(histories.items()):
        axes = figure.add_subplot(grid[divmod(number, num_columns)])
        # The rows of all panels are the same epochs, unless a group had no finite value in one.
        is_labelled = number % num_columns == 0 or history.epochs != labelled
        labelled = history.epochs
        _draw_ridges(axes, history)
        if is_labelled:
            _write_epochs(axes, history)
        (shown,) = drawable([_shorten(name)])
        axes.set_title(shown, fontsize=9, y=1)
    figure.suptitle(title, fontsize=11, y=1 - 0.12 / height, va="top")
    figure.supylabel("epoch", fontsize=10, x=0.1 / width, ha="left")
    figure.supxlabel("value of a weight", fontsize=10, y=0.1 / height, va="bottom")
    save(figure, file)


def _shorten(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"…{name[1 - _LONGEST_NAME :]}"


def _draw_ridges(axes: Axes, history: History) -> None:
    num_epochs = len(history.epochs)
    colours = colormaps["Blues"](np.linspace(0.3, 0.95, num_epochs) if num_epochs > 1 else [0.95])
    # The white line runs below a ridge too; its inner half would cover flat tails.
    hidden = _HALF_LINE * (num_epochs + _PEAK)
    outlines = []
    for row, (edges, counts) in enumerate(zip(history.edges, history.counts, strict=True)):
        places, heights = _curve(edges, counts)
        curve = np.column_stack([places, row - _PEAK * heights])
        start = (places[0], row + hidden)
        end = (places[-1], row + hidden)
        outlines.append(np.concatenate([[start], curve, [end]]))
    # All in one collection: if each ridge is an artist of its own, they take three times as long.
    # Rows go downwards; later ones stand in front.
    axes.add_collection(
        PolyCollection(outlines, facecolors=colours, edgecolors="white", linewidths=0.7, zorder=2)
    )
    axes.set_yticks([])
    axes.set_ylim(num_epochs - 0.8, -_PEAK - 0.1)
    axes.set_xlim(*_limits(history))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(alpha=0.3, axis="x")
    axes.spines[["top", "right", "left"]].set_visible(False)


def _curve(
    edges: NDArray[np.float32], counts: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return places and heights from 0 to 1 of a curve over the bins.

    It is lightly smoothed, and begins and ends at 0.
    """
    width = float(edges[1] - edges[0])
    centres = (edges[:-1].astype(np.float64) + edges[1:]) / 2
    smooth = np.convolve(counts.astype(np.float64), [0.25, 0.5, 0.25], mode="same")
    places = np.concatenate([[centres[0] - width], centres, [centres[-1] + width]])
    return places, np.concatenate([[0], smooth / smooth.max(), [0]])


def _limits(history: History) -> tuple[float, float]:
    """Return the ends of the axis, within which nearly all values of every epoch lie."""
    lows = []
    highs = []
    for edges, counts in zip(history.edges, history.counts, strict=True):
        shares = np.concatenate([[0], np.cumsum(counts) / counts.sum()])
        low, high = np.interp([_TAIL, 1 - _TAIL], shares, edges)
        lows.append(float(low))
        highs.append(float(high))
    first = min(lows)
    last = max(highs)
    # If all weights are one number, the axis would be narrower than a bin.
    widest_bin = max(float(edges[1] - edges[0]) for edges in history.edges)
    margin = max(0.05 * (last - first), 2 * widest_bin)
    return first - margin, last + margin


def _write_epochs(axes: Axes, history: History) -> None:
    """Write the epochs beside their rows, as texts: they are drawn in a sixth of a tick's time."""
    for row in _labelled_rows(len(history.epochs)):
        epoch = history.epochs[row]
        axes.text(
            -0.02,
            row,
            str(epoch) if epoch else "start",
            transform=axes.get_yaxis_transform(),
            ha="right",
            va="center_baseline",
            fontsize=8,
        )


def _labelled_rows(num_rows: int) -> list[int]:
    """Return the first row, the last, and rows between them at one distance."""
    distance = math.ceil(num_rows / _MOST_TICKS)
    return [0, *sorted(row for row in range(num_rows - 1, 0, -distance) if row >= distance / 2)]
