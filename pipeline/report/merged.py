"""The comparison as people see it: one row for each configuration, its repeats merged."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline import ranking
from pipeline.report.format import to_number
from pipeline.scores.problems import find_problems
from pipeline.scores.significance import Verdict

Row = dict[str, Any]

_OF_ONE_RUN = ("training.seed", "data.fold")
"""Settings in which the repeats of a configuration differ."""
_MEANS = ("val_accuracy", "val_loss", "test_accuracy", "value", "test_value", "seconds")
_PARETO = ("test_accuracy", "images_per_second")


def merge_repeats(
    rows: Sequence[Mapping[str, Any]],
    verdicts: Mapping[str, Verdict] | None = None,
    target: float = 0.0,
) -> list[Row]:
    """Return a row for each configuration that is ranked, and one for each run that is not.

    A row has what the row of its best run has, with the means of its runs for their scores. Further
    columns: ``runs``, the rows of its runs, the best first; ``repeats``, their number;
    ``val_accuracy_std`` and ``test_accuracy_std``; ``problems``, see `pipeline.scores.problems`;
    ``verdict``; and ``is_pareto``, whether no other configuration is at least as accurate on test
    and as fast, and better in one of both. Speeds that were measured on another machine than the
    leader's are left out. The interval of the test accuracy is that of the
    configuration.

    Args:
        rows: Runs, best first.
        verdicts: How configurations compare with the leading one, by the run id of their best run.
        target: The score that the study is to reach; 0: none.
    """
    ranked = [row for row in rows if ranking.can_be_ranked(row) and not row.get("apart")]
    merged = []
    for runs in ranking.by_configuration(ranked):
        verdict = (verdicts or {}).get(str(runs[0]["run_id"]))
        merged.append(_merge(runs, verdict, target))
    _leave_out_other_machines(merged)
    _mark_pareto(merged)
    for row in rows:
        if row.get("apart") or not ranking.can_be_ranked(row):
            # What is wrong with a training that failed is why it failed.
            problems = find_problems([row]) if row.get("state") == "failed" else []
            alone = {"runs": [row], "repeats": 1, "problems": problems, "verdict": None}
            merged.append({**row, **alone, "is_pareto": False, "params": _settings_of(row)})
    return merged


def _merge(runs: Sequence[Mapping[str, Any]], verdict: Verdict | None, target: float) -> Row:
    merged = dict(runs[0])
    for name in _MEANS:
        found = [to_number(run.get(name)) for run in runs]
        known = [number for number in found if number is not None]
        is_whole = len(known) == len(runs) or not name.startswith("test")
        # The mean of some repeats on test is not that of the configuration.
        merged[name] = ranking.exact_mean(known) if known and is_whole else None
        has_spread = len(known) > 1 and merged[name] is not None
        merged[f"{name}_std"] = statistics.stdev(known) if has_spread else math.nan
    interval = verdict.interval if verdict is not None else None
    if interval is not None or len(runs) > 1 or merged["test_accuracy"] is None:
        # A single run that is not compared keeps its own.
        low, high = interval or (None, None)
        merged["test_accuracy_low"], merged["test_accuracy_high"] = low, high
    merged["params"] = _settings_of(runs[0])
    merged["runs"], merged["repeats"] = list(runs), len(runs)
    merged["problems"] = find_problems(runs, target)
    merged["verdict"] = verdict
    return merged


def _settings_of(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's params but for those in which repeats of its configuration differ."""
    settings = dict(run.get("params") or {})
    if run.get("config_hash"):
        for name in _OF_ONE_RUN:
            settings.pop(name, None)
    return settings


def _leave_out_other_machines(merged: Sequence[Row]) -> None:
    """Leave out speeds that were measured on another machine than that of the first one."""
    measured = [row for row in merged if to_number(row.get("images_per_second")) is not None]
    for row in measured:
        if row.get("measured_on") != measured[0].get("measured_on"):
            row["images_per_second"] = None


def _mark_pareto(merged: Sequence[Row]) -> None:
    """Mark the configurations that no other one beats in both test accuracy and speed."""
    points = []
    for row in merged:
        accuracy, speed = (to_number(row.get(name)) for name in _PARETO)
        points.append(None if accuracy is None or speed is None else (accuracy, speed))
    known = [point for point in points if point is not None]
    for row, point in zip(merged, points, strict=True):
        row["is_pareto"] = point is not None and not any(_beats(one, point) for one in known)


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and one[0] >= other[0] and one[1] >= other[1]


def name_configuration(row: Mapping[str, Any], settings: str) -> str:
    """Return how a configuration is called in a sentence: its network and what differs."""
    network = str(row.get("model") or row.get("run_name"))
    if not settings:
        return network
    return settings if settings.startswith(network) else f"{network}, {settings}"
