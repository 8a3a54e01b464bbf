"""The comparison of runs as tables: everything for programs, eight columns for people."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from pipeline.config import DEFAULT_GAMMA

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

_WHOLE = ["seed", "epochs", "best_epoch", "parameters"]
_SHORT = {
    "model.weights": "weights",
    "model.freeze": "freeze",
    "model.dropout": "dropout",
    "optimizer.name": "optimizer",
    "optimizer.lr": "lr",
    "optimizer.weight_decay": "wd",
    "optimizer.momentum": "momentum",
    "schedule.name": "decay",
    "schedule.gamma": "gamma",
    "training.seed": "seed",
    "training.epochs": "epochs",
    "data.image_size": "size",
    "data.batch_size": "batch",
    "data.augment": "augment",
    "data.fold": "fold",
    "schedule.warmup_epochs": "warmup",
}
_NO_SETTING = ("model.name", "data.source", "data.workers", "training.device", "study.")


def comparison(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return one row per run, in the order given, with `COLUMNS` first and then how each run was named in its study."""
    table = pd.DataFrame(
        [
            {**{column: row.get(column) for column in COLUMNS}, "trial": row.get("trial"), "reason": row.get("reason") or None}
            for row in rows
        ]
    )
    table = table if len(table) else pd.DataFrame(columns=[*COLUMNS, "trial", "reason"])
    for column in _WHOLE:
        table[column] = pd.to_numeric(table[column], errors="coerce").astype("Int64")
    return table


