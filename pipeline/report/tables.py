"""The comparison of runs as tables: everything for programs, eight columns for people."""

from __future__ import annotations

import html
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import ranking
from pipeline.config import DEFAULT_GAMMA, applies, declared, facts_of, field_info
from pipeline.report.format import (
    format_duration,
    format_interval,
    format_millions,
    format_percent,
    format_short,
    to_number,
)
from pipeline.safe_text import escape_markdown, make_visible

COLUMNS = [
    "run_id",
    "run_name",
    "state",
    "model",
    "weights",
    "freeze",
    "optimizer",
    "lr",
    "schedule",
    "weight_decay",
    "seed",
    "epochs",
    "best_epoch",
    "val_accuracy",
    "val_loss",
    "test_accuracy",
    "test_accuracy_low",
    "test_accuracy_high",
    "parameters",
    "seconds",
    "config_hash",
    "data_digest",
]
"""First columns of ``comparison.csv``, in this order; scripts rely on them."""

_FURTHER = ["trial", "reason", "metric", "value"]
"""After those: its number in its study, why it ended early, what it ranks by, and the value of that."""
_WHOLE = ["seed", "epochs", "best_epoch", "parameters"]
_SECTIONS = ("model", "optimizer", "schedule", "training", "data")
"""In the order in which people read settings."""


def _settings() -> dict[str, str]:
    """Return the label of each field that may tell runs apart, by dotted name, in the order in which they are shown."""
    labels = {}
    for name, field in declared(_SECTIONS):
        facts = facts_of(field)
        if name not in ("model.name", "data.source") and (
            facts.label or facts.hashed or facts.shared
        ):
            labels[name] = facts.label or name
    return labels


_LABELS = _settings()


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return one row per run, in the order given, with `COLUMNS` first and then how each run was named in its study."""
    columns = [*COLUMNS, *_FURTHER]
    table = pd.DataFrame(
        [{name: row.get(name) for name in columns} for row in rows], columns=columns
    )
    table["reason"] = table["reason"].replace("", None)
    for column in _WHOLE:
        table[column] = pd.to_numeric(table[column], errors="coerce").astype("Int64")
    return table


def configurations_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return one row per configuration of complete runs, in the order given, repeats merged to mean and standard deviation.

    A test accuracy is there only where all repeats are evaluated: the mean of some is not that of the configuration. `test_repeats`
    says how many are. What a configuration ranks by, and its mean, are the columns `metric` and `value`.
    """
    complete = [row for row in rows if row.get("state") == "complete"]
    merged = [_merged(group) for group in ranking.by_configuration(complete)]
    spreads = [column for name in _SCORES for column in (name, f"{name}_std")]
    columns = [
        "config_hash",
        "repeats",
        *_SETTINGS,
        *spreads,
        "parameters",
        "data_digest",
        "run_ids",
    ]
    table = pd.DataFrame(merged, columns=[*columns, "test_repeats", "metric", "value", "value_std"])
    for column in ("epochs", "parameters"):
        table[column] = pd.to_numeric(table[column], errors="coerce").astype("Int64")
    return table


_SETTINGS = ["model", "weights", "freeze", "optimizer", "lr", "schedule", "weight_decay", "epochs"]
_SCORES = ["val_accuracy", "val_loss", "test_accuracy", "seconds"]


