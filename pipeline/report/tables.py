"""The comparison of runs as tables: everything for programs, eight columns for people."""

from __future__ import annotations

import html
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
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
from pipeline.scores.effects import Effect
from pipeline.scores.significance import Verdict

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
"""Columns after `COLUMNS`.

They are a run's number in its study, the reason why it ended early, the metric that it ranks by,
and the value of that metric.
"""
_WHOLE = ["seed", "epochs", "best_epoch", "parameters"]
"""Columns of whole numbers."""

_SETTINGS = ["model", "weights", "freeze", "optimizer", "lr", "schedule", "weight_decay", "epochs"]
_SCORES = ["val_accuracy", "val_loss", "test_accuracy", "seconds"]
_SECTIONS = ("model", "optimizer", "schedule", "training", "data")
"""Sections of a configuration, in the order in which people read settings."""

_VERDICT = [
    "verdict",
    "behind",
    "behind_low",
    "behind_high",
    "p_value",
    "p_holm",
    "compared_by",
    "counts_seeds",
    "images_needed",
    "seeds_needed",
]
"""Columns of a configuration's comparison with the leading one.

``behind`` is by how much its test accuracy is lower, as a fraction, with a 95% interval for this
pair alone; ``p_holm`` is the p-value corrected for the number of configurations.
"""

MOST_CLASSES = 20
"""Number of classes whose scores are printed."""

# A backslash at the end of a line joins the line with the next one.
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; \
padding: 0 1rem; color: #1c2430; }
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


def _setting_labels() -> dict[str, str]:
    """Return the label of each field that may tell runs apart, by its dotted name.

    The fields stand in the order in which they are shown.
    """
    labels = {}
    for name, field in declared(_SECTIONS):
        facts = facts_of(field)
        is_setting = facts.label or facts.hashed or facts.shared
        if is_setting and name not in ("model.name", "data.source"):
            labels[name] = facts.label or name
    return labels


_LABELS = _setting_labels()


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return one row per run, in the order given.

    `COLUMNS` come first, then how each run was named in its study, why it ended, and what it ranks
    by.
    """
    columns = [*COLUMNS, *_FURTHER]
    lines = []
    for row in rows:
        lines.append({name: row.get(name) for name in columns})
    table = pd.DataFrame(lines, columns=columns)
    table["reason"] = table["reason"].replace("", None)
    for column in _WHOLE:
        table[column] = pd.to_numeric(table[column], errors="coerce").astype("Int64")
    return table


def configurations_table(
    rows: Sequence[Mapping[str, Any]], verdicts: Mapping[str, Verdict] | None = None
) -> pd.DataFrame:
    """Return one row per configuration of complete runs, in the order given.

    Repeats are merged to mean and standard deviation. A test accuracy is there only if all repeats
    are evaluated: the mean of some is not that of the configuration. `test_repeats` says how many
    are. The metric that a configuration ranks by, and its mean, are the columns `metric` and
    `value`. The last columns compare it with the leading configuration, see
    `pipeline.scores.significance`.

    Args:
        rows: Runs, best first.
        verdicts: The comparisons, by the run id of a configuration's first run.
    """
    complete = [row for row in rows if row.get("state") == "complete"]
    merged = []
    for group in ranking.by_configuration(complete):
        verdict = (verdicts or {}).get(str(group[0]["run_id"]))
        merged.append({**_merge(group), **_describe_verdict(verdict)})
    columns = ["config_hash", "repeats", *_SETTINGS]
    for name in _SCORES:
        columns += [name, f"{name}_std"]
    columns += ["parameters", "data_digest", "run_ids"]
    columns += ["test_repeats", "metric", "value", "value_std", *_VERDICT]
    table = pd.DataFrame(merged, columns=columns)
    for column in ("epochs", "parameters", "images_needed", "seeds_needed"):
        table[column] = pd.to_numeric(table[column], errors="coerce").astype("Int64")
    return table


def _describe_verdict(verdict: Verdict | None) -> dict[str, Any]:
    if verdict is None:
        return {}
    values: dict[str, Any] = {"verdict": verdict.word}
    difference = verdict.difference
    if difference is not None:
        values |= {
            "behind": difference.value,
            "behind_low": difference.low,
            "behind_high": difference.high,
            "p_value": difference.p_value,
            "p_holm": verdict.corrected_p,
            "compared_by": difference.method,
            "counts_seeds": difference.counts_seeds,
            "images_needed": difference.images_needed,
            "seeds_needed": difference.seeds_needed,
        }
    return values


def _merge(repeats: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the row of one configuration.

    This is plain Python, since a study may have a thousand configurations.
    """
    values: dict[str, Any] = {
        "repeats": len(repeats),
        "run_ids": " ".join(str(row["run_id"]) for row in repeats),
    }
    for name in ("config_hash", *_SETTINGS, "parameters", "data_digest", "metric"):
        values[name] = repeats[0].get(name)
    for name in (*_SCORES, "value"):
        found = [to_number(row.get(name)) for row in repeats]
        numbers = [number for number in found if number is not None]
        if name == "test_accuracy":
            values["test_repeats"] = len(numbers)
            if len(numbers) < len(repeats):
                numbers = []
        values[name] = statistics.fmean(numbers) if numbers else math.nan
        values[f"{name}_std"] = statistics.stdev(numbers) if len(numbers) > 1 else math.nan
    return values


