"""What a training logs to its run.

Metrics and flags are logged while it runs; figures, also of the weights, at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline import metrics, models
from pipeline.data.prepared import Prepared
from pipeline.errors import LossNotFinite, TrainingFailed
from pipeline.jobs.training_job import Job
from pipeline.natural_order import natural_order
from pipeline.report import confusion_figures, training_figures
from pipeline.report.console import say
from pipeline.report.ridgeline import draw_ridgeline
from pipeline.tracking import find_runs, names
from pipeline.tracking.run_log import RunLog
from pipeline.tracking.tracked_run import Pruned, TrackedRun
from pipeline.training.callback import Callback
from pipeline.training.context import TrainingContext
from pipeline.training.diagnostics import Diagnostics, Flag
from pipeline.training.epoch_log import EpochLog
from pipeline.training.fit_result import FitResult
from pipeline.training.tensorboard import Watch

_OF_EPOCHS = ("train/", "val/", "lr", "epoch_seconds", "images_per_second")


class TrainingLog:
    """Logs a training to its run: each epoch as it ends, figures and tables at its end.

    Args:
        run: The run, which may have epochs of an earlier life already.
        job: What is trained.
        context: What trains it.
        events: Folder of TensorBoard's event files.

    Attributes:
        callbacks: The callbacks that the training calls.
    """

    def __init__(self, run: TrackedRun, job: Job, context: TrainingContext, events: Path) -> None:
        self._run = run
        self._classes = job.prepared.classes
        self._steps_per_epoch = len(context.train)
        self._events = events
        self._majority_rate = validation_majority_rate(job.prepared, len(self._classes))
        metric = job.configuration.training.best_metric
        once = {
            "parameters": models.num_parameters(context.network.module),
            "majority_rate": self._majority_rate,
        }
        diagnostics = Diagnostics(len(self._classes), self._majority_rate, best_metric=metric)
        self._epochs = build_epoch_log(run, once, metric)
        self._flags = FlagsLog(run, diagnostics)
        self._watch = Watch(context.network.module, events)
        self.callbacks: list[Callback] = [self._epochs, self._flags, self._watch]

    def conclude(self, result: FitResult, ended_by: Exception | None = None) -> None:
        """Log what the training has come to.

        Args:
            result: The result with its epochs; it must not change any more.
            ended_by: The error that has ended the training early, or None.
        """
        if isinstance(ended_by, LossNotFinite):
            self._flags.failed(str(ended_by))
        # Else its thread and file would stay if a training fails before the first epoch ends.
        self._watch.close()
        if ended_by is None or isinstance(ended_by, Pruned | TrainingFailed):
            self._epochs.conclude()
        if not result.history:
            return
        self._log_events()
        self._log_figures(result)
        if self._watch.histories:
            draw = partial(draw_ridgeline, histories=self._watch.histories)
            self._run.figure("curves/weights.png", draw)

    def leave(self) -> None:
        """Log what takes no time: a signal ends the run within seconds, perhaps without a store."""
        with suppress(Exception):
            self._watch.close()
            self._log_events()

    def abandon(self) -> None:
        """Log nothing more: another process has the run."""
        with suppress(Exception):
            self._watch.close()

    def _log_events(self) -> None:
        if self._events.is_dir():
            self._run.files(self._events, self._events.name)

    def _log_figures(self, result: FitResult) -> None:
        """Log curves, and the confusion matrix of the best epoch."""
        # Bound here, so that a figure which waits to be drawn does not hold the network.
        majority = self._majority_rate
        steps_per_epoch = self._steps_per_epoch
        self._run.metrics({"seconds": result.seconds})
        self._run.figure(
            "curves/learning.png",
            lambda file: training_figures.draw_learning_curves(
                file, result.history, result.best_epoch, majority
            ),
        )
        self._run.figure(
            "curves/lr.png",
            lambda file: training_figures.draw_learning_rate(file, result.lrs, steps_per_epoch),
        )
        title = (
            f"validation, epoch {result.best_epoch}: {result.best['val/accuracy']:.2%} of "
            f"{len(result.labels)} images; always the largest class: {majority:.1%}"
        )
        log_confusion(self._run, "val", result.labels, result.logits, self._classes, title)


def build_epoch_log(run: TrackedRun, once: Mapping[str, float], best_metric: str) -> EpochLog:
    """Return the callback that logs the epochs of a training to its run.

    Args:
        run: The run, which may have epochs already.
        once: Metrics that are logged with the first epoch.
        best_metric: The metric that chooses the best epoch.
    """
    latest = run.before.metrics if run.before else {}
    known: dict[int, dict[str, float]] = {}
    for name in latest:
        if name.startswith(_OF_EPOCHS):
            for epoch, value in find_runs.metric_history(run.workspace, run.id, name).items():
                known.setdefault(epoch, {})[name] = value
    told = {name: value for name, value in latest.items() if name.startswith("best/")}
    return EpochLog(run.metrics, once, best_metric, known, told)


class FlagsLog(Callback):
    """Prints and tags what is wrong with a training; removes the tag when it is right again."""

    def __init__(self, run: TrackedRun, diagnostics: Diagnostics) -> None:
        self._run = run
        self._diagnostics = diagnostics
        self._epochs = 0
        self._raised: dict[str, str] = {}
        self._predicted: NDArray[np.int64] = np.zeros(0, np.int64)

    def on_start(self, epochs: int, steps_per_epoch: int) -> None:
        self._epochs = epochs

    def on_resume(self, steps: int, history: Sequence[dict[str, float]]) -> None:
        self._diagnostics.resume(history)
        # The run has these flags from before; they may no longer hold.
        tags = self._run.before.tags if self._run.before else {}
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
        """Raise the flag of a training that has ended because its loss is not finite.

        It is not printed: whoever meets the error tells the reason.
        """
        self._set(self._diagnostics.after_failure(reason), prints=False)

    def _set(self, flags: Sequence[Flag], prints: bool = True) -> None:
        now = {flag.name: flag.text for flag in flags}
        for name in self._raised.keys() - now.keys():
            self._run.delete_tag(names.FLAG + name)
        changed = {
            names.FLAG + name: text for name, text in now.items() if self._raised.get(name) != text
        }
        if changed:
            self._run.tag(changed)
        for name in now.keys() - self._raised.keys() if prints else ():
            say(f"    {name}: {now[name]}")
        self._raised = now


def log_confusion(
    run: RunLog,
    split: str,
    labels: metrics.Labels,
    logits: metrics.Floats,
    classes: list[str],
    title: str,
) -> None:
    """Log which classes are taken for which as ``confusion_matrix/SPLIT.png`` and ``.csv``.

    The CSV has a row per true and a column per predicted class. For more than
    `metrics.MOST_IN_MATRIX` classes this would be mostly zeros: then the CSV has a row
    ``true,predicted,count`` for each pair that occurs, the most frequent first, and the figure
    shows the classes that are confused most.

    Args:
        run: The run that is logged to.
        split: Name of the split: ``val`` or ``test``.
        labels: True classes of its images, shape (images,).
        logits: Outputs of the network, shape (images, classes).
        classes: Names of the classes.
        title: Title of the figure.
    """
    draw: Callable[[Path], None]
    if len(classes) <= metrics.MOST_IN_MATRIX:
        counts = metrics.count_confusions(labels, logits)
        draw = partial(
            confusion_figures.draw_confusion_matrix, counts=counts, classes=classes, title=title
        )
        whole = pd.DataFrame(counts, index=pd.Index(classes, name="true"), columns=classes)
        order = natural_order(classes)
        table = whole.iloc[order, order]
    else:
        cells = metrics.list_confusions(labels, logits)
        draw = partial(
            confusion_figures.draw_most_confused, cells=cells, classes=classes, title=title
        )
        named = np.array(classes, dtype=object)
        table = cells.assign(true=named[cells["true"]], predicted=named[cells["predicted"]])
        table = table.set_index("true")
    run.figure(f"confusion_matrix/{split}.png", draw)
    run.text(f"confusion_matrix/{split}.csv", table.to_csv(lineterminator="\n"))


def validation_majority_rate(prepared: Prepared, num_classes: int) -> float:
    """Return the validation accuracy of always answering the largest class in training."""
    labels = prepared.labels()
    train_labels = labels[prepared.positions("train")]
    val_labels = labels[prepared.positions("val")]
    return metrics.majority_rate(train_labels, val_labels, num_classes)
