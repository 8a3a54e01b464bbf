"""What an evaluation leaves in its run: tables and pictures of the answers to the test images."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import metrics
from pipeline.data.prepared import Prepared
from pipeline.data.sources.csv_file import load_further_columns
from pipeline.errors import UserError
from pipeline.jobs.predictions_table import tabulate_predictions
from pipeline.jobs.training_log import log_confusion
from pipeline.report import evaluation_figures
from pipeline.scores.calibration import reliability
from pipeline.scores.evaluation import Evaluation
from pipeline.scores.intervals import LEAST_GROUPS
from pipeline.scores.slices import slice_accuracy
from pipeline.tracking.run_log import RunLog

MOST_AS_CSV = 100
"""Number of classes up to which the predictions are kept as CSV too.

The table has a column for each class, so that of more classes it becomes large.
"""
MOST_CONFUSED = 100
"""Pairs of classes that are listed, the most often confused first."""
_CSV = "csv:"


@dataclass(frozen=True)
class EvaluatedRun:
    """The answers of a run to the test images.

    Attributes:
        prepared: The images.
        classes: Names of the classes, in the order of the network's outputs.
        evaluation: The answers.
        temperature: What logits are divided by.
        values: The metrics that are logged.
    """

    prepared: Prepared
    classes: list[str]
    evaluation: Evaluation
    temperature: float
    values: Mapping[str, float]


def log_evaluation(run: RunLog, done: EvaluatedRun, per_class: pd.DataFrame) -> None:
    """Log the answers of a run as tables, confusion matrix and curves.

    Args:
        run: The run.
        done: Its answers.
        per_class: Precision and recall of each class.
    """
    evaluation, classes = done.evaluation, done.classes
    labels, logits = evaluation.labels, evaluation.logits
    log_confusion(run, "test", labels, logits, classes, _describe(done.values, len(labels)))
    with tempfile.TemporaryDirectory() as temporary:
        test = Path(temporary) / "test"
        test.mkdir()
        per_class.to_csv(test / "per_class.csv", index=False)
        _tabulate_confused(done).to_csv(test / "most_confused.csv", index=False)
        slices = _find_slices(done)
        if len(slices):
            slices.to_csv(test / "slices.csv", index=False)
        predictions = tabulate_predictions(
            done.prepared, "test", labels, evaluation.probabilities, classes
        )
        predictions.to_parquet(test / "predictions.parquet", index=False)
        if len(classes) <= MOST_AS_CSV:
            predictions.to_csv(test / "predictions.csv", index=False)
        run.files(test, "test")
    before = reliability(labels, logits)
    after = reliability(labels, logits, done.temperature)
    run.figure(
        "test/reliability.png",
        partial(
            evaluation_figures.draw_reliability,
            before=before,
            after=after,
            temperature=done.temperature,
        ),
    )
    run.figure(
        "test/roc.png",
        partial(
            evaluation_figures.draw_roc_and_precision,
            labels=labels,
            probabilities=evaluation.probabilities,
            classes=classes,
            areas=evaluation.class_areas(),
        ),
    )


def _describe(values: Mapping[str, float], num_images: int) -> str:
    interval = f"fewer than {LEAST_GROUPS} groups: no interval"
    if "test/accuracy_low" in values:
        low, high = values["test/accuracy_low"], values["test/accuracy_high"]
        interval = f"95% interval {low:.1%} to {high:.1%}"
    return (
        f"test: {values['test/accuracy']:.2%} of {num_images} images ({interval}); "
        f"always the largest class: {values['test/majority_rate']:.1%}"
    )


def _tabulate_confused(done: EvaluatedRun) -> pd.DataFrame:
    """Return the pairs of a true and another predicted class, the most frequent first.

    ``share`` is the share of the true class's images.
    """
    evaluation = done.evaluation
    cells = metrics.list_confusions(evaluation.labels, evaluation.logits)
    wrong = cells[cells["true"] != cells["predicted"]].head(MOST_CONFUSED)
    number_of = np.bincount(evaluation.labels, minlength=len(done.classes))
    named = np.array(done.classes, dtype=object)
    return pd.DataFrame(
        {
            "true": named[wrong["true"]],
            "predicted": named[wrong["predicted"]],
            "images": wrong["count"].to_numpy(),
            "share": wrong["count"].to_numpy() / number_of[wrong["true"]],
        }
    )


def _find_slices(done: EvaluatedRun) -> pd.DataFrame:
    """Return the accuracy by group, and by each further column of the list of images."""
    prepared = done.prepared
    manifest = prepared.manifest.iloc[prepared.positions("test")]
    columns = {}
    if done.evaluation.groups is not None:
        columns["group"] = manifest["group"]
    source = prepared.data.source
    if source.startswith(_CSV):
        # The list has been read before; that it has been changed since is no reason to fail.
        with suppress(UserError):
            further = load_further_columns(source.removeprefix(_CSV), prepared.data)
            for name, values in further.items():
                # The groups that count are those that the images were split by.
                columns.setdefault(name, manifest["path"].map(values))
    return slice_accuracy(done.evaluation.correct, columns, done.evaluation.groups)
