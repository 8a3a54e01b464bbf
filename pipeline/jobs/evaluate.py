"""Score one trained network on the test split, into its own run."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pipeline import metrics
from pipeline.data.loader import Images, Loader
from pipeline.data.prepared import Prepared
from pipeline.errors import UserError
from pipeline.jobs.prepare import prepare_images
from pipeline.jobs.restore import Restored, restore
from pipeline.jobs.training_log import log_confusion
from pipeline.tracking.run import RunLog
from pipeline.tracking.store import Workspace
from pipeline.training.device import resolve_device
from pipeline.training.inference import predict_logits


def evaluate(workspace: Workspace, run_id: str, device: str = "auto") -> tuple[dict[str, float], pd.DataFrame]:
    """Evaluate a complete run on the test split of the images it was trained on.

    Args:
        workspace: The open store.
        run_id: Of a training.
        device: As ``training.device``.

    Returns:
        The metrics logged (``test/accuracy`` …), and precision and recall per class.

    Raises:
        UserError: The run is not complete, or the images have changed since.
    """
    workspace.need_writable(*workspace.artifacts)
    restored = restore(workspace, run_id)
    data = restored.configuration.data
    prepared = prepare_images(workspace, data)
    if restored.data_digest and prepared.digest != restored.data_digest:
        raise UserError(
            f"run {run_id} was trained on data {restored.data_digest[:8]}, but {prepared.source} is now {prepared.digest[:8]}: "
            "images, labels or splits have changed"
        )
    labels, logits = _logits(restored, prepared, resolve_device(device))
    scores = metrics.score(labels, logits)
    correct = int((logits.argmax(axis=1) == labels).sum())
    low, high = metrics.wilson_interval(correct, len(labels))
    values = {f"test/{name}": value for name, value in scores.items()}
    values |= {"test/accuracy_low": low, "test/accuracy_high": high, "test/ece": metrics.calibration_error(labels, logits)}
    train_labels = prepared.labels()[prepared.positions("train")]
    values["test/majority_rate"] = metrics.majority_rate(train_labels, labels, len(restored.classes))
    table = metrics.per_class(labels, logits, restored.classes)
    run = RunLog(workspace, run_id)
    with tempfile.TemporaryDirectory() as temporary:
        title = f"test: {scores['accuracy']:.2%} of {len(labels)} images (95% interval {low:.1%} to {high:.1%})"
        title += f"; always the largest class: {values['test/majority_rate']:.1%}"
        log_confusion(run, "test", labels, logits, restored.classes, title)
        test = Path(temporary) / "test"
        test.mkdir()
        table.to_csv(test / "per_class.csv", index=False)
        _predictions(prepared, restored.classes, labels, logits).to_csv(test / "predictions.csv", index=False)
        run.files(test, "test")
    # Last, so that a run with test metrics has the files too.
    run.metrics(values)
    return values, table


def _logits(restored: Restored, prepared: Prepared, device: torch.device) -> tuple[metrics.Labels, metrics.Floats]:
    data = restored.configuration.data
    images = Images(prepared.images, prepared.positions("test"), prepared.labels(), data.image_size)
    return predict_logits(restored.network.to(device), Loader(images, data.batch_size), restored.preprocessing, device)


def _predictions(prepared: Prepared, classes: list[str], labels: metrics.Labels, logits: metrics.Floats) -> pd.DataFrame:
    shares = metrics.probabilities(logits)
    paths = prepared.manifest["path"].to_numpy()[prepared.positions("test")]
    columns = {"path": paths, "true": np.array(classes)[labels], "predicted": np.array(classes)[shares.argmax(axis=1)]}
    return pd.DataFrame({**columns, **{f"p_{name}": shares[:, number] for number, name in enumerate(classes)}})
