"""Score one trained network on the test split, into its own run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from pipeline import metrics
from pipeline.config import Data, Evaluated, parse
from pipeline.data.loader import Images, Loader
from pipeline.data.prepared import Prepared
from pipeline.errors import UserError
from pipeline.jobs.check import need_known_images
from pipeline.jobs.cost import BATCH, find_cost
from pipeline.jobs.evaluation_log import EvaluatedRun, log_evaluation
from pipeline.jobs.mistakes import Answering, log_mistakes
from pipeline.jobs.prepare import prepare_as_recorded
from pipeline.jobs.recorded_run import Restored, restore_network
from pipeline.jobs.summary import Summary
from pipeline.natural_order import natural_order
from pipeline.ranking import by_configuration
from pipeline.report.console import say
from pipeline.scores.calibration import error_by_chance, fit_temperature, reliability
from pipeline.scores.evaluation import Evaluation
from pipeline.tracking import names
from pipeline.tracking.run_log import RunLog
from pipeline.tracking.workspace import Workspace
from pipeline.training.device import resolve_device
from pipeline.training.inference import predict_logits

_OF_USER = (
    "ordered",
    "source",
    "root",
    "labels",
    "image_column",
    "label_column",
    "split_column",
    "group_column",
)
"""Fields of data that a user may know better than the run.

