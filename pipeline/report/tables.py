"""The comparison of runs as tables for programs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from pipeline import ranking
from pipeline.report.format import (
    format_percent,
    to_number,
)
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

    A complete run that has no score has a row of its own.

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
    ranked = [row for row in complete if ranking.can_be_ranked(row)]
    groups = ranking.by_configuration(ranked)
    groups += [[row] for row in complete if not ranking.can_be_ranked(row)]
    merged = []
    for group in groups:
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
