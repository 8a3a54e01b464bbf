"""Single values as people read them: shares, durations, counts, intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

NEXT = "Next: "
"""What the sentence begins with that says which command is typed next."""


def format_short(value: Any) -> str:
    """Return a number with at most three digits, a whole one in full; any other value as text."""
    try:
        number = float(value)
        if number.is_integer() and abs(number) < 1e7:
            return f"{number:.0f}"
        return f"{number:.3g}"
    except (TypeError, ValueError):
        return str(value)


def format_interval(row: Mapping[str, Any]) -> str:
    """Return a run's test accuracy with its 95% interval; nothing if it is not evaluated."""
    if to_number(row.get("test_accuracy")) is None:
        return ""
    accuracy = format_percent(row["test_accuracy"])
    low = to_number(row.get("test_accuracy_low"))
    high = to_number(row.get("test_accuracy_high"))
    if low is None or high is None:
        return accuracy
    return f"{accuracy} ({100 * low:.1f} to {100 * high:.1f})"


def format_millions(value: Any) -> str:
    """Return a count as ``11.2 M``, a smaller one in full; nothing for a missing one."""
    number = to_number(value)
    if number is None:
        return ""
    if number >= 1e5:
        return f"{number / 1e6:.1f} M"
    return f"{number:,.0f}"


def to_number(value: Any) -> float | None:
    """Return a value as a number, None for a missing or an absurd one (beyond 1e300)."""
    if value is None or pd.isna(value) or abs(float(value)) > 1e300:
        return None
    return float(value)


def format_duration(seconds: Any) -> str:
    """Return seconds as ``48 s``, ``12 min`` or ``3.5 h``; nothing for a missing number."""
    number = to_number(seconds)
    if number is None:
        return ""
    if number < 120:
        return f"{number:.0f} s"
    if number < 5400:
        return f"{number / 60:.0f} min"
    return f"{number / 3600:.1f} h"


def format_percent(value: Any) -> str:
    """Return a fraction as ``98.14%``, nothing for a missing one."""
    number = to_number(value)
    return "" if number is None else f"{100 * number:.2f}%"


def format_bytes(number: float) -> str:
    """Return a number of bytes as ``12 MB`` or ``3.2 GB``; less than 1 MB is ``under 1 MB``."""
    if number < 1e6:
        return "under 1 MB"
    return f"{number / 1e6:.0f} MB" if number < 999.5e6 else f"{number / 1e9:,.1f} GB"


def format_speed(value: Any) -> str:
    """Return images a second with at most three digits; nothing for a missing number."""
    number = to_number(value)
    if number is None or number <= 0:
        return ""
    digits = 2 - math.floor(math.log10(number))
    return f"{round(number, digits):,.{max(0, digits)}f}"