They say where images are, which columns their list has, and whether classes are grades.
"""


def evaluate(
    workspace: Workspace,
    run_id: str,
    device: str = "auto",
    data_options: Mapping[str, Any] | None = None,
    shows_images: bool = True,
) -> tuple[dict[str, float], pd.DataFrame]:
    """Evaluate a complete run on the test split of the images it was trained on.

    Args:
        workspace: The open store.
        run_id: Id of a complete training.
        device: The device to compute on; its values are those of ``training.device``.
        data_options: Options on data that the user has given. Those that say where the images are,
            and whether classes are grades, take the place of the run's.
        shows_images: Whether pictures of mistakes are logged, if the run allows it too.

    Returns:
        The metrics logged (``test/accuracy`` …), and precision and recall per class.

    Raises:
        UserError: The run is not complete, or the images have changed since, or neither the run nor
            the user says which images they were.
    """
    workspace.need_writable(*workspace.artifacts)
    restored = restore_network(workspace, run_id)
    given = {name: value for name, value in (data_options or {}).items() if name in _OF_USER}
    data = _choose_images(workspace, restored, run_id, given)
    prepared = _open_images(workspace, restored, run_id, data)
    compute_on = resolve_device(device)
    labels, logits = _compute_logits(restored, data, prepared, "test", compute_on)
    if not np.isfinite(logits).all():
        raise UserError(f"run {run_id} answers some test images with values that are not finite")
    classes = restored.classes
    temperature = restored.temperature
    if temperature is None:
        # A run of an earlier release has fitted none.
        temperature = fit_temperature(*_compute_logits(restored, data, prepared, "val", compute_on))
    order = natural_order(classes)
    grades = np.argsort(order) if data.ordered else None
    evaluation = Evaluation(labels, logits, prepared.groups("test"), grades)
    values = _score(evaluation, temperature)
    train_labels = prepared.labels()[prepared.positions("train")]
    values["test/majority_rate"] = metrics.majority_rate(train_labels, labels, len(classes))
    table = metrics.per_class(labels, logits, classes).iloc[order]
    run = RunLog(workspace, run_id)
    log_evaluation(run, EvaluatedRun(prepared, classes, evaluation, temperature, values), table)
    if shows_images and restored.configuration.tracking.log_images:
        seen = Answering(
            restored.network, restored.preprocessing, data.image_size, prepared, compute_on
        )
        log_mistakes(run, seen, classes, evaluation)
    # Last, so that a run with test metrics has the files too.
    values[names.TEMPERATURE] = temperature
    values[names.TEST_IMAGES] = len(labels)
    values[names.VAL_IMAGES] = len(prepared.positions("val"))
    images = _load_some(restored, data, prepared, compute_on)
    measured_with, cost = find_cost(workspace, restored.network, restored.configuration, images)
    run.tag({names.COST: measured_with})
    run.metrics({**values, **cost})
    return values, table


def evaluate_runs(
    workspace: Workspace,
    compared: Summary,
    which: Evaluated,
    device: str,
    data_options: Mapping[str, Any],
) -> int:
    """Evaluate the complete runs that are not evaluated yet; return how many were evaluated.

    If only some of them cannot be evaluated, these are named and left out.

    Args:
        workspace: The open store.
        compared: The runs. Their order, and so the best of them, is that of validation alone.
        which: All of them, the repeats of the best configuration, or none.
        device: As for `evaluate`.
        data_options: As for `evaluate`.

    Raises:
        UserError: None of them is or can be evaluated; the message is that of the first one.
    """
    asked: Sequence[Mapping[str, Any]] = [] if which == "none" else compared.ranked()
    if asked and which == "best":
        asked = by_configuration(asked)[0]
    missing = [row for row in asked if row["test_accuracy"] is None]
    refused: list[UserError] = []
    for number, row in enumerate(missing, start=1):
        say(f"evaluating {row['run_name']} ({number} of {len(missing)})")
        try:
            evaluate(workspace, row["run_id"], device, data_options, compared.shows_images)
        except UserError as error:
            refused.append(error)
            say(f"  left out: {error.message}")
    if missing and len(refused) == len(missing) == len(asked):
        raise refused[0]
    return len(missing) - len(refused)


def _choose_images(
    workspace: Workspace, restored: Restored, run_id: str, given: Mapping[str, Any]
) -> Data:
    """Return which images to evaluate on.

    A run could name any folder of this machine, and have it read and the names of its files logged.
    """
    data = restored.configuration.data
    if not restored.data_digest and "source" not in given:
        raise UserError(
            f"run_id: run {run_id} has no digest of the images it was trained on "
            f"(it names {data.source!r}); give them with --data.source"
        )
    if "source" not in given:
        need_known_images(workspace, data, run_id)
    return parse(Data, {**data.model_dump(mode="json"), **given}, "data") if given else data


def _open_images(workspace: Workspace, restored: Restored, run_id: str, data: Data) -> Prepared:
    """Return the images that a run was trained on, unless they have changed since."""
    digest = restored.data_digest
    prepared = prepare_as_recorded(workspace, data, digest, restored.preprocessing.decoding)
    if digest and prepared.digest != digest:
        raise UserError(
            f"run {run_id} was trained on data {digest[:8]}, "
            f"but {prepared.source} is now {prepared.digest[:8]}: "
            "images, labels or splits have changed"
        )
    return prepared


def _compute_logits(
    restored: Restored, data: Data, prepared: Prepared, split: str, device: torch.device
) -> tuple[metrics.Labels, metrics.Floats]:
    """Return labels (images,) and logits (images, classes) of the images of a split."""
    loader = Loader(_images_of(data, prepared, split), data.batch_size)
    return predict_logits(restored.network.to(device), loader, restored.preprocessing, device)


def _images_of(data: Data, prepared: Prepared, split: str) -> Images:
    positions = prepared.positions(split)
    return Images(prepared.images, positions, prepared.labels(), data.image_size)


def _load_some(
    restored: Restored, data: Data, prepared: Prepared, device: torch.device
) -> torch.Tensor:
    """Return a batch of test images as the network gets them."""
    batches = Loader(_images_of(data, prepared, "test"), BATCH).epoch(0)
    images, _ = next(iter(batches))
    return restored.preprocessing.normalise(images.to(device))


def _score(evaluation: Evaluation, temperature: float) -> dict[str, float]:
    """Return the scores on the test images, the ends of their intervals, and calibration errors.

    A score that has no value, such as kappa where there is only one class, is left out.
    """
    labels, logits = evaluation.labels, evaluation.logits
    scores = {
        **metrics.score(labels, logits),
        **evaluation.scores(),
        "roc_auc": evaluation.roc_auc(),
    }
    for name, (low, high) in evaluation.intervals().items():
        scores[f"{name}_low"] = low
        scores[f"{name}_high"] = high
    before = reliability(labels, logits)
    after = reliability(labels, logits, temperature)
    scores["ece"] = before.error()
    scores["ece_debiased"] = before.debiased_error()
    scores["calibrated_loss"] = metrics.cross_entropy(labels, logits / temperature)
    scores["calibrated_ece"] = after.error()
    scores["ece_by_chance"] = error_by_chance(evaluation.probabilities.max(axis=1))
    scores["calibrated_ece_debiased"] = after.debiased_error()
    return {f"test/{name}": value for name, value in scores.items() if not math.isnan(value)}
