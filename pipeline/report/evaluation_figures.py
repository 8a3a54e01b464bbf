"""Charts of one network's answers: its confidence, and how well it separates each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from pipeline import metrics
from pipeline.report.confusion_figures import shorten
from pipeline.report.figures import BLUE, GREY, ORANGE, save
from pipeline.report.fonts import drawable
from pipeline.scores.calibration import Reliability

MOST_CLASSES = 8
"""Classes that have a curve of their own: those with the lowest area under it."""


def draw_reliability(
    file: Path, before: Reliability, after: Reliability, temperature: float
) -> None:
    """Draw how often the answers of each confidence are right, and how many there are.

    Args:
        file: PNG to write.
        before: The answers as the network gives them.
        after: The answers with the temperature.
        temperature: What logits are divided by.
    """
    # Margins that are known take half the time of those that matplotlib finds.
    figure = Figure(figsize=(6.4, 6.6), dpi=110)
    figure.subplots_adjust(left=0.12, right=0.97, top=0.94, bottom=0.2, hspace=0.08)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot((0, 1), (0, 1), color=GREY, linestyle="--", linewidth=1, label="as it should be")
    for bins, colour, label in (
        (before, ORANGE, f"as trained, off by {before.error():.1%} on average"),
        (after, BLUE, f"with temperature {temperature:.2f}, off by {after.error():.1%}"),
    ):
        upper.plot(bins.confidences, bins.accuracies, color=colour, linewidth=1, alpha=0.6)
        # The area of a dot shows how many images it stands for: one of a few says little.
        sizes = 12 + 300 * bins.shares
        upper.scatter(bins.confidences, bins.accuracies, sizes, colour, label=label, zorder=3)
    width = 0.02
    lower.bar(before.confidences - width / 2, before.counts, width, color=ORANGE)
    lower.bar(after.confidences + width / 2, after.counts, width, color=BLUE)
    upper.set(ylabel="share of right answers", ylim=(0, 1.02), xlim=(0, 1.02))
    lower.set(ylabel="images", xlabel="confidence")
    upper.set_title("how far confidence can be believed (test images)")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_formatter(PercentFormatter(1))
    upper.yaxis.set_major_formatter(PercentFormatter(1))
    figure.legend(fontsize=8, loc="lower center", markerscale=0.6)
    save(figure, file)


def draw_roc_and_precision(
    file: Path,
    labels: metrics.Labels,
    probabilities: NDArray[np.float64],
    classes: Sequence[str],
    areas: Sequence[float],
) -> None:
    """Draw ROC and precision-recall curves of each class against the others.

    If there are many classes, those with the lowest area under the ROC curve are drawn. Two classes
    have one curve: that of the other one is its mirror image.

    Args:
        file: PNG to write.
        labels: True classes, shape (images,).
        probabilities: Shape (images, classes).
        classes: Names of the classes.
        areas: Area under the ROC curve of each class; NaN if it has none.
    """
    known = [number for number, area in enumerate(areas) if np.isfinite(area)]
    known.sort(key=areas.__getitem__)
    drawn = known[:MOST_CLASSES]
    if len(classes) == 2:
        drawn = [1] if 1 in known else []
    figure = Figure(figsize=(11, 5), dpi=110)
    figure.subplots_adjust(left=0.06, right=0.985, top=0.93, bottom=0.11, wspace=0.16)
    left, right = figure.subplots(1, 2)
    colours = matplotlib.colormaps["tab10"]
    names = drawable([shorten(classes[number]) for number in drawn])
    for place, (number, name) in enumerate(zip(drawn, names, strict=True)):
        is_true = labels == number
        colour = colours(place % 10)
        label = f"{name} ({areas[number]:.3f})"
        left.plot(*metrics.roc_points(is_true, probabilities[:, number]), color=colour, label=label)
        points = metrics.precision_recall_points(is_true, probabilities[:, number])
        right.plot(*points, color=colour)
    left.plot((0, 1), (0, 1), color=GREY, linestyle="--", linewidth=1)
    left.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC")
    right.set(xlabel="recall", ylabel="precision", title="precision and recall")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    title = "area under the curve"
    if len(drawn) < len(known) and len(classes) > 2:
        title = f"{title}, the lowest of {len(known):,}"
    if drawn:
        left.legend(title=title, fontsize=8, title_fontsize=8, loc="lower right")
    save(figure, file)
