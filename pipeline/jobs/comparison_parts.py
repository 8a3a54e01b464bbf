"""The parts of a comparison's page: charts of its runs, and the pictures that they have kept."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.jobs.mistakes import MISTAKES
from pipeline.ranking import can_be_ranked
from pipeline.report import comparison_charts
from pipeline.report.comparison_page import Part, Picture
from pipeline.report.merged import name_configuration
from pipeline.report.settings_text import SETTING_LABELS, differing_settings
from pipeline.scores.effects import Effect
from pipeline.tracking import artifacts, find_runs
from pipeline.tracking.names import INTERRUPTED, PRUNED, RUNNING
from pipeline.tracking.workspace import Workspace

Row = Mapping[str, Any]

MOST_MATRICES = 6
"""Configurations whose confusion matrices are shown side by side."""
MOST_GALLERIES = 2
"""Configurations whose worst mistakes are shown."""
MOST_BYTES = 4_000_000
"""Largest picture of a run that is shown: ours have a tenth of it."""
_NAMES = {**SETTING_LABELS, "model.name": "network"}
_NO_SCORE = "it has no score to be ranked by"
_WHY_UNRANKED = {
    PRUNED: "the search gave it up early",
    RUNNING: "it has not ended",
    INTERRUPTED: "it was interrupted",
    "other data": "it was trained on other images than the latest training",
    "other metric": "its best epoch was chosen by another metric than the latest training's",
}
_MATRIX = "confusion_matrix/test.png"


def describe_parts(
    workspace: Workspace,
    rows: Sequence[Row],
    metric: str,
    effects: Sequence[Effect],
    chart: bytes,
    shows_images: bool,
) -> list[Part]:
    """Return what the page shows below its table.

    Args:
        workspace: The open store.
        rows: Results of `merge_repeats`.
        metric: The metric that ranks them.
        effects: What each setting does.
        chart: PNG of the configurations side by side.
        shows_images: Whether images may be shown.
    """
    ranked = [row for row in rows if can_be_ranked(row) and not row["apart"]]
    pairs = zip(ranked, differing_settings(ranked), strict=True)
    names = [name_configuration(row, settings) for row, settings in pairs]
    charts = [Picture(chart, "the configurations, best first")] if ranked else []
    return [
        Part("Side by side", pictures=charts),
        _draw_cost(ranked, names),
        _draw_effects(effects),
        _draw_curves(workspace, ranked, names, metric),
        _load_matrices(workspace, ranked, names),
        _load_mistakes(workspace, ranked if shows_images else [], names),
        _describe_one_by_one(rows, ranked, names),
    ]


def _describe_one_by_one(rows: Sequence[Row], ranked: Sequence[Row], names: Sequence[str]) -> Part:
    """Say of each configuration what is wrong with it, and of other runs why they have no place."""
    entries = {}
    for place, (row, name) in enumerate(zip(ranked, names, strict=True), start=1):
        runs = len(row["runs"])
        said = []
        for problem in row["problems"]:
            share = f" ({problem.num_runs} of {runs} runs)" if problem.num_runs < runs else ""
            said.append(f"{problem.name}{share}: {problem.text}")
        said += _describe_difference(row)
        if said:
            trainings = ", ".join(str(run["run_name"]).partition(",")[0] for run in row["runs"])
            known = f"; {row['config_hash']}" if row["config_hash"] else ""
            entries[f"{place}. {name} (run {trainings}{known})"] = said
    for row in rows[len(ranked) :]:
        why = row["apart"] or row["state"]
        said = [row["reason"]] if row["reason"] else []
        if not said:
            said = [f"{problem.name}: {problem.text}" for problem in row["problems"]]
        entries[f"{why}: run {row['run_name']}"] = said or [_WHY_UNRANKED.get(why, _NO_SCORE)]
    return Part("One by one", "What is wrong with each, and how sure its place is.", (), entries)


def _describe_difference(row: Row) -> list[str]:
    verdict = row["verdict"]
    if verdict is None or verdict.difference is None:
        return []
    difference = verdict.difference
    side = "behind" if difference.value >= 0 else "ahead of"
    ends = [100 * difference.low, 100 * difference.high]
    low, high = ends if difference.value >= 0 else (-ends[1], -ends[0])
    text = (
        f"{verdict.word}: {100 * abs(difference.value):.1f} points {side} the leader on test "
        f"(95% interval of this pair alone: {low:.1f} to {high:.1f}; "
        f"p {verdict.corrected_p:.2g} after correction)"
    )
    needed = []
    if difference.images_needed is not None:
        needed.append(f"{difference.images_needed:,} test images")
    if difference.seeds_needed is not None:
        needed.append(f"{difference.seeds_needed:,} seeds each")
    if verdict.word == "not told apart":
        text += f"; to tell them apart: {' or '.join(needed) or 'out of reach'}"
    return [text]


def _drawn(title: str, caption: str, draw: Callable[[Path], None], text: str = "") -> Part:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "chart.png"
        draw(file)
        return Part(title, text, [Picture(file.read_bytes(), caption)])


def _draw_cost(ranked: Sequence[Row], names: Sequence[str]) -> Part:
    title = "Accuracy against cost"
    shown = []
    labels = []
    for row, name in zip(ranked, names, strict=True):
        if row["test_accuracy"] is not None and row["images_per_second"]:
            shown.append(row)
            labels.append(name)
    if len({row["images_per_second"] for row in shown}) < 2:
        return Part(title)
    front = [name for row, name in zip(shown, labels, strict=True) if row["is_pareto"]]
    return _drawn(
        title,
        "test accuracy with 95% intervals against speed",
        lambda file: comparison_charts.draw_cost(file, shown, labels),
        f"No other configuration beats these in both: {'; '.join(front)}.",
    )


def _draw_effects(effects: Sequence[Effect]) -> Part:
    title = "What each setting does"
    if not effects:
        return Part(title)
    text = "Pairs of configurations that differ in one setting alone (all: effects.csv)."
    searched = sum(effect.num_searched for effect in effects)
    if searched:
        text += (
            f" In {searched} pairs one was drawn by the search, which looks closer where "
            "configurations are better for other reasons too."
        )
    return _drawn(
        title,
        "points gained by each change",
        lambda file: comparison_charts.draw_effects(file, effects, _NAMES),
        text,
    )


def _draw_curves(
    workspace: Workspace, ranked: Sequence[Row], names: Sequence[str], metric: str
) -> Part:
    title = "Learning curves"
    trainings = []
    for row, name in zip(ranked[: comparison_charts.MOST_CURVES], names, strict=False):
        run_id = str(row["run_id"])
        values = find_runs.metric_history(workspace, run_id, metric)
        rates = find_runs.metric_history(workspace, run_id, "lr")
        if len(values) > 1:
            trainings.append(comparison_charts.Curves(name, values, rates))
    if not trainings:
        return Part(title)
    return _drawn(
        title,
        f"{len(trainings)} configurations, the first ones, each by its best run",
        lambda file: comparison_charts.draw_curves(file, trainings, metric),
    )


def _load_matrices(workspace: Workspace, ranked: Sequence[Row], names: Sequence[str]) -> Part:
    pictures = []
    for row, name in zip(ranked[:MOST_MATRICES], names, strict=False):
        content = load_picture(workspace, str(row["run_id"]), _MATRIX)
        if row["test_accuracy"] is not None and content:
            pictures.append(Picture(content, f"{row['run_name'].partition(',')[0]}: {name}"))
    return Part("Confusion matrices on the test images", "", pictures)


def _load_mistakes(workspace: Workspace, ranked: Sequence[Row], names: Sequence[str]) -> Part:
    pictures = []
    for row, name in zip(ranked[:MOST_GALLERIES], names, strict=False):
        content = load_picture(workspace, str(row["run_id"]), MISTAKES)
        if row["test_accuracy"] is not None and content:
            run = row["run_name"].partition(",")[0]
            pictures.append(Picture(content, f"mistakes of {run}: {name}"))
    return Part("The worst mistakes on the test images", "", pictures)


def load_picture(workspace: Workspace, run_id: str, path: str) -> bytes:
    """Return a PNG that a run has kept; nothing if it has none, or something else."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = artifacts.download_artifact(workspace, run_id, path, Path(folder))
            content = file.read_bytes() if file.stat().st_size <= MOST_BYTES else b""
        except (UserError, OSError):
            return b""
    return content if content.startswith(b"\x89PNG") else b""
