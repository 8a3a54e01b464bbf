"""Test accuracy in parts of the images: by group, and by what a list says of them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.scores.intervals import rate_interval

MOST_VALUES = 50
"""Most values of a column of which each is a slice."""
LEAST_IMAGES = 3
"""Fewest images that a value has on average if each value is a slice."""
PARTS = 4
COLUMNS = ["column", "value", "images", "accuracy", "accuracy_low", "accuracy_high", "behind_rest"]


def slice_accuracy(
    correct: NDArray[np.bool_],
    columns: Mapping[str, pd.Series],
    groups: NDArray[np.int64] | None = None,
) -> pd.DataFrame:
    """Return the accuracy in each slice of the images, of each column the worst slice first.

    The interval is the 95% interval of the slice alone; ``behind_rest`` is by how much its
    accuracy is lower than that of all other images. A column of too many different numbers
    (`MOST_VALUES`, `LEAST_IMAGES`) is cut into `PARTS` ranges of as many images each; one of as
    many different texts, such as a comment on each image, has no slices, unless it is the group.

    Args:
        correct: Whether each image is answered rightly, shape (images,).
        columns: What is known of the images, by the name of the column, each of shape (images,).
            Images whose value is empty are in no slice.
        groups: Group of each image, shape (images,), which the intervals then count (see
            `pipeline.scores.intervals.rate_interval`); None: images stand for themselves.
    """
    found = []
    for name, values in columns.items():
        table = _slice_by(correct, _as_slices(name, values), groups)
        table.insert(0, "column", name)
        found.append(table)
    if not found:
        return pd.DataFrame(columns=COLUMNS)
    return pd.concat(found, ignore_index=True)[COLUMNS]


def _as_slices(name: str, values: pd.Series) -> pd.Series:
    """Return the slice of each image as text, empty for none."""
    texts = (
        values.astype(object)
        .where(values.notna(), "")
        .astype(str)
        .str.strip()
        .reset_index(drop=True)
    )
    known = int((texts != "").sum())
    if name == "group" or texts.nunique() <= min(MOST_VALUES, known // LEAST_IMAGES):
        return texts
    numbers = pd.to_numeric(texts.where(texts != ""), errors="coerce")
    if (numbers.isna() & (texts != "")).any():
        return pd.Series("", index=texts.index)
    numbers = numbers.where(np.isfinite(numbers))
    shares = np.linspace(0, 1, PARTS + 1)
    cuts = np.unique(numbers.quantile(shares).to_numpy(dtype=np.float64))
    if len(cuts) < 2:
        return pd.Series("", index=texts.index)
    places = np.searchsorted(cuts[1:-1], numbers, side="left")
    shown = _describe_ranges(cuts)
    slices = [shown[place] for place in places]
    return pd.Series(slices, index=texts.index).where(numbers.notna(), "")


def _describe_number(number: float) -> str:
    """Return a number without an exponent if that is not too long."""
    is_usual = number == 0 or 1e-4 <= abs(number) < 1e15
    return np.format_float_positional(number, trim="-") if is_usual else f"{number:g}"


def _describe_ranges(cuts: NDArray[np.floating[Any]]) -> list[str]:
    """Return each range as text, with as many digits as tell their ends apart."""
    for digits in range(6, 18):
        ends = [_describe_number(float(f"{cut:.{digits}g}")) for cut in cuts]
        if len(set(ends)) == len(ends):
            break
    return [f"{low} to {high}" for low, high in pairwise(ends)]


def _slice_by(
    correct: NDArray[np.bool_], slices: pd.Series, groups: NDArray[np.int64] | None
) -> pd.DataFrame:
    lines = []
    total = int(correct.sum())
    for value, places in slices.groupby(slices).indices.items():
        number = len(places)
        if value == "":
            continue
        right = int(correct[places].sum())
        of_slice = None if groups is None else groups[places]
        low, high = rate_interval(correct[places], of_slice) or (np.nan, np.nan)
        rest = len(correct) - number
        behind = (total - right) / rest - right / number if rest else np.nan
        lines.append((value, number, right / number, low, high, behind))
    table = pd.DataFrame(lines, columns=COLUMNS[1:])
    return table.sort_values(["accuracy", "images"], kind="stable", ignore_index=True)
