"""Curves of a training, and what augmentation shows of its images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from pipeline.report.confusion_figures import shorten
from pipeline.report.figures import BLUE, GREY, ORANGE, is_near, majority_text, save
from pipeline.report.fonts import drawable


def draw_augmentation_preview(
    file: Path,
    originals: Sequence[NDArray[np.uint8]],
    views: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
    names: Sequence[str],
) -> None:
    """Draw one row per image: as it is stored, and how the network sees it, epoch after epoch.

    Args:
        file: PNG to write.
        originals: Images as they are stored, one per row, each of shape (3, height, width).
        views: Images as the network sees them, shape (rows, epochs, 3, size, size); the first epoch
            is epoch 1.
        names: Class of each row.
    """
    num_rows = len(originals)
    num_columns = 1 + len(views[0])
    size = (1.15 * num_columns + 1.2, 1.15 * num_rows + 0.4)
    figure = Figure(figsize=size, layout="constrained", dpi=130)
    grid = figure.subplots(num_rows, num_columns, squeeze=False)
    shown = drawable([shorten(name) for name in names])
    for row, (original, augmented, name) in enumerate(zip(originals, views, shown, strict=True)):
        for axes, pixels in zip(grid[row], (original, *augmented), strict=True):
            _draw_image(axes, pixels)
        grid[row, 0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    titles = ["stored", *(f"epoch {epoch}" for epoch in range(1, num_columns))]
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=9)
    save(figure, file)


def _draw_image(axes: Axes, pixels: NDArray[np.uint8]) -> None:
    """Draw an image of shape (3, height, width) in the middle of a square cell.

    All cells are squares, or names and titles would not stand in line beside tall and wide images.
    """
    axes.imshow(pixels.transpose(1, 2, 0))
    height, width = pixels.shape[1:]
    side = max(height, width)
    axes.set(
        xticks=[],
        yticks=[],
        xlim=((width - side) / 2, (width + side) / 2),
        ylim=((height + side) / 2, (height - side) / 2),
    )
    axes.spines[:].set_visible(False)


def draw_learning_rate(file: Path, lrs: Sequence[float], steps_per_epoch: int) -> None:
    """Draw the learning rate of every step, over epochs."""
    figure = Figure(figsize=(7, 3.5), dpi=110)
    axes = figure.subplots(gridspec_kw={"left": 0.13, "right": 0.975, "bottom": 0.14, "top": 0.91})
    axes.plot(np.arange(len(lrs)) / steps_per_epoch, lrs, color=BLUE)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("epoch")
    axes.set_title("learning rate", y=1)
    axes.grid(alpha=0.3)
    save(figure, file)


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
        best_epoch: Number of the best epoch, from 1.
        majority: Validation accuracy of always answering the largest class, drawn as a line if it
            is near the curves.
    """
    # Margins and heights of the titles are fixed: to find them takes longer than all else, and
    # every training draws these curves.
    figure = Figure(figsize=(10, 4), dpi=110)
    margins = {"left": 0.07, "right": 0.985, "bottom": 0.13, "top": 0.92, "wspace": 0.17}
    loss, accuracy = figure.subplots(1, 2, gridspec_kw=margins)
    _draw_curves(loss, "loss", history, best_epoch)
    loss.legend(fontsize="small")
    _draw_curves(accuracy, "accuracy", history, best_epoch)
    accuracy.yaxis.set_major_formatter(PercentFormatter(1))
    if majority is not None:
        majority_beside_curves(accuracy, majority)
    accuracy.legend(fontsize="small")
    save(figure, file)


def _draw_curves(
    axes: Axes, name: str, history: Sequence[Mapping[str, float]], best_epoch: int
) -> None:
    epochs = range(1, len(history) + 1)
    for split, label, colour in (("train", "training", BLUE), ("val", "validation", ORANGE)):
        values = [epoch[f"{split}/{name}"] for epoch in history]
        axes.plot(epochs, values, marker="o", markersize=3, color=colour, label=label)
    axes.axvline(best_epoch, color=GREY, linestyle=":", label=f"best, epoch {best_epoch}")
    axes.set_xlabel("epoch")
    axes.set_title(name, y=1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)


def majority_beside_curves(axes: Axes, majority: float) -> None:
    """Draw the accuracy of always answering the largest class as a line.

    If it lies far off, the line would press the curves together: then the legend alone tells it.
    """
    low, high = axes.get_ylim()
    text = majority_text(majority)
    if is_near(majority, low, high):
        axes.axhline(majority, color=GREY, linestyle="--", linewidth=1, label=text)
        return
    side = "below" if majority < low else "above"
    axes.plot([], [], " ", label=f"{text} ({side})")
