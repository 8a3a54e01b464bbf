"""What a reader of the comparison should know beside its numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.ranking import can_be_ranked, score, title
from pipeline.tracking import find_runs, names
from pipeline.tracking.workspace import Workspace


def describe_ranking(rows: Sequence[find_runs.Row], digest: str, metric: str) -> list[str]:
    complete = sum(can_be_ranked(row) for row in rows)
    repeated = Counter(
        row["config_hash"]
        for row in rows
        if can_be_ranked(row) and not row["apart"] and row["config_hash"]
    )
    mean = ", the mean of its repeats for each configuration" * (
        max(repeated.values(), default=1) > 1
    )
    notes = [
        f"{len(rows)} trainings, {complete} complete, ranked by {title(metric)}{mean}; only settings that differ are shown."
    ]
    if (majority_rate := logged_majority_rate(rows)) is not None:
        notes.append(
            f"Always answering the largest class would be right in {majority_rate:.1%} of the validation images."
        )
    folds: dict[str, set[str]] = {}
    for row in rows:
        if can_be_ranked(row) and not row["apart"]:
            folds.setdefault(row["config_hash"], set()).add(row["fold"])
    lacking = sum(len(found) < max(map(len, folds.values())) for found in folds.values())
    if lacking:
        notes.append(
            f"{lacking} configurations lack folds that others have, and stand after those."
        )
    if others := sum(row["apart"] == "other data" for row in rows):
        notes.append(
            f"{others} of them were trained on other data than {digest[:8]}; they stand last and are not comparable."
        )
    if others := sum(row["apart"] == "other metric" for row in rows):
        notes.append(
            f"{others} of them chose their best epoch by another metric than {title(metric)}; they stand last and are not comparable."
        )
    unranked = [
        state
        for state in (names.PRUNED, names.FAILED, names.INTERRUPTED, names.RUNNING)
        for row in rows
        if row["state"] == state
    ]
    if unranked:
        counts = ", ".join(f"{unranked.count(state)} {state}" for state in dict.fromkeys(unranked))
        notes.append(f"Not ranked: {counts}.")
    return notes


def logged_majority_rate(rows: Sequence[Mapping[str, Any]]) -> float | None:
    # The leading one's: runs of an earlier version have not logged it, and folds differ in it by an image or so.
    return next(
        (
            row["majority_rate"]
            for row in rows
            if not row["apart"] and row["majority_rate"] is not None
        ),
        None,
    )


def describe_target(
    workspace: Workspace, parent: str, rows: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Say which trainings reached the study's target, and at which epoch first."""
    try:
        target = (
            float(find_runs.get_run(workspace, parent).data.tags.get(names.TARGET, 0))
            if parent
            else 0.0
        )
    except ValueError:
        # A tag that anybody may write.
        target = 0.0
    if not target:
        return []
    met = []
    for row in rows:
        # The best value is known; of which epoch it was reached first, only the history tells.
        if row["value"] is not None and score(row["value"], row["metric"]) < score(
            target, row["metric"]
        ):
            continue
        history = find_runs.metric_history(workspace, row["run_id"], row["metric"])
        epochs = [
            epoch
            for epoch, value in history.items()
            if score(value, row["metric"]) >= score(target, row["metric"])
        ]
        met += [f"{row['run_name']} at epoch {min(epochs)}"] if epochs else []
    reached = (
        f"reached by {len(met)} of {len(rows)} trainings: {', '.join(met)}"
        if met
        else f"reached by none of {len(rows)} trainings"
    )
    return [f"Target {target:g}: {reached}."]
