"""Train one configuration as one run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch

from pipeline import metrics, models
from pipeline.config import Configuration
from pipeline.data.loader import Images, Loader
from pipeline.data.prepared import Prepared
from pipeline.data.transforms import Preprocessing, build_augmentation
from pipeline.identity import config_hash
from pipeline.jobs.prepare import log_dataset, log_report
from pipeline.report import figures
from pipeline.report.console import TrainingProgress
from pipeline.tracking import find, names, registry
from pipeline.tracking.run import Pruned, RunLog, TrackedRun
from pipeline.tracking.store import Workspace
from pipeline.training.device import resolve_device
from pipeline.training.fit import Callback, Fitted, Setting, fit
from pipeline.training.imbalance import balanced_probabilities
from pipeline.weights import load_state

BEST = {"best/val_accuracy": "val/accuracy", "best/val_loss": "val/loss"}


@dataclass(frozen=True)
class Job:
    """What is to be trained, and what identifies it."""

    configuration: Configuration
    origin: Mapping[str, str]
    prepared: Prepared

    @property
    def config_hash(self) -> str:
        """Of the configuration, weights resolved."""
        return config_hash(self.configuration, self.origin)

    @property
    def seed(self) -> int:
        """Of the training."""
        return self.configuration.training.seed

    def per_fold(self) -> list[Job]:
        """Return the trainings to do: this one, or where ``data.fold`` is all, one for each fold."""
        data = self.configuration.data
        if data.fold != "all":
            return [self]
        return [
            replace(
                self,
                configuration=self.configuration.model_copy(update={"data": data.model_copy(update={"fold": fold})}),
                prepared=self.prepared.with_fold(fold),
            )
            for fold in range(data.folds)
        ]

    def resolved(self) -> Configuration:
        """Return the configuration with DEFAULT replaced by the weights name it stands for."""
        model = self.configuration.model
        if model.weights.startswith("file:"):
            return self.configuration
        return self.configuration.model_copy(update={"model": model.model_copy(update={"weights": self.origin["weights"]})})


@dataclass(frozen=True)
class Placement:
    """Where a training stands among the runs.

    Attributes:
        name: Of the run.
        parent: Run id of its study, or empty.
        tags: Of its study.
        export: Log the trained network as LoggedModel ``model``: takes seconds.
        single: It is no part of a study: it may take the run that ``mlflow run`` has made, and has the report on the images itself.
        on_run: Told the run id before training starts.
    """

    name: str
    parent: str = ""
    tags: Mapping[str, str] | None = None
    export: bool = False
    single: bool = False
    on_run: Callable[[str], None] = lambda run_id: None


class _MetricsLog(Callback):
    def __init__(self, run: RunLog, num_parameters: int, majority_rate: float) -> None:
        self._run, self._once = run, {"parameters": num_parameters, "majority_rate": majority_rate}

    def on_epoch(self, epoch: int, values: dict[str, float], is_best: bool) -> None:
        # The best so far is there while the training runs, and first: the UI's comparison plots a run's first metric.
        # The size is no param, or it would take the place of the schedule among the three that are plotted with it.
        once = self._once if epoch == 1 else {}
        best = {**{name: values[source] for name, source in BEST.items()}, "best/epoch": epoch} if is_best else {}
        self._run.metrics({**best, **values, **once}, epoch)


def reusable(workspace: Workspace, job: Job) -> find.Row | None:
    """Return the complete training of the same identity, if there is one: it is not repeated."""
    return find.complete_training(workspace, job.config_hash, job.seed, job.prepared.fold, job.prepared.digest)


def train(workspace: Workspace, job: Job, placement: Placement, callbacks: Sequence[Callback] = ()) -> tuple[str, float]:
    """Train, and log everything to one run.

    Args:
        workspace: The open store.
        job: Configuration and images.
        placement: The run's name and parent.
        callbacks: Further ones; one that raises `Pruned` ends the run pruned.

    Returns:
        Run id and best validation accuracy.

    Raises:
        TrainingFailed: The loss is not finite.
        Pruned: A callback gave the training up.
    """
    tags = {names.CONFIG_HASH: job.config_hash, names.DATA_DIGEST: job.prepared.digest, **(placement.tags or {})}
    with (
        tempfile.TemporaryDirectory() as temporary,
        TrackedRun(workspace, "train", placement.name, parent=placement.parent, tags=tags, single=placement.single) as run,
        TrainingProgress(placement.name) as progress,
    ):
        placement.on_run(run.id)
        folder = Path(temporary)
        setting = _setting(job, folder / Path(names.CHECKPOINT).name)
        _log_start(run, job, setting)
        if placement.single:
            log_report(run, job.prepared)
        fitted = Fitted()
        log = _MetricsLog(run, models.num_parameters(setting.network.module), _majority_rate(setting))
        try:
            fit(job.configuration, setting, [log, *callbacks, progress], fitted)
        except Pruned:
            _log_outcome(run, job, setting, fitted, folder)
            raise
        _log_outcome(run, job, setting, fitted, folder)
        if placement.export:
            load_state(setting.network.module, setting.checkpoint, job.configuration.model.name)
            registry.log_model(workspace, run.id, setting.network.module, job.prepared.classes, setting.preprocessing)
        return run.id, fitted.best["val/accuracy"]


def _setting(job: Job, checkpoint: Path) -> Setting:
    configuration, prepared = job.configuration, job.prepared
    data = configuration.data
    torch.manual_seed(job.seed)
    network = models.build(configuration.model, len(prepared.classes), data.image_size)
    preprocessing = Preprocessing.of(data, network.normalisation or prepared.normalisation())
    labels, train_positions = prepared.labels(), prepared.positions("train")
    train_images = Images(prepared.images, train_positions, labels, data.image_size, build_augmentation(data), job.seed)
    val_images = Images(prepared.images, prepared.positions("val"), labels, data.image_size)
    probabilities = balanced_probabilities(labels[train_positions]) if configuration.training.sampler == "balanced" else None
    return Setting(
        network,
        preprocessing,
        Loader(train_images, data.batch_size, shuffle_seed=job.seed, workers=data.workers, probabilities=probabilities),
        Loader(val_images, data.batch_size, workers=data.workers),
        resolve_device(configuration.training.device),
        checkpoint,
    )


def _majority_rate(setting: Setting) -> float:
    train_loader, val_loader = setting.train, setting.val
    return metrics.majority_rate(train_loader.labels.numpy(), val_loader.labels.numpy(), train_loader.num_classes)


def _log_start(run: TrackedRun, job: Job, setting: Setting) -> None:
    run.configuration(job.resolved())
    run.json(names.CLASSES, job.prepared.classes)
    run.json(names.PREPROCESSING, setting.preprocessing.to_dict())
    log_dataset(run, job.prepared, job.configuration.data)
    own = models.source_file(job.configuration.model)
    if own is not None:
        run.file(own, names.SOURCE)


def _log_outcome(run: RunLog, job: Job, setting: Setting, fitted: Fitted, folder: Path) -> None:
    run.metrics({"seconds": fitted.seconds})
    curves = folder / "curves"
    curves.mkdir()
    majority = _majority_rate(setting)
    figures.learning_curves(curves / "learning.png", fitted.history, fitted.best_epoch, majority)
    figures.learning_rate(curves / "lr.png", fitted.lrs, len(setting.train))
    run.files(curves, "curves")
    title = (
        f"validation, epoch {fitted.best_epoch}: {fitted.best['val/accuracy']:.2%} of {len(fitted.labels)} images; "
        f"always the largest class: {majority:.1%}"
    )
    log_confusion(run, folder, "val", metrics.confusion(fitted.labels, fitted.logits), job.prepared.classes, title)
    run.file(setting.checkpoint, str(Path(names.CHECKPOINT).parent))


def log_confusion(run: RunLog, folder: Path, split: str, counts: metrics.Labels, classes: list[str], title: str) -> None:
    """Log a confusion matrix as ``confusion_matrix/SPLIT.png`` and ``.csv``: rows true, columns predicted, counts."""
    target = folder / "confusion_matrix"
    target.mkdir(exist_ok=True)
    figures.confusion_matrix(target / f"{split}.png", counts, classes, title)
    pd.DataFrame(counts, index=pd.Index(classes, name="true"), columns=classes).to_csv(target / f"{split}.csv")
    run.files(target, "confusion_matrix")