def configurations(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return one row per configuration of complete runs, repeats merged to mean and standard deviation."""
    complete = comparison([row for row in rows if row.get("state") == "complete"])
    settings = ["model", "weights", "freeze", "optimizer", "lr", "schedule", "weight_decay", "epochs"]
    scores = ["val_accuracy", "val_loss", "test_accuracy", "seconds"]
    merged = []
    for (config_hash, digest), group in complete.groupby(["config_hash", "data_digest"], sort=False):
        values: dict[str, Any] = {"config_hash": config_hash, "repeats": len(group), **{name: group[name].iloc[0] for name in settings}}
        for name in scores:
            numbers = pd.to_numeric(group[name])
            values |= {name: numbers.mean(), f"{name}_std": numbers.std(ddof=1)}
        merged.append({**values, "parameters": group["parameters"].iloc[0], "data_digest": digest, "run_ids": " ".join(group["run_id"])})
    spreads = [column for name in scores for column in (name, f"{name}_std")]
    return pd.DataFrame(merged, columns=["config_hash", "repeats", *settings, *spreads, "parameters", "data_digest", "run_ids"])


def differing_settings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return for each run its settings that are not the same in all of them, such as ``lr 0.001, decay cosine``."""
    params = [_without_default_gamma(row.get("params") or {}) for row in rows]
    names = sorted({name for some in params for name in some if "." in name and not name.startswith(_NO_SETTING)}, key=_order)
    differing = [name for name in names if len({some.get(name) for some in params}) > 1]
    return [", ".join(f"{_SHORT.get(name, name)} {_short_value(some[name])}" for name in differing if name in some) for some in params]


def _without_default_gamma(params: Mapping[str, Any]) -> dict[str, Any]:
    gamma, usual = params.get("schedule.gamma"), DEFAULT_GAMMA.get(str(params.get("schedule.name")))
    unused = params.get("schedule.name") in ("none", "cosine") or gamma in (None, "null", "None") or float(gamma) == usual
    return {name: value for name, value in params.items() if name != "schedule.gamma" or not unused}


def describe(params: Mapping[str, Any]) -> str:
    """Return the settings that tell trainings apart, such as ``resnet18, weights none, lr 0.001, wd 0.0001, decay cosine``."""
    shown = ("model.weights", "optimizer.lr", "optimizer.weight_decay", "schedule.name")
    return ", ".join([str(params["model.name"]), *(f"{_SHORT[name]} {_short_value(params[name])}" for name in shown)])


def _order(name: str) -> tuple[int, str]:
    return (list(_SHORT).index(name) if name in _SHORT else len(_SHORT), name)


def _short_value(value: Any) -> str:
    try:
        number = float(value)
        return f"{number:.0f}" if number.is_integer() else f"{number:.3g}"
    except (TypeError, ValueError):
        return str(value)


def for_people(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the eight columns that matter, as text, in the order given.

    The first column is the rank, or the state of a run that cannot be ranked.
    """
    lines = []
    rank = 0
    for row, settings in zip(rows, differing_settings(rows), strict=True):
        ranked = row.get("state") == "complete" and _number(row.get("val_accuracy")) is not None and row.get("comparable", True)
        rank += ranked
        lines.append(
            {
                "#": str(rank) if ranked else "other data" if not row.get("comparable", True) else str(row.get("state")),
                "run": str(row.get("run_name")),
                "settings": settings,
                "val accuracy": percent(row.get("val_accuracy")),
                "val loss": "" if _number(row.get("val_loss")) is None else f"{float(row['val_loss']):.4f}",
                "test accuracy (95%)": _interval(row),
                "parameters": _millions(row.get("parameters")),
                "time": duration(row.get("seconds")),
            }
        )
    return pd.DataFrame(lines)


def scores_table(per_class: pd.DataFrame) -> pd.DataFrame:
    """Return the scores per class as text, fractions as percent."""
    shown = per_class.astype({"images": str}).rename(columns={"class": "#"})
    for column in ("precision", "recall", "f1"):
        shown[column] = [percent(value) for value in per_class[column]]
    return shown


def _number(value: Any) -> float | None:
    return None if value is None or pd.isna(value) or abs(float(value)) > 1e300 else float(value)


def percent(value: Any) -> str:
    """Return a fraction as ``98.14%``, nothing for a missing one."""
    number = _number(value)
    return "" if number is None else f"{100 * number:.2f}%"


def duration(seconds: Any) -> str:
    """Return seconds as ``48 s``, ``12 min`` or ``3.5 h``."""
    number = _number(seconds)
    if number is None:
        return ""
    if number < 120:
        return f"{number:.0f} s"
    return f"{number / 60:.0f} min" if number < 5400 else f"{number / 3600:.1f} h"


def _millions(value: Any) -> str:
    number = _number(value)
    return "" if number is None else f"{number / 1e6:.1f} M" if number >= 1e5 else f"{number:,.0f}"


def _interval(row: Mapping[str, Any]) -> str:
    if _number(row.get("test_accuracy")) is None:
        return ""
    low, high = _number(row.get("test_accuracy_low")), _number(row.get("test_accuracy_high"))
    return percent(row["test_accuracy"]) + ("" if low is None or high is None else f" ({100 * low:.1f} to {100 * high:.1f})")


def to_markdown(table: pd.DataFrame, title: str, notes: Sequence[str]) -> str:
    """Return a table of text as a Markdown document."""
    lines = [f"# {title}", "", *(f"{note}\n" for note in notes), "| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    lines += ["| " + " | ".join(str(value).replace("|", "\\|") for value in row) + " |" for row in table.itertuples(index=False)]
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
        table: Of `for_people`.
        title: Heading.
        notes: Paragraphs above the table.
        figure: A PNG beside the page, shown below it; empty: none.
    """
    head = "".join(f"<th>{html.escape(column)}</th>" for column in table.columns)
    body = ""
    for row in table.itertuples(index=False):
        ranked = str(row[0]).isdigit()
        body += f"<tr{'' if ranked else ' class=unranked'}>" + "".join(f"<td>{html.escape(str(value))}</td>" for value in row) + "</tr>\n"
    paragraphs = "".join(f"<p>{html.escape(note)}</p>\n" for note in notes)
    picture = f'<img src="{html.escape(figure)}" alt="comparison of the runs">\n' if figure else ""
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title><style>{_STYLE}</style>\n"
        f"<h1>{html.escape(title)}</h1>\n{paragraphs}<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>\n{picture}</html>\n"
    )