def effects_table(effects: Sequence[Effect]) -> pd.DataFrame:
    """Return one row for each setting and two of its values, for programs.

    ``pairs`` is the number of pairs of configurations that differ in the setting alone;
    ``searched_pairs`` of them have one that the search drew. ``NAME_mean``, ``NAME_std``,
    ``NAME_low`` and ``NAME_high`` describe their differences in a metric: second value less first.
    """
    metrics = ("validation", "test")
    columns = ["setting", "from", "to", "pairs", "searched_pairs"]
    for metric in metrics:
        columns += [f"{metric}_{end}" for end in ("mean", "std", "low", "high")]
    lines = []
    for effect in effects:
        line = {
            "setting": effect.setting,
            "from": effect.before,
            "to": effect.after,
            "pairs": effect.num_pairs,
            "searched_pairs": effect.num_searched,
        }
        for metric in metrics:
            found = effect.differences.get(metric, ())
            line[f"{metric}_mean"] = effect.mean(metric)
            line[f"{metric}_std"] = effect.deviation(metric)
            line[f"{metric}_low"] = min(found, default=math.nan)
            line[f"{metric}_high"] = max(found, default=math.nan)
        lines.append(line)
    return pd.DataFrame(lines, columns=columns)


def differing_settings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return for each run its settings that are not the same in all runs.

    An example is ``lr 0.001, decay cosine``. A setting is looked at only in the runs in which it
    has an effect; a gamma that comes with its schedule is not looked at. Networks of one's own may
    differ in nothing but their code: they are told apart by the hash of the configuration.
    """
    params = [settings_with_effect(row.get("params") or {}) for row in rows]
    names = _differing_names(params)
    # The text of a run, and the name of its network or of the network's file.
    shown = []
    for some in params:
        network = Path(str(some.get("model.name", ""))).name
        shown.append((_describe_some(some, names), network))
    hashes: dict[tuple[str, str], set[str]] = {}
    for key, row in zip(shown, rows, strict=True):
        found = hashes.setdefault(key, set())
        if row.get("config_hash"):
            found.add(row["config_hash"])
    texts = []
    for key, row in zip(shown, rows, strict=True):
        text, _ = key
        if len(hashes[key]) > 1 and row.get("config_hash"):
            code = f"configuration {row['config_hash'][:6]}"
            text = f"{text}, {code}" if text else code
        texts.append(text)
    return texts


def _differing_names(params: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the dotted names of settings with more than one value; unknown settings come last."""
    unknown: set[str] = set()
    for some in params:
        unknown |= {name for name in some if "." in name and field_info(name) is None}
    names = []
    for name in (*_LABELS, *sorted(unknown)):
        values = {some[name] for some in params if name in some}
        if len(values) > 1:
            names.append(name)
    return names


def _describe_some(params: Mapping[str, Any], names: Sequence[str]) -> str:
    texts = []
    for name in names:
        if params.get(name) is not None:
            texts.append(f"{_LABELS.get(name, name)} {format_short(params[name])}")
    return ", ".join(texts)


