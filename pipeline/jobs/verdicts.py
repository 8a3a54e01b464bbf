"""Compare the leading configuration with the others on the test images."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyarrow import parquet

from pipeline.errors import UserError
from pipeline.jobs.predictions_table import OF_TEST
from pipeline.ranking import by_configuration
from pipeline.scores.intervals import number_groups
from pipeline.scores.significance import MOST_COMPARED, TestResults, Verdict, judge
from pipeline.tracking import artifacts, find_runs
from pipeline.tracking.workspace import Workspace

_METHODS = {
    "McNemar": "by the images that only one of two runs answers rightly (McNemar's exact test)",
    "paired": "image by image (t-test)",
    "by group": "group of images by group (t-test)",
    "unpaired": "by their accuracies alone, since answers to each image are not known (t-test)",
}
_COLUMNS = ["path", "true", "predicted"]


def judge_configurations(
    workspace: Workspace, ranked: Sequence[find_runs.Row]
) -> dict[str, Verdict]:
    """Return a verdict for each configuration, by the run id of its best run.

    A configuration counts as evaluated if all its repeats are, as in the table of configurations.

    Args:
        workspace: The open store.
        ranked: Complete runs that can be compared, in the order of `pipeline.ranking.rank`.
    """
    configurations = by_configuration(ranked)
    paths: list[str] | None = None
    results: list[TestResults | None] = []
    for runs in configurations:
        if len(results) > MOST_COMPARED or not _are_evaluated(runs):
            # What is not compared is not looked at.
            results.append(None)
            continue
        answers = [_load_answers(workspace, str(run["run_id"])) for run in runs]
        if not results and answers[0] is not None:
            # The others are compared on the leader's images.
            paths = answers[0]["path"].tolist()
        results.append(_merge(runs, answers, paths))
    verdicts = judge(results)
    found = {}
    for runs, verdict in zip(configurations, verdicts, strict=True):
        found[str(runs[0]["run_id"])] = verdict
    return found


def _are_evaluated(runs: Sequence[Mapping[str, Any]]) -> bool:
    return all(run["test_accuracy"] is not None for run in runs)


def _load_answers(workspace: Workspace, run_id: str) -> pd.DataFrame | None:
    """Return a run's answers, a row for each test image, or None if it has kept none.

    The columns are those of `_COLUMNS`, and ``group`` if the images have groups.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = artifacts.download_artifact(workspace, run_id, OF_TEST, Path(folder))
            there = parquet.read_schema(file).names
            # The probabilities, a column for each class, are not needed.
            columns = [name for name in (*_COLUMNS, "group") if name in there]
            table = pd.read_parquet(file, columns=columns)
        except (UserError, ValueError, OSError):
            # The run has no such file, or it is damaged.
            return None
    if not set(_COLUMNS) <= set(table.columns) or table["path"].duplicated().any():
        return None
    return table.sort_values("path", ignore_index=True)


def _merge(
    runs: Sequence[Mapping[str, Any]],
    answers: Sequence[pd.DataFrame | None],
    paths: Sequence[str] | None,
) -> TestResults | None:
    """Return the results of a configuration.

    They hold its answers only if those of all its runs are known, on the images of `paths`.
    """
    accuracies = [float(run["test_accuracy"]) for run in runs]
    correct: list[NDArray[np.bool_]] = []
    for table in answers:
        if table is not None and table["path"].tolist() == paths:
            correct.append((table["true"] == table["predicted"]).to_numpy())
    if len(correct) == len(runs):
        return TestResults(accuracies, len(correct[0]), np.array(correct), _groups(answers[0]))
    num_images = runs[0].get("test_images")
    if not num_images:
        return None
    return TestResults(accuracies, int(num_images))


def _groups(table: pd.DataFrame | None) -> NDArray[np.int64] | None:
    """Return a number for the group of each image; None if they have none."""
    if table is None or "group" not in table.columns:
        return None
    return number_groups(table["group"].astype(str).tolist())


def describe_verdicts(verdicts: Mapping[str, Verdict]) -> list[str]:
    """Say by what the configurations are compared, in one line; nothing without others."""
    differences = [verdict.difference for verdict in verdicts.values()]
    known = [difference for difference in differences if difference is not None]
    methods = dict.fromkeys(_METHODS[difference.method] for difference in known)
    if not methods:
        return []
    return [
        f"Test accuracy is compared with the leader's {' or '.join(methods)}, at 95%, "
        "corrected for the number of configurations (Holm)."
    ]
