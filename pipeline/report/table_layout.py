"""A table that fits the terminal: columns that are stacked, narrowed or left out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
from rich.cells import cell_len

_LEAST_TEXT, _WHOLE_WORD = 20, 24
"""Width below which a column of text is hard to read; length up to which its words stay whole."""
_LEAST_COLUMNS = 3
_NUMBER = re.compile(r"[-+(\[]?\.?\d[\w.+%-]*[,)\]]*")


def _longest_word(text: str) -> int:
    return max((cell_len(word) for word in text.split()), default=0)


def _least_width(cells: pd.Series[str], is_pressed: bool) -> int:
    """Return the width at which a column of text can be read; pressed, that of its longest number."""
    words = [word for cell in cells for word in cell.split()]
    numbers = max((len(word) for word in words if _NUMBER.fullmatch(word)), default=1)
    if is_pressed:
        return numbers
    return max(
        numbers,
        min(_longest(cells), _LEAST_TEXT),
        min(max(map(cell_len, words), default=0), _WHOLE_WORD),
    )


def _longest(cells: pd.Series[str]) -> int:
    return max((cell_len(line) for cell in cells for line in cell.split("\n")), default=0)


def _widths(
    cells: pd.DataFrame, texts: Sequence[str], room: int, is_pressed: bool = False
) -> dict[str, int] | None:
    """Return the width of each column, in which no number is broken; None where they do not fit.

    Args:
        cells: The table.
        texts: Columns that may be broken.
        room: Of the whole table.
        is_pressed: Whether texts may also be broken so that they are hard to read.
    """
    # A border before each column and after the last, and a blank on either side of a cell.
    room -= 3 * len(cells.columns) + 1
    least = {name: _least_width(cells[name], is_pressed) for name in texts}
    for of_header in (cell_len, _longest_word):
        others = {
            name: max(_longest(cells[name]), of_header(name))
            for name in map(str, cells)
            if name not in texts
        }
        left = room - sum(others.values())
        if left >= sum(least.values()):
            widths = dict(others)
            for number, name in enumerate(texts):
                after = sum(least[later] for later in texts[number + 1 :])
                widths[name] = min(max(_longest(cells[name]), cell_len(name)), left - after)
                left -= widths[name]
            return {name: widths[name] for name in map(str, cells)}
    return None


def fit_table(
    table: pd.DataFrame, texts: Sequence[str], expendable: Sequence[str], room: int
) -> FittedTable:
    """Return as much of a table as fits into a number of columns of the terminal."""
    cells, left_out = table.astype(str), []
    if (widths := _widths(cells, texts, room)) is not None:
        return FittedTable(cells, widths, texts, [])
    if len(texts) > 1:
        stacked = cells[list(texts)].agg("\n".join, axis=1)
        cells = (
            cells.drop(columns=texts[1:])
            .assign(**{texts[0]: stacked})
            .rename(columns={texts[0]: ", ".join(texts)})
        )
        texts = [", ".join(texts)]
    for name in (None, *(name for name in expendable if name in cells.columns)):
        if name and len(cells.columns) > _LEAST_COLUMNS:
            left_out.append(name)
            cells = cells.drop(columns=name)
        if (widths := _widths(cells, texts, room)) is not None:
            return FittedTable(cells, widths, texts, left_out)
    widths = _widths(cells, texts, room, is_pressed=True) or {
        str(name): _longest(cells[name]) for name in cells
    }
    return FittedTable(cells, widths, texts, left_out)


class FittedTable(NamedTuple):
    """A table that fits: its cells, the width of each of its columns, which of them are texts, and which were left out."""

    cells: pd.DataFrame
    widths: dict[str, int]
    texts: Sequence[str]
    left_out: list[str]