def _merged(repeats: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the row of one configuration; in plain Python, since a study may have a thousand."""
    values: dict[str, Any] = {
        "repeats": len(repeats),
        "run_ids": " ".join(str(row["run_id"]) for row in repeats),
    }
    values |= {
        name: repeats[0].get(name)
        for name in ("config_hash", *_SETTINGS, "parameters", "data_digest", "metric")
    }
    for name in (*_SCORES, "value"):
        numbers = [number for row in repeats if (number := to_number(row.get(name))) is not None]
        if name == "test_accuracy":
            values["test_repeats"] = len(numbers)
            numbers = numbers if len(numbers) == len(repeats) else []
        values[name] = statistics.fmean(numbers) if numbers else math.nan
        values[f"{name}_std"] = statistics.stdev(numbers) if len(numbers) > 1 else math.nan
    return values


def differing_settings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return for each run its settings that are not the same in all of them, such as ``lr 0.001, decay cosine``.

    A setting is looked at only in the runs in which it has an effect; a gamma that comes with its schedule is none.
    """
    params = [_with_effect(row.get("params") or {}) for row in rows]
    unknown = sorted(
        {name for some in params for name in some if "." in name and field_info(name) is None}
    )
    names = [
        name
        for name in (*_LABELS, *unknown)
        if len({some[name] for some in params if name in some}) > 1
    ]
    texts = [
        ", ".join(
            f"{_LABELS.get(name, name)} {format_short(some[name])}"
            for name in names
            if some.get(name) is not None
        )
        for some in params
    ]
    # Networks of one's own may differ in nothing but their code.
    hashes: dict[tuple[str, str], set[str]] = {}
    shown = [
        (text, Path(str(some.get("model.name", ""))).name)
        for text, some in zip(texts, params, strict=True)
    ]
    for key, row in zip(shown, rows, strict=True):
        hashes.setdefault(key, set()).update(filter(None, [row.get("config_hash")]))
    return [
        ", ".join(filter(None, [text, f"configuration {row['config_hash'][:6]}"]))
        if len(hashes[key]) > 1 and row.get("config_hash")
        else text
        for text, key, row in zip(texts, shown, rows, strict=True)
    ]


def _with_effect(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that have an effect; a gamma that comes with its schedule is None."""
    found = {name: value for name, value in params.items() if applies(name, params)}
    gamma, usual = found.get("schedule.gamma"), DEFAULT_GAMMA.get(str(params.get("schedule.name")))
    if gamma in (None, "null", "None") or float(gamma) == usual:
        found |= {"schedule.gamma": None} if "schedule.gamma" in found else {}
    return found


def describe_settings(params: Mapping[str, Any]) -> str:
    """Return the settings that tell trainings apart, such as ``resnet18, weights none, lr 0.001, wd 0.0001, decay cosine``."""
    shown = ("model.weights", "optimizer.lr", "optimizer.weight_decay", "schedule.name")
    return ", ".join(
        [
            str(params["model.name"]),
            *(f"{_LABELS[name]} {format_short(params[name])}" for name in shown),
        ]
    )


def table_for_people(
    rows: Sequence[Mapping[str, Any]], metric: str = ranking.DEFAULT
) -> pd.DataFrame:
    """Return the eight columns that matter, as text, in the order given; one more for a metric that is neither accuracy nor loss.

    The first column is the rank, or why a run has none: its state, or that it cannot be compared with the others.

    Args:
        rows: Best first.
        metric: What they are ranked by.
    """
    lines = []
    rank = 0
    for row, settings in zip(rows, differing_settings(rows), strict=True):
        is_ranked = ranking.can_be_ranked(row) and not row.get("apart")
        rank += is_ranked
        line = {
            "#": str(rank) if is_ranked else str(row.get("apart") or row.get("state")),
            "run": str(row.get("run_name")),
            "settings": settings,
        }
        if metric not in ("val/accuracy", "val/loss"):
            line[_short_title(metric)] = best_value_text(row) if row.get("metric") == metric else ""
        lines.append(
            line
            | {
                "val accuracy": format_percent(row.get("val_accuracy")),
                "val loss": ""
                if to_number(row.get("val_loss")) is None
                else f"{float(row['val_loss']):.4f}",
                "test accuracy (95%)": format_interval(row),
                "parameters": format_millions(row.get("parameters")),
                "time": format_duration(row.get("seconds")),
            }
        )
    return pd.DataFrame(lines)


def least_important(metric: str) -> list[str]:
    """Return the columns of `table_for_people` that a narrow terminal can do without, the first to go first; never what ranks."""
    columns = ["parameters", "time", "val loss", "test accuracy (95%)", "val accuracy"]
    return [column for column in columns if column != _short_title(metric)]


def _short_title(metric: str) -> str:
    return ranking.title(metric).replace("validation", "val")


def best_value_text(row: Mapping[str, Any]) -> str:
    """Return the value of what a run is ranked by, as text; nothing where it has none."""
    return (
        ""
        if to_number(row.get("value")) is None
        else ranking.text(float(row["value"]), row["metric"])
    )


MOST_CLASSES = 20
"""Classes whose scores are printed."""


def scores_table(per_class: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return the scores per class as text, fractions as percent, and a title; of many classes those with the lowest F1."""
    title = "test scores per class"
    if len(per_class) > MOST_CLASSES:
        title = f"test scores of the {MOST_CLASSES} of {len(per_class):,} classes with the lowest F1 (all: the run's test/per_class.csv)"
        per_class = per_class.sort_values(["f1", "recall"], kind="stable").head(MOST_CLASSES)
    shown = per_class.astype({"images": str})
    for column in ("precision", "recall", "f1"):
        shown[column] = [format_percent(value) for value in per_class[column]]
    return shown, title


def to_markdown(table: pd.DataFrame, title: str, notes: Sequence[str]) -> str:
    """Return a table of text as a Markdown document."""
    lines = [f"# {escape_markdown(title)}", "", *(f"{escape_markdown(note)}\n" for note in notes)]
    lines += [
        "| " + " | ".join(map(escape_markdown, table.columns)) + " |",
        "|" + "---|" * len(table.columns),
    ]
    lines += [
        "| " + " | ".join(escape_markdown(str(value)) for value in row) + " |"
        for row in table.itertuples(index=False)
    ]
    return "\n".join(lines) + "\n"


_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #1c2430; }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; border-bottom: 2px solid #1c2430; }
th, td { padding: .35rem .7rem; white-space: nowrap; }
td:nth-child(3) { white-space: normal; }
td:nth-child(n+4), th:nth-child(n+4) { text-align: right; font-variant-numeric: tabular-nums; }
tbody tr { border-bottom: 1px solid #dfe3e8; }
tbody tr:first-child { background: #e8f3ec; font-weight: 600; }
tbody tr.unranked { color: #77808c; }
img { max-width: 100%; margin-top: 1.5rem; }
"""


def to_html(table: pd.DataFrame, title: str, notes: Sequence[str], figure: str = "") -> str:
    """Return a table of text as a standalone page.

    Args:
        table: Of `table_for_people`.
        title: Heading.
        notes: Paragraphs above the table.
        figure: A PNG beside the page, shown below it; empty: none.
    """
    head = "".join(f"<th>{html.escape(column)}</th>" for column in table.columns)
    body = ""
    for row in table.itertuples(index=False):
        ranked = str(row[0]).isdigit()
        cells = "".join(f"<td>{html.escape(make_visible(str(value)))}</td>" for value in row)
        body += f"<tr{'' if ranked else ' class=unranked'}>{cells}</tr>\n"
    paragraphs = "".join(f"<p>{html.escape(make_visible(note))}</p>\n" for note in notes)
    picture = f'<img src="{html.escape(figure)}" alt="comparison of the runs">\n' if figure else ""
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title><style>{_STYLE}</style>\n"
        f"<h1>{html.escape(title)}</h1>\n{paragraphs}<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>\n{picture}</html>\n"
    )
