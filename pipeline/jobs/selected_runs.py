"""A comparison of runs that a person selects: of several experiments, or by MLflow's filter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipeline.errors import UserError, nearest
from pipeline.jobs.summary import Summary, compare_rows
from pipeline.jobs.summary_notes import count_trainings
from pipeline.tracking import find_runs
from pipeline.tracking.workspace import Workspace

FOLDER = "selected"
"""Folder below the experiment's outputs, so that the study's own comparison stays."""


def summarise_selected(
    workspace: Workspace, experiments: str, condition: str, metric: str = ""
) -> Summary:
    """Compare the trainings of some experiments that meet a condition.

    The trainings on the images of the latest one, by its metric, are ranked. Others stand below.

    Args:
        workspace: The open store.
        experiments: Names of experiments, separated by commas; empty: the workspace's own.
        condition: A filter in MLflow's words, such as ``params.`model.name` = 'resnet18'``; empty:
            all.
        metric: The metric that ranks, if one of the runs has it.

    Raises:
        UserError: There is no such experiment, the filter is none, or nothing is found.
    """
    names = [name.strip() for name in experiments.split(",") if name.strip()]
    rows: dict[str, find_runs.Row] = {}
    for name in names or [workspace.experiment]:
        there = replace(workspace, experiment=name)
        found = find_runs.find_trainings(there, condition=condition)
        if not found and not find_runs.find_trainings(there):
            raise _unknown_experiment(workspace, name)
        for row in found:
            # The numbers of trainings are those of their study.
            run_name = f"{name}: {row['run_name']}" if len(names) > 1 else row["run_name"]
            rows[str(row["run_id"])] = {**row, "run_name": run_name}
    if not rows:
        listed = _describe_there(workspace, names or [workspace.experiment])
        raise UserError(f"filter: {condition!r} finds no training; there are:", listed)
    compared = compare_rows(workspace, list(rows.values()), metric)
    return replace(compared, folder=FOLDER, title="Comparison of the selected trainings")


def _unknown_experiment(workspace: Workspace, name: str) -> UserError:
    known = find_runs.list_experiments(workspace)
    return UserError(
        f"experiments: {name!r} has no trainings in {workspace.uri}{nearest(name, known)}; "
        f"there are: {', '.join(known) or 'none'}"
    )


def _describe_there(workspace: Workspace, experiments: Sequence[str]) -> list[str]:
    """Return for each experiment how many trainings of which networks it has."""
    lines = []
    for name in experiments:
        found = find_runs.find_trainings(replace(workspace, experiment=name))
        networks = sorted({str(row["model"]) for row in found})
        lines.append(f"{name}: {count_trainings(len(found))} of {', '.join(networks)}")
    return lines
