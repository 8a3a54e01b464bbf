"""The comparison of a study's runs: files for programs, pages for people."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.errors import UserError, nearest
from pipeline.files import write_whole
from pipeline.metrics import can_be_ranked, rank
from pipeline.report import figures, tables
from pipeline.tracking import find, names
from pipeline.tracking.run import RunLog
from pipeline.tracking.store import Workspace


@dataclass(frozen=True)
class Comparison:
    """The runs of a study, best first.

    Attributes:
        study: Its name; empty: all trainings of the experiment.
        parent: Run id of the study, or empty.
        rows: Ranked by `pipeline.metrics.rank`; what cannot be ranked comes last.
        notes: What a reader of the table should know.
    """

    study: str
    parent: str
    rows: Sequence[find.Row]
    notes: list[str]

    def ranked(self, evaluated: bool = False) -> list[find.Row]:
        """Return the complete runs, best first; with `evaluated` those that have test scores."""
        return [
            row for row in self.rows if can_be_ranked(row) and row["comparable"] and (not evaluated or row["test_accuracy"] is not None)
        ]

    @property
    def majority_rate(self) -> float | None:
        """Accuracy of always answering the largest class of the ranked rows' images; None where no run has logged it."""
        return _majority_rate(self.rows)

    @property
    def title(self) -> str:
        """Heading of the table."""
        return f"Comparison of {self.study or 'all trainings'}"


def compare(workspace: Workspace, study: str = "") -> Comparison:
    """Rank the runs of a study, of the experiment's latest, or without one of all its trainings.

    Raises:
        UserError: No such study, or nothing has been trained.
    """
    name, parent = find.choose_study(workspace, study)
    rows = find.trainings(workspace, name)
    if not rows:
        known = find.known_experiments(workspace)
        there = f"{nearest(workspace.experiment, known)}; there are: {', '.join(known) or 'none'}"
        raise UserError(f"experiment {workspace.experiment!r} has no trainings in {workspace.uri}{there}")
    latest = max(rows, key=lambda row: row["start_time"])["data_digest"]
    same = rank([{**row, "comparable": True} for row in rows if row["data_digest"] == latest])
    other = rank([{**row, "comparable": False} for row in rows if row["data_digest"] != latest])
    notes = _notes(rows, latest, _majority_rate(same)) + _target_notes(workspace, parent, same)
    return Comparison(name, parent, [dict(row) for row in (*same, *other)], notes)


def _target_notes(workspace: Workspace, parent: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say which trainings reached the study's target, and at which epoch first."""
    target = float(find.get_run(workspace, parent).data.tags.get(names.TARGET, 0)) if parent else 0.0
    if not target:
        return []
    met = []
    for row in rows:
        metric = row["params"].get("training.best_metric", "val/accuracy")
        history = workspace.client.get_metric_history(row["run_id"], metric)
        epochs = [entry.step for entry in history if (entry.value <= target if metric == "val/loss" else entry.value >= target)]
        met += [f"{row['run_name']} at epoch {min(epochs)}"] if epochs else []
    reached = f"reached by {len(met)} of {len(rows)} trainings: {', '.join(met)}" if met else f"reached by none of {len(rows)} trainings"
    return [f"Target {target:g}: {reached}."]


def _majority_rate(rows: Sequence[Mapping[str, Any]]) -> float | None:
    # The leading one's: runs of an earlier version have not logged it, and folds differ in it by an image or so.
    return next((row["majority_rate"] for row in rows if row["comparable"] and row["majority_rate"] is not None), None)


def _notes(rows: Sequence[find.Row], digest: str, majority_rate: float | None) -> list[str]:
    complete = sum(can_be_ranked(row) for row in rows)
    notes = [f"{len(rows)} trainings, {complete} complete, ranked by validation accuracy; only settings that differ are shown."]
    if majority_rate is not None:
        notes.append(f"Always answering the largest class would be right in {majority_rate:.1%} of the validation images.")
    folds: dict[str, set[str]] = {}
    for row in rows:
        if can_be_ranked(row) and row["data_digest"] == digest:
            folds.setdefault(row["config_hash"], set()).add(row["fold"])
    lacking = sum(len(found) < max(map(len, folds.values())) for found in folds.values())
    if lacking:
        notes.append(f"{lacking} configurations lack folds that others have, and stand after those.")
    others = sum(row["data_digest"] != digest for row in rows)
    if others:
        notes.append(f"{others} of them were trained on other data than {digest[:8]}; they stand last and are not comparable.")
    unranked = [state for state in (names.PRUNED, names.FAILED, names.INTERRUPTED, names.RUNNING) for row in rows if row["state"] == state]
    if unranked:
        counts = ", ".join(f"{unranked.count(state)} {state}" for state in dict.fromkeys(unranked))
        notes.append(f"Not ranked: {counts}.")
    return notes


def best_run(workspace: Workspace, study: str = "") -> str:
    """Return the run id that leads the ranking.

    Raises:
        UserError: No training is complete.
    """
    compared = compare(workspace, study)
    ranked = compared.ranked()
    if not ranked:
        raise UserError(f"none of the {len(compared.rows)} trainings of {compared.study or workspace.experiment} is complete")
    return str(ranked[0]["run_id"])


def summarise(workspace: Workspace, study: str = "") -> Comparison:
    """Write the comparison into ``outputs/EXPERIMENT/`` and to the study's run."""
    compared = compare(workspace, study)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        people = tables.for_people(compared.rows)
        tables.comparison(compared.rows).to_csv(folder / "comparison.csv", index=False)
        tables.configurations(compared.rows).to_csv(folder / "configurations.csv", index=False)
        labels = [_label(*texts) for texts in zip(people["#"], people["run"], people["settings"], strict=True)]
        drawn = [(row, label) for row, label in zip(compared.rows, labels, strict=True) if row["val_accuracy"] is not None]
        figures.comparison(folder / "comparison.png", [row for row, _ in drawn], [label for _, label in drawn], compared.majority_rate)
        (folder / "comparison.md").write_text(tables.to_markdown(people, compared.title, compared.notes), encoding="utf-8")
        (folder / "comparison.html").write_text(tables.to_html(people, compared.title, compared.notes, "comparison.png"), encoding="utf-8")
        if compared.parent:
            RunLog(workspace, compared.parent).files(folder, "summary")
        workspace.outputs.mkdir(parents=True, exist_ok=True)
        for file in folder.iterdir():
            write_whole(workspace.outputs / file.name, file.read_bytes())
    return compared


def _label(rank: str, run: str, settings: str) -> str:
    text = f"{rank}  {run}  {settings}"
    return text if len(text) <= 70 else text[:69] + "…"


def people_table(compared: Comparison) -> pd.DataFrame:
    """Return the table that is printed."""
    return tables.for_people(compared.rows)
