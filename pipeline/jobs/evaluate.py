"""Score one trained network on the test split, into its own run."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pipeline import metrics
from pipeline.config import Data, parse
from pipeline.data.loader import Images, Loader
from pipeline.data.prepared import Prepared
from pipeline.errors import UserError
from pipeline.jobs.check import need_known_images
from pipeline.jobs.prepare import prepare_as_recorded
from pipeline.jobs.recorded_run import Restored, restore_network
from pipeline.jobs.summary import Summary
from pipeline.jobs.training_log import log_confusion
from pipeline.natural_order import natural_order
from pipeline.report.console import say
from pipeline.tracking.run_log import RunLog
from pipeline.tracking.workspace import Workspace
from pipeline.training.device import resolve_device
from pipeline.training.inference import predict_logits

MOST_AS_CSV = 100
"""Classes up to which the predictions are kept as CSV too: with a column for each it becomes large."""
_WHERE = (
    "source",
    "root",
    "labels",
    "image_column",
    "label_column",
    "split_column",
    "group_column",
)
"""Fields of data that say where images are, and where in their list; a user may know better than the run."""


def evaluate(
    workspace: Workspace,
    run_id: str,
    device: str = "auto",
    data_options: Mapping[str, Any] | None = None,
) -> tuple[dict[str, float], pd.DataFrame]:
    """Evaluate a complete run on the test split of the images it was trained on.

    Args:
        workspace: The open store.
        run_id: Of a training.
        device: As ``training.device``.
        data_options: Options on data that the user has given, of which those on where the images are are taken instead of the run's.

    Returns:
        The metrics logged (``test/accuracy`` …), and precision and recall per class.

    Raises:
        UserError: The run is not complete, the images have changed since, or the run does not say which they were and the user neither.
    """
    workspace.need_writable(*workspace.artifacts)
    restored = restore_network(workspace, run_id)
    data = _located(
        workspace,
        restored,
        run_id,
        {name: value for name, value in (data_options or {}).items() if name in _WHERE},
    )
    prepared = prepare_as_recorded(
        workspace, data, restored.data_digest, restored.preprocessing.decoding
    )
    if restored.data_digest and prepared.digest != restored.data_digest:
        raise UserError(
            f"run {run_id} was trained on data {restored.data_digest[:8]}, but {prepared.source} is now {prepared.digest[:8]}: "
            "images, labels or splits have changed"
        )
    labels, logits = _logits(restored, data, prepared, resolve_device(device))
    scores = metrics.score(labels, logits)
    correct = int((logits.argmax(axis=1) == labels).sum())
    low, high = metrics.wilson_interval(correct, len(labels))
    values = {f"test/{name}": value for name, value in scores.items()}
    values |= {
        "test/accuracy_low": low,
        "test/accuracy_high": high,
        "test/ece": metrics.calibration_error(labels, logits),
    }
    train_labels = prepared.labels()[prepared.positions("train")]
    values["test/majority_rate"] = metrics.majority_rate(
        train_labels, labels, len(restored.classes)
    )
    table = metrics.per_class(labels, logits, restored.classes).iloc[
        natural_order(restored.classes)
    ]
    run = RunLog(workspace, run_id)
    with tempfile.TemporaryDirectory() as temporary:
        title = f"test: {scores['accuracy']:.2%} of {len(labels)} images (95% interval {low:.1%} to {high:.1%})"
        title += f"; always the largest class: {values['test/majority_rate']:.1%}"
        log_confusion(run, "test", labels, logits, restored.classes, title)
        test = Path(temporary) / "test"
        test.mkdir()
        table.to_csv(test / "per_class.csv", index=False)
        predictions = _predictions(prepared, restored.classes, labels, logits)
        predictions.to_parquet(test / "predictions.parquet", index=False)
        if len(restored.classes) <= MOST_AS_CSV:
            predictions.to_csv(test / "predictions.csv", index=False)
        run.files(test, "test")
    # Last, so that a run with test metrics has the files too.
    run.metrics(values)
    return values, table


def evaluate_all(
    workspace: Workspace, compared: Summary, device: str, data_options: Mapping[str, Any]
) -> int:
    """Evaluate the complete runs that are not evaluated yet; return how many.

    Raises:
        UserError: None of them can be: what the first one says. Those that cannot be beside others that can are said and left out.
    """
    missing = [row for row in compared.ranked() if row["test_accuracy"] is None]
    refused: list[UserError] = []
    for row in missing:
        say(f"evaluating {row['run_name']}")
        try:
            evaluate(workspace, row["run_id"], device, data_options)
        except UserError as error:
            refused.append(error)
            say(f"  left out: {error.message}")
    if missing and len(refused) == len(missing):
        raise refused[0]
    return len(missing) - len(refused)


def _located(
    workspace: Workspace, restored: Restored, run_id: str, given: Mapping[str, Any]
) -> Data:
    """Return which images to evaluate on.

    A run could name any folder of this machine, and have it read and the names of its files logged.
    """
    data = restored.configuration.data
    if not restored.data_digest and "source" not in given:
        raise UserError(
            f"run_id: run {run_id} has no digest of the images it was trained on (it names {data.source!r}); give them with --data.source"
        )
    if "source" not in given:
        need_known_images(workspace, data, run_id)
    return parse(Data, {**data.model_dump(mode="json"), **given}, "data") if given else data


def _logits(
    restored: Restored, data: Data, prepared: Prepared, device: torch.device
) -> tuple[metrics.Labels, metrics.Floats]:
    images = Images(prepared.images, prepared.positions("test"), prepared.labels(), data.image_size)
    return predict_logits(
        restored.network.to(device), Loader(images, data.batch_size), restored.preprocessing, device
    )


def _predictions(
    prepared: Prepared, classes: list[str], labels: metrics.Labels, logits: metrics.Floats
) -> pd.DataFrame:
    shares = metrics.probabilities(logits)
    paths = prepared.manifest["path"].to_numpy()[prepared.positions("test")]
    columns = {
        "path": paths,
        "true": np.array(classes)[labels],
        "predicted": np.array(classes)[shares.argmax(axis=1)],
    }
    return pd.DataFrame(
        {**columns, **{f"p_{name}": shares[:, number] for number, name in enumerate(classes)}}
    )
