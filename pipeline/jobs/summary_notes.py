"""What a reader of the comparison should know beside its numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from pipeline.ranking import DEFAULT, can_be_ranked, score, text, title
from pipeline.tracking import find_runs, names
from pipeline.tracking.workspace import Workspace

_TIED = 3
"""Number of runs from which it is said that they share a value."""
_MOST_NAMED = 20
"""Runs that reached the target whose names are said."""


def describe_ranking(rows: Sequence[find_runs.Row], digest: str, metric: str) -> list[str]:
    """Describe how some runs are ranked, and which of them are not, a line each.

    Args:
        rows: The runs in the order of the ranking.
        digest: Digest of the images of the runs that are ranked.
        metric: The metric that they are ranked by.
    """
    complete = sum(can_be_ranked(row) for row in rows)
    compared = [row for row in rows if can_be_ranked(row) and not row["apart"]]
    repeated = Counter(row["config_hash"] for row in compared if row["config_hash"])
    mean = ""
    if max(repeated.values(), default=1) > 1:
        mean = ", the mean of its repeats for each configuration"
    notes = [
        f"{count_trainings(len(rows))}, {complete:,} complete, ranked by {title(metric)}{mean}; "
        "only settings that differ are shown."
    ]
    majority_rate = logged_majority_rate(rows)
    if majority_rate is not None:
        notes.append(
            f"Always answering the largest class would be right in {majority_rate:.1%} "
            "of the validation images."
        )
    notes += _describe_ties(compared)
    lacking = _count_lacking_folds(compared)
    if lacking:
        they_lack = "configurations lack" if lacking > 1 else "configuration lacks"
        notes.append(f"{lacking} {they_lack} folds that others have, and stand after those.")
    return notes + _describe_apart(rows, digest, metric) + _describe_unranked(rows)


def count_trainings(number: int) -> str:
    """Return a number of trainings as text."""
    return "1 training" if number == 1 else f"{number:,} trainings"


def _describe_ties(compared: Sequence[find_runs.Row]) -> list[str]:
    """Say how many runs share the most frequent value, if that are three or more."""
    values = Counter(row["value"] for row in compared if row["value"] is not None)
    value, number = max(values.items(), key=itemgetter(1), default=(None, 0))
    if value is None or number < _TIED:
        return []
    metric = compared[0]["metric"]
    shared = f"{number} of {count_trainings(len(compared))} share {text(value, metric)}"
    num_images = compared[0]["val_images"]
    if metric == DEFAULT and num_images:
        return [f"{shared}, where one validation image is {100 / num_images:.2f} points."]
    return [f"{shared}; the lower validation loss goes first."]


def _count_lacking_folds(compared: Sequence[find_runs.Row]) -> int:
    """Return the number of configurations that lack folds which others have."""
    folds: dict[str, set[str]] = {}
    for row in compared:
        folds.setdefault(row["config_hash"], set()).add(row["fold"])
    most = max(map(len, folds.values()), default=0)
    return sum(len(found) < most for found in folds.values())


def _describe_apart(rows: Sequence[find_runs.Row], digest: str, metric: str) -> list[str]:
    notes = []
    on_other_data = sum(row["apart"] == "other data" for row in rows)
    if on_other_data:
        notes.append(
            f"{on_other_data} of them were trained on other data than {digest[:8]}; "
            "they stand last and are not comparable."
        )
    by_other_metric = sum(row["apart"] == "other metric" for row in rows)
    if by_other_metric:
        notes.append(
            f"{by_other_metric} of them chose their best epoch by another metric "
            f"than {title(metric)}; they stand last and are not comparable."
        )
    return notes


def _describe_unranked(rows: Sequence[find_runs.Row]) -> list[str]:
    states = Counter(row["state"] for row in rows)
    counts = [
        f"{states[state]} {state}"
        for state in (names.PRUNED, names.FAILED, names.INTERRUPTED, names.RUNNING)
        if states[state]
    ]
    return [f"Not ranked: {', '.join(counts)}."] if counts else []


def logged_majority_rate(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Return how often always answering the largest class would be right, from 0 to 1.

    This is the rate of the leading run that has logged it, or None. Runs of an earlier version have
    not logged it, and folds differ in it by an image or so.
    """
    for row in rows:
        if not row["apart"] and row["majority_rate"] is not None:
            return float(row["majority_rate"])
    return None


def describe_target(
    workspace: Workspace, target: float, rows: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Say which trainings reached the study's target, and at which epoch first.

    Args:
        workspace: The open store.
        target: The study's target; 0: none.
        rows: The runs that can be compared.

    Returns:
        One line; none if the study has no target.
    """
    if not target:
        return []
    met = [row for row in rows if _has_reached(workspace, row, target)]
    if not met:
        return [f"Target {target:g}: reached by none of {count_trainings(len(rows))}."]
    named = []
    for row in met[:_MOST_NAMED]:
        name = str(row["run_name"]).partition(",")[0]
        epoch = _find_first_epoch(workspace, row, target)
        named.append(name if epoch is None else f"{name} at epoch {epoch}")
    if len(met) > len(named):
        named.append(f"and {len(met) - len(named):,} more")
    reached = f"{len(met):,} of {count_trainings(len(rows))}"
    return [f"Target {target:g}: reached by {reached}: {', '.join(named)}."]


def _has_reached(workspace: Workspace, row: Mapping[str, Any], target: float) -> bool:
    if row["value"] is None:
        # A run that has not ended may have reached it.
        return _find_first_epoch(workspace, row, target) is not None
    return score(row["value"], row["metric"]) >= score(target, row["metric"])


def load_target(workspace: Workspace, parent: str) -> float:
    """Return the score that a study is to reach, as its run has it; 0 if it has none."""
    try:
        return float(find_runs.get_run(workspace, parent).data.tags.get(names.TARGET, 0))
    except ValueError:
        # A tag that anybody may write.
        return 0.0


def _find_first_epoch(workspace: Workspace, row: Mapping[str, Any], target: float) -> int | None:
    """Return the first epoch in which a run reached a target; None if its history is not known."""
    metric = row["metric"]
    wanted = score(target, metric)
    history = find_runs.metric_history(workspace, row["run_id"], metric)
    reached = [epoch for epoch, value in history.items() if score(value, metric) >= wanted]
    return min(reached, default=None)
