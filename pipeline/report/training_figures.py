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
        originals: One per row, each of shape (3, height, width).
        views: Shape (rows, epochs, 3, size, size); the first is of epoch 1.
        names: Class of each row.
    """
    num_rows, num_columns = len(originals), 1 + len(views[0])
    figure = Figure(
        figsize=(1.15 * num_columns + 1.2, 1.15 * num_rows + 0.4), layout="constrained", dpi=130
    )
    grid = figure.subplots(num_rows, num_columns, squeeze=False)
    shown = drawable([shorten(name) for name in names])
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
        for part, colour in (("train", BLUE), ("val", ORANGE)):
            axes.plot(
                epochs,
                [values[f"{part}/{name}"] for values in history],
                marker="o",
                markersize=3,
                color=colour,
                label={"train": "training", "val": "validation"}[part],
            )
        axes.axvline(best_epoch, color=GREY, linestyle=":", label=f"best, epoch {best_epoch}")
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
    if is_near(majority, low, high):
        axes.axhline(
            majority, color=GREY, linestyle="--", linewidth=1, label=majority_text(majority)
        )
        return
    # Far away it would press the curves together: the legend alone tells it.
    axes.plot(
        [], [], " ", label=f"{majority_text(majority)} ({'below' if majority < low else 'above'})"
    )
