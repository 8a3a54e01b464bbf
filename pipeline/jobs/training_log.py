"""What a training logs to its run: metrics and flags while it runs, figures and weights at its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline import metrics
from pipeline.data.prepared import Prepared
from pipeline.natural_order import natural_order
from pipeline.report import figures
from pipeline.report.console import say
from pipeline.report.ridgeline import draw_ridgeline
from pipeline.tracking import find_runs, names
from pipeline.tracking.run import RunLog, TrackedRun
from pipeline.training.callback import Callback
from pipeline.training.context import FitResult
from pipeline.training.diagnostics import Diagnostics, Flag
from pipeline.training.epoch_log import EpochLog
from pipeline.training.tensorboard import Watch

_OF_EPOCHS = ("train/", "val/", "lr", "epoch_seconds", "images_per_second")


def build_epoch_log(run: RunLog, once: Mapping[str, float], best_metric: str) -> EpochLog:
    """Return what logs the epochs of a training to its run, which may have some already.

    Args:
        run: The run.
        once: Metrics that are logged with the first epoch.
        best_metric: What chooses the best epoch.
    """
    latest = run.client.get_run(run.id).data.metrics
    known: dict[int, dict[str, float]] = {}
    for name in latest:
        if name.startswith(_OF_EPOCHS):
            for epoch, value in find_runs.metric_history(run.workspace, run.id, name).items():
                known.setdefault(epoch, {})[name] = value
    told = {name: value for name, value in latest.items() if name.startswith("best/")}
    return EpochLog(run.metrics, once, best_metric, known, told)


class FlagsLog(Callback):
    """Says and tags what is wrong with a training, and takes it back when it is no more."""

    def __init__(self, run: TrackedRun, diagnostics: Diagnostics) -> None:
        self._run, self._diagnostics = run, diagnostics
        self._epochs = 0
        self._raised: dict[str, str] = {}
        self._predicted: NDArray[np.int64] = np.zeros(0, np.int64)

    def on_start(self, epochs: int, steps_per_epoch: int) -> None:
        self._epochs = epochs

    def on_resume(self, epoch: int, history: Sequence[dict[str, float]]) -> None:
        self._diagnostics.resume(history)
        # Those that the run carries from before: they may hold no more.
        tags = self._run.client.get_run(self._run.id).data.tags
        self._raised = {
            name.removeprefix(names.FLAG): text
            for name, text in tags.items()
            if name.startswith(names.FLAG)
        }

    def on_validation(
        self, epoch: int, labels: NDArray[np.int64], logits: NDArray[np.float32]
    ) -> None:
        self._predicted = logits.argmax(axis=1)

    def on_epoch(self, epoch: int, values: dict[str, float], is_best: bool) -> None:
        self._set(self._diagnostics.after_epoch(epoch, self._epochs, values, self._predicted))

    def failed(self, reason: str) -> None:
        """Raise the flag of a training that has ended because its loss is not finite."""
        self._set(self._diagnostics.after_failure(reason))

    def _set(self, flags: Sequence[Flag]) -> None:
        now = {flag.name: flag.text for flag in flags}
        for name in self._raised.keys() - now.keys():
            self._run.delete_tag(names.FLAG + name)
        if changed := {name: text for name, text in now.items() if self._raised.get(name) != text}:
            self._run.tag({names.FLAG + name: text for name, text in changed.items()})
        for name in now.keys() - self._raised.keys():
            say(f"    {name}: {now[name]}")
        self._raised = now


def log_outcome(
    run: RunLog, fitted: FitResult, classes: list[str], steps_per_epoch: int, majority_rate: float
) -> None:
    """Log curves, confusion matrix of the best epoch, and how long it took.

    Args:
        run: The run.
        fitted: At least one epoch; it must not change any more.
        classes: Names in the order of the logits.
        steps_per_epoch: Of the training.
        majority_rate: Drawn as the baseline.
    """
    run.metrics({"seconds": fitted.seconds})
    run.figure(
        "curves/learning.png",
        lambda file: figures.draw_learning_curves(
            file, fitted.history, fitted.best_epoch, majority_rate
        ),
    )
    run.figure(
        "curves/lr.png", lambda file: figures.draw_learning_rate(file, fitted.lrs, steps_per_epoch)
    )
    title = (
        f"validation, epoch {fitted.best_epoch}: {fitted.best['val/accuracy']:.2%} of {len(fitted.labels)} images; "
        f"always the largest class: {majority_rate:.1%}"
    )
    log_confusion(run, "val", fitted.labels, fitted.logits, classes, title)


def log_events(run: RunLog, watch: Watch, events: Path) -> None:
    """Log TensorBoard's event files as ``tensorboard/``."""
    watch.close()
    if events.is_dir():
        run.files(events, "tensorboard")


def log_weight_ridgeline(run: RunLog, watch: Watch) -> None:
    """Log the weights over the epochs as ``curves/weights.png``."""
    if watch.histories:
        run.figure("curves/weights.png", lambda file: draw_ridgeline(file, watch.histories))


def log_confusion(
    run: RunLog,
    split: str,
    labels: metrics.Labels,
    logits: metrics.Floats,
    classes: list[str],
    title: str,
) -> None:
    """Log which classes are taken for which as ``confusion_matrix/SPLIT.png`` and ``.csv``.

    The CSV has a row per true and a column per predicted class; of more than `metrics.MOST_IN_MATRIX` classes, which would be mostly
    zeros, a row ``true,predicted,count`` for each pair that occurs, the most frequent first. The figure then shows the classes that
    are confused most.
    """
    draw: Callable[[Path], None]
    if len(classes) <= metrics.MOST_IN_MATRIX:
        counts = metrics.count_confusions(labels, logits)
        draw = partial(figures.draw_confusion_matrix, counts=counts, classes=classes, title=title)
        order = natural_order(classes)
        table = pd.DataFrame(counts, index=pd.Index(classes, name="true"), columns=classes).iloc[
            order, order
        ]
    else:
        cells = metrics.list_confusions(labels, logits)
        draw = partial(figures.draw_most_confused, cells=cells, classes=classes, title=title)
        named = np.array(classes, dtype=object)
        table = cells.assign(
            true=named[cells["true"]], predicted=named[cells["predicted"]]
        ).set_index("true")
    run.figure(f"confusion_matrix/{split}.png", draw)
    run.text(f"confusion_matrix/{split}.csv", table.to_csv(lineterminator="\n"))


def validation_majority_rate(prepared: Prepared, num_classes: int) -> float:
    """Return the validation accuracy of always answering the largest class of the training images."""
    labels = prepared.labels()
    return metrics.majority_rate(
        labels[prepared.positions("train")], labels[prepared.positions("val")], num_classes
    )
