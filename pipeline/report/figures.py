"""Figures, drawn without a display; each function writes one PNG."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from pipeline.report.fonts import cover, families

BLUE = "#2b6cb0"
ORANGE = "#dd6b20"
GREY = "#8a939e"


@contextmanager
def foreign_figures(texts: Iterable[str] = ()) -> Iterator[None]:
    """Contain what a library draws through pyplot: it needs no display, and leaves nothing behind.

    Backend, style and the list of open figures are the same afterwards as before.

    Args:
        texts: Texts that the library will write. Fonts are found for them.
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
    """Return what a figure says about the accuracy of always answering the largest class."""
    return f"always the largest class, {majority:.1%}"


def is_near(value: float, low: float, high: float) -> bool:
    """Whether an axis from `low` to `high`, extended to `value`, is at most twice as long."""
    return max(high, value) - min(low, value) <= 2 * (high - low)
