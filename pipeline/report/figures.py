"""Figures, drawn without a display; each function writes one PNG."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from pipeline.report.fonts import cover, families

BLUE, ORANGE, GREY = "#2b6cb0", "#dd6b20", "#8a939e"
"""Classes up to which every cell of a confusion matrix carries its number."""


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


def majority_text(majority: float) -> str:
    return f"always the largest class, {majority:.1%}"


def is_near(value: float, low: float, high: float) -> bool:
    """Whether an axis from `low` to `high` that is extended to `value` stays below twice its length."""
    return max(high, value) - min(low, value) <= 2 * (high - low)
