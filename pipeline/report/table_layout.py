"""A table that fits the terminal: columns that are stacked, narrowed or left out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
from rich.cells import cell_len

_LEAST_TEXT = 20
"""Width below which a column of text is hard to read."""
_WHOLE_WORD = 24
"""Length up to which the words of a column of text stay whole."""
_LEAST_COLUMNS = 3
_NUMBER = re.compile(r"[-+(\[]?\.?\d[\w.+%-]*[,)\]]*")


class FittedTable(NamedTuple):
    """A table that fits.

    Attributes:
        cells: The cells as text.
        widths: Width of each column.
        texts: Names of the columns that are text.
        left_out: Names of the columns that were left out.
    """

    cells: pd.DataFrame
    widths: dict[str, int]
    texts: Sequence[str]
    left_out: list[str]


def fit_table(
    table: pd.DataFrame, texts: Sequence[str], expendable: Sequence[str], room: int
) -> FittedTable:
    """Return as much of a table as fits into a number of columns of the terminal.

    Args:
        table: The whole table.
        texts: Columns that may be broken at spaces, and stacked.
        expendable: Columns that may be left out, the first to go first.
        room: Number of the terminal's columns.
    """
    cells = table.astype(str)
    left_out: list[str] = []
    widths = _widths(cells, texts, room)
    if widths is None and len(texts) > 1:
        stacked = ", ".join(texts)
        lines = cells[list(texts)].agg("\n".join, axis=1)
        cells = cells.drop(columns=texts[1:]).assign(**{texts[0]: lines})
        cells = cells.rename(columns={texts[0]: stacked})
        texts = [stacked]
        widths = _widths(cells, texts, room)
    for name in expendable:
        if widths is None and name in cells.columns and len(cells.columns) > _LEAST_COLUMNS:
            left_out.append(name)
            cells = cells.drop(columns=name)
            widths = _widths(cells, texts, room)
    if widths is None:
        widths = _widths(cells, texts, room, is_pressed=True)
    if widths is None:
        widths = {str(name): _longest(cells[name]) for name in cells}
    return FittedTable(cells, widths, texts, left_out)


def _widths(
    cells: pd.DataFrame, texts: Sequence[str], room: int, is_pressed: bool = False
) -> dict[str, int] | None:
    """Return the width of each column, in which no number is broken; None if they do not fit.

    Args:
        cells: The table.
        texts: Columns that may be broken.
        room: Width of the whole table.
        is_pressed: Whether texts may also be broken so that they are hard to read.
    """
    # A border before each column and after the last, and a blank on either side of a cell.
    room -= 3 * len(cells.columns) + 1
    least = {name: _least_width(cells[name], is_pressed) for name in texts}
    names = [str(name) for name in cells]
    for header_width in (cell_len, _longest_word):
        others = {}
        for name in names:
            if name not in texts:
                others[name] = max(_longest(cells[name]), header_width(name))
        left = room - sum(others.values())
        if left >= sum(least.values()):
            widths = dict(others)
            for number, name in enumerate(texts):
                after = sum(least[later] for later in texts[number + 1 :])
                widths[name] = min(max(_longest(cells[name]), cell_len(name)), left - after)
                left -= widths[name]
            return {name: widths[name] for name in names}
    return None


def _least_width(cells: pd.Series[str], is_pressed: bool) -> int:
    """Return the least width at which a column of text can be read.

    Pressed, it is the length of the column's longest number.
    """
    words = " ".join(cells).split()
    numbers = max((len(word) for word in words if _NUMBER.fullmatch(word)), default=1)
    if is_pressed:
        return numbers
    longest_word = max(map(cell_len, words), default=0)
    return max(numbers, min(_longest(cells), _LEAST_TEXT), min(longest_word, _WHOLE_WORD))


def _longest(cells: pd.Series[str]) -> int:
    return max(map(cell_len, "\n".join(cells).split("\n")))


def _longest_word(text: str) -> int:
    return max((cell_len(word) for word in text.split()), default=0)
