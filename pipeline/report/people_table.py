"""The comparison as people read it: few columns of text, as a table or as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from pipeline import ranking
from pipeline.report.format import (
    NEXT,
    format_duration,
    format_interval,
    format_millions,
    format_percent,
    format_speed,
    to_number,
)
from pipeline.report.settings_text import differing_settings
from pipeline.safe_text import escape_markdown
from pipeline.scores.problems import describe_short
from pipeline.scores.significance import Verdict

_NAME_OF_TRIAL = re.compile(r"\d{2,} [^ ]+, ")
"""How the name of a study's training begins: place, network, settings."""


def table_for_people(
    rows: Sequence[Mapping[str, Any]], metric: str = ranking.DEFAULT
) -> pd.DataFrame:
    """Return the columns that matter, as text, in the order given.

    The first column is the rank, or why a row has none: its state, or that it cannot be compared
    with the others. There is one more column for a metric that is neither accuracy nor loss.
    Columns that say the same in all rows are left out, and the validation loss where there are test
    scores, and the number of parameters where there is a speed.

    Args:
        rows: Result of `merge_repeats`; or runs, best first.
        metric: The metric that they are ranked by.
    """
    lines = []
    rank = 0
    for row, settings in zip(rows, differing_settings(rows), strict=True):
        place = str(row.get("apart") or row.get("state"))
        if place == "complete":
            place = "no score"
        if ranking.can_be_ranked(row) and not row.get("apart"):
            rank += 1
            place = str(rank)
        line = {"#": place, "run": _name_runs(row), "settings": settings}
        if metric not in ("val/accuracy", "val/loss"):
            line[_short_title(metric)] = best_value_text(row) if row.get("metric") == metric else ""
        val_loss = to_number(row.get("val_loss"))
        line["val accuracy"] = _with_deviation(row, "val_accuracy")
        line["val loss"] = "" if val_loss is None else f"{val_loss:.4f}"
        line["test accuracy (95%)"] = format_interval(row)
        line["verdict"] = describe_verdict(row.get("verdict"))
        line["parameters"] = format_millions(row.get("parameters"))
        line["images/s"] = format_speed(row.get("images_per_second"))
        line["time"] = format_duration(row.get("seconds"))
        line["notes"] = describe_short(row.get("problems") or [], int(row.get("repeats") or 1))
        lines.append(line)
    table = pd.DataFrame(lines)
    return table.drop(columns=_idle_columns(table, _short_title(metric)))


def _idle_columns(table: pd.DataFrame, ranked_by: str) -> list[str]:
    """Return the columns of a table for people that say nothing, or nothing more than others."""
    if table.empty:
        return []
    idle = {name for name in ("verdict", "images/s", "notes") if not table[name].any()}
    if table["test accuracy (95%)"].any() and ranked_by != "val loss":
        idle.add("val loss")
    is_same = len(table) > 1 and table["parameters"].nunique() == 1
    if is_same or "images/s" not in idle:
        idle.add("parameters")
    if len(table) > 1 and not table["time"].any():
        idle.add("time")
    return sorted(idle)


def _name_runs(row: Mapping[str, Any]) -> str:
    repeats = int(row.get("repeats") or 1)
    name = str(row.get("run_name"))
    # What the names of a study's runs say beside place and network, the settings say too.
    if _NAME_OF_TRIAL.match(name):
        name = name.partition(", ")[0]
    return f"{name} ×{repeats}" if repeats > 1 else name


def _with_deviation(row: Mapping[str, Any], name: str) -> str:
    """Return a mean with the standard deviation of the repeats, if there are repeats."""
    text = format_percent(row.get(name))
    deviation = to_number(row.get(f"{name}_std"))
    return text if deviation is None or not text else f"{text} ± {100 * deviation:.1f}"


def describe_verdict(verdict: Verdict | None) -> str:
    """Return the verdict on a configuration, with the difference where there is one."""
    if verdict is None or verdict.word is None:
        return ""
    difference = verdict.difference
    if difference is None or verdict.word == "not told apart":
        return verdict.word
    points = 100 * abs(difference.value)
    return f"{verdict.word.removesuffix(' on test')} by {points:.1f}"


def least_important(metric: str) -> list[str]:
    """Return the columns of `table_for_people` that a narrow terminal can do without.

    The first goes first. The column of the metric that ranks is never among them.
    """
    columns = [
        "parameters",
        "time",
        "images/s",
        "val loss",
        "notes",
        "verdict",
        "test accuracy (95%)",
        "val accuracy",
    ]
    return [column for column in columns if column != _short_title(metric)]


def _short_title(metric: str) -> str:
    return ranking.title(metric).replace("validation", "val")


def best_value_text(row: Mapping[str, Any]) -> str:
    """Return the value of what a run is ranked by, as text; nothing if it has none."""
    value = to_number(row.get("value"))
    return "" if value is None else ranking.text(value, row["metric"])


def to_markdown(table: pd.DataFrame, title: str, notes: Sequence[str]) -> str:
    """Return a table of text as a Markdown document."""
    lines = [f"# {escape_markdown(title)}", ""]
    for note in notes:
        lines.append(f"{markdown_sentence(note)}\n")
    lines.append(_markdown_row(table.columns))
    lines.append("|" + "---|" * len(table.columns))
    for row in table.itertuples(index=False):
        lines.append(_markdown_row(row))
    return "\n".join(lines) + "\n"


def markdown_sentence(sentence: str) -> str:
    """Return a sentence for Markdown; a command at its end stands as code, to be copied."""
    before, command, after = sentence.partition("python -m pipeline ")
    # Any other sentence may name what anybody has written.
    is_next = sentence.startswith(NEXT) and sentence.isprintable()
    if not is_next or not command or "`" in sentence:
        return escape_markdown(sentence)
    typed, about, rest = (command + after).partition(" (about ")
    return f"{escape_markdown(before)}`{typed}`{escape_markdown(about + rest)}"


def _markdown_row(cells: Iterable[Any]) -> str:
    return "| " + " | ".join(escape_markdown(str(cell)) for cell in cells) + " |"
