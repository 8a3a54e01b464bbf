"""Train one configuration as one run."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from pipeline import models
from pipeline.config import Configuration
from pipeline.data.loader import Images, Loader
from pipeline.data.prepared import Prepared
from pipeline.data.transforms import Preprocessing, build_augmentation
from pipeline.errors import LossNotFinite, TrainingFailed, UserError
from pipeline.identity import config_hash
from pipeline.jobs.features import with_features
from pipeline.jobs.numerics import chosen
from pipeline.jobs.prepare import log_dataset, log_report
from pipeline.jobs.training_log import FlagsLog, MetricsLog, log_outcome, log_watched, logged_epochs, majority_of
from pipeline.report.console import TrainingProgress
from pipeline.tracking import find, names, registry, transfer
from pipeline.tracking.run import Pruned, RunLog, TrackedRun
from pipeline.tracking.store import Workspace
from pipeline.training.callback import Callback
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.device import resolve_device, use_deterministic_kernels
from pipeline.training.diagnostics import Diagnostics
from pipeline.training.fit import Fitted, Setting, fit, score
from pipeline.training.imbalance import balanced_probabilities
from pipeline.training.numerics import Choice
from pipeline.training.watch import Watch
from pipeline.weights import load_state

TENSORBOARD = "tensorboard"


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
        """Return the configuration with DEFAULT and aliases replaced by what they stand for."""
        return self.configuration.model_copy(update={"model": transfer.recorded(self.configuration.model, self.origin)})


@dataclass(frozen=True)
class Placement:
    """Where a training stands among the runs.

    Attributes:
        name: Of the run.
        parent: Run id of its study, or empty.
        tags: Of its study.
        export: Log the trained network as LoggedModel ``model``: takes seconds.
        run_id: An interrupted run to go on with, or empty.
        single: It is no part of a study: it may take the run that ``mlflow run`` has made, and has the report on the images itself.
        on_run: Told the run id before training starts.
    """

    name: str
    parent: str = ""
    tags: Mapping[str, str] | None = None
    export: bool = False
    run_id: str = ""
    single: bool = False
    on_run: Callable[[str], None] = lambda run_id: None


class Outcome(NamedTuple):
    """What a training has come to.

    Attributes:
        run_id: Of its run.
        accuracy: On the validation images, of the best epoch.
        score: By which it ranks: the higher the better.
    """

    run_id: str
    accuracy: float
    score: float


def reusable(workspace: Workspace, job: Job) -> find.Row | None:
    """Return the complete training of the same identity, if there is one: it is not repeated."""
    return find.complete_training(workspace, job.config_hash, job.seed, job.prepared.fold, job.prepared.digest)


def train(workspace: Workspace, job: Job, placement: Placement, callbacks: Sequence[Callback] = ()) -> Outcome:
    """Train, and log everything to one run; a run that was interrupted goes on where its last checkpoint is.

    Args:
        workspace: The open store.
        job: Configuration and images.
        placement: The run's name and parent, or the run to go on with.
        callbacks: Further ones; one that raises `Pruned` ends the run pruned.

    Raises:
        TrainingFailed: The loss is not finite.
        Pruned: A callback gave the training up.
    """
    tags = {names.CONFIG_HASH: job.config_hash, names.DATA_DIGEST: job.prepared.digest, **(placement.tags or {})}
    identity = {"run_id": placement.run_id, "parent": placement.parent, "tags": tags, "single": placement.single and not placement.run_id}
    with (
        tempfile.TemporaryDirectory() as temporary,
        TrackedRun(workspace, "train", placement.name, **identity) as run,  # type: ignore[arg-type]
        TrainingProgress(placement.name) as progress,
    ):
        placement.on_run(run.id)
        kept = workspace.checkpoints / run.uid
        kept.mkdir(parents=True, exist_ok=True)
        setting = _setting(job, kept)
        setting = _with_numerics(workspace, run, job, setting, placement)
        if not placement.run_id:
            _log_start(run, job, setting, placement)
        fitted = Fitted()
        try:
            fed = with_features(run, job.configuration, job.origin, job.prepared, setting)
            _fit(run, job, fed, fitted, Path(temporary), [*callbacks, progress])
        except (Pruned, TrainingFailed):
            _log_best(run, setting)
            run.flush()
            shutil.rmtree(kept)
            raise
        _log_best(run, setting)
        if placement.export:
            load_state(setting.network.module, setting.checkpoint, job.configuration.model.name)
            registry.log_model(workspace, run.id, setting.network.module, job.prepared.classes, setting.preprocessing)
        run.flush()
        shutil.rmtree(kept)
        return Outcome(run.id, fitted.best["val/accuracy"], score(fitted.best, job.configuration.training.best_metric))


def _fit(run: TrackedRun, job: Job, setting: Setting, fitted: Fitted, folder: Path, callbacks: Sequence[Callback]) -> None:
    """Train with everything logged; what there is at the end of a pruned or failed training is logged too."""
    classes, training = job.prepared.classes, job.configuration.training
    majority = majority_of(job.prepared, len(classes))
    once = {"parameters": models.num_parameters(setting.network.module), "majority_rate": majority}
    log = MetricsLog(run, once, training.best_metric, logged_epochs(run))
    flags = FlagsLog(run, Diagnostics(len(classes), majority, best_metric=training.best_metric))
    watch = Watch(setting.network.module, setting.checkpoint.parent / TENSORBOARD, fitted)
    try:
        fit(job.configuration, setting, [log, flags, watch, *callbacks], fitted)
    except LossNotFinite as error:
        flags.failed(str(error))
        raise
    finally:
        # Not after a signal: it must end within seconds.
        if fitted.history and not isinstance(sys.exception(), KeyboardInterrupt):
            log_outcome(run, fitted, classes, len(setting.train), majority, folder)
            log_watched(run, watch, setting.checkpoint.parent / TENSORBOARD, folder)


def _with_numerics(workspace: Workspace, run: TrackedRun, job: Job, setting: Setting, placement: Placement) -> Setting:
    """Choose number and memory format; a run that goes on keeps what it had."""
    choice = None
    if placement.run_id:
        with tempfile.TemporaryDirectory() as temporary, contextlib.suppress(UserError):
            raw = find.artifact(workspace, run.id, names.NUMERICS, Path(temporary)).read_text(encoding="utf-8")
            choice = Choice.from_dict(json.loads(raw))
    if choice is None:
        study = (placement.tags or {}).get(names.STUDY, "")
        choice = chosen(job.configuration, setting, workspace.checkpoints / names.NUMERICS, study)
        run.json(names.NUMERICS, choice.to_dict())
        run.tag({names.NUMERICS_USED: str(choice.numerics)})
    return replace(setting, numerics=choice.numerics)


def _setting(job: Job, kept: Path) -> Setting:
    configuration, prepared = job.configuration, job.prepared
    data = configuration.data
    device = resolve_device(configuration.training.device)
    if configuration.training.deterministic and device.type == "cuda":
        use_deterministic_kernels()
    torch.manual_seed(job.seed)
    network = models.build(transfer.with_file(configuration.model, job.origin), len(prepared.classes), data.image_size)
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
        device,
        kept / Path(names.CHECKPOINT).name,
        resume=Checkpoints(kept),
    )


def _log_start(run: TrackedRun, job: Job, setting: Setting, placement: Placement) -> None:
    run.configuration(job.resolved())
    run.json(names.CLASSES, job.prepared.classes)
    run.json(names.PREPROCESSING, setting.preprocessing.to_dict())
    log_dataset(run, job.prepared, job.configuration.data)
    own = models.source_file(job.configuration.model)
    if own is not None:
        run.file(own, names.SOURCE)
    if placement.single:
        log_report(run, job.prepared)
    # Before the first step: without these a killed run could not be taken up.
    run.flush()


def _log_best(run: RunLog, setting: Setting) -> None:
    if setting.checkpoint.is_file():
        run.file(setting.checkpoint, str(Path(names.CHECKPOINT).parent))