def settings_with_effect(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that have an effect; a gamma that comes with its schedule is None."""
    found = {name: value for name, value in params.items() if applies(name, params)}
    if "schedule.gamma" in found:
        gamma = found["schedule.gamma"]
        usual = DEFAULT_GAMMA.get(str(params.get("schedule.name")))
        if gamma in (None, "null", "None") or float(gamma) == usual:
            found["schedule.gamma"] = None
    return found


def describe_settings(params: Mapping[str, Any]) -> str:
    """Return the settings that tell trainings apart.

    An example is ``resnet18, weights none, lr 0.001, wd 0.0001, decay cosine``.
    """
    texts = [str(params["model.name"])]
    for name in ("model.weights", "optimizer.lr", "optimizer.weight_decay", "schedule.name"):
        texts.append(f"{_LABELS[name]} {format_short(params[name])}")
    return ", ".join(texts)


def table_for_people(
    rows: Sequence[Mapping[str, Any]], metric: str = ranking.DEFAULT
) -> pd.DataFrame:
    """Return the eight columns that matter, as text, in the order given.

    There is one more column for a metric that is neither accuracy nor loss. The first column is the
    rank, or why a run has none: its state, or that it cannot be compared with the others.

    Args:
        rows: Runs, best first.
        metric: The metric that the runs are ranked by.
    """
    lines = []
    rank = 0
    for row, settings in zip(rows, differing_settings(rows), strict=True):
        place = str(row.get("apart") or row.get("state"))
        if ranking.can_be_ranked(row) and not row.get("apart"):
            rank += 1
            place = str(rank)
        line = {"#": place, "run": str(row.get("run_name")), "settings": settings}
        if metric not in ("val/accuracy", "val/loss"):
            line[_short_title(metric)] = best_value_text(row) if row.get("metric") == metric else ""
        val_loss = to_number(row.get("val_loss"))
        line["val accuracy"] = format_percent(row.get("val_accuracy"))
        line["val loss"] = "" if val_loss is None else f"{val_loss:.4f}"
        line["test accuracy (95%)"] = format_interval(row)
        line["parameters"] = format_millions(row.get("parameters"))
        line["time"] = format_duration(row.get("seconds"))
        lines.append(line)
    return pd.DataFrame(lines)


def least_important(metric: str) -> list[str]:
    """Return the columns of `table_for_people` that a narrow terminal can do without.

    The first goes first. The column of the metric that ranks is never among them.
    """
    columns = ["parameters", "time", "val loss", "test accuracy (95%)", "val accuracy"]
    return [column for column in columns if column != _short_title(metric)]


def _short_title(metric: str) -> str:
    return ranking.title(metric).replace("validation", "val")


def best_value_text(row: Mapping[str, Any]) -> str:
    """Return the value of what a run is ranked by, as text; nothing if it has none."""
    value = to_number(row.get("value"))
    return "" if value is None else ranking.text(value, row["metric"])


def scores_table(per_class: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return the scores per class as text, and a title.

    Fractions are percent. Of many classes there are only those with the lowest F1.
    """
    title = "test scores per class"
    if len(per_class) > MOST_CLASSES:
        title = (
            f"test scores of the {MOST_CLASSES} of {len(per_class):,} classes with the lowest F1 "
            "(all: the run's test/per_class.csv)"
        )
        per_class = per_class.sort_values(["f1", "recall"], kind="stable").head(MOST_CLASSES)
    shown = per_class.astype({"images": str})
    for column in ("precision", "recall", "f1"):
        shown[column] = [format_percent(value) for value in per_class[column]]
    return shown, title


def to_markdown(table: pd.DataFrame, title: str, notes: Sequence[str]) -> str:
    """Return a table of text as a Markdown document."""
    lines = [f"# {escape_markdown(title)}", ""]
    for note in notes:
        lines.append(f"{escape_markdown(note)}\n")
    lines.append(_markdown_row(table.columns))
    lines.append("|" + "---|" * len(table.columns))
    for row in table.itertuples(index=False):
        lines.append(_markdown_row(row))
    return "\n".join(lines) + "\n"


def _markdown_row(cells: Iterable[Any]) -> str:
    return "| " + " | ".join(escape_markdown(str(cell)) for cell in cells) + " |"


def to_html(table: pd.DataFrame, title: str, notes: Sequence[str], figure: str = "") -> str:
    """Return a table of text as a standalone page.

    Args:
        table: Result of `table_for_people`.
        title: Heading of the page.
        notes: Paragraphs above the table.
        figure: Name of a PNG beside the page, shown below the table; empty: none is shown.
    """
    head = "".join(f"<th>{html.escape(column)}</th>" for column in table.columns)
    body = ""
    for row in table.itertuples(index=False):
        mark = "" if str(row[0]).isdigit() else " class=unranked"
        cells = "".join(f"<td>{html.escape(make_visible(str(value)))}</td>" for value in row)
        body += f"<tr{mark}>{cells}</tr>\n"
    paragraphs = "".join(f"<p>{html.escape(make_visible(note))}</p>\n" for note in notes)
    picture = ""
    if figure:
        picture = f'<img src="{html.escape(figure)}" alt="comparison of the runs">\n'
    heading = html.escape(title)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{heading}</title>"
        f"<style>{_STYLE}</style>\n"
        f"<h1>{heading}</h1>\n"
        f"{paragraphs}<table><thead><tr>{head}</tr></thead><tbody>\n"
        f"{body}</tbody></table>\n"
        f"{picture}</html>\n"
    )
