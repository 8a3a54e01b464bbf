"""Train one configuration as one run."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from pipeline import models, ranking
from pipeline.errors import Interrupted, LossNotFinite, TrainingFailed, UserError
from pipeline.files import child_path, remove_child
from pipeline.jobs.frozen_backbone import use_cached_features
from pipeline.jobs.helper_processes import call_helpers
from pipeline.jobs.precision_choice import choose_precision
from pipeline.jobs.prepare import log_dataset, log_report
from pipeline.jobs.recorded_run import load_preprocessing
from pipeline.jobs.training_job import Job, open_job_context
from pipeline.jobs.training_log import (
    FlagsLog,
    build_epoch_log,
    log_events,
    log_outcome,
    log_weight_ridgeline,
    validation_majority_rate,
)
from pipeline.models.state_dicts import load_state
from pipeline.report.console import TrainingProgress
from pipeline.tracking import find_runs, names, registry
from pipeline.tracking.run import Pruned, RunLog, TrackedRun
from pipeline.tracking.workspace import Workspace
from pipeline.training.callback import Callback
from pipeline.training.context import FitResult, TrainingContext
from pipeline.training.diagnostics import Diagnostics
from pipeline.training.distributed import is_peer_lost, join_group
from pipeline.training.fit import fit
from pipeline.training.malloc import clear_frames, release_memory
from pipeline.training.precision import Choice
from pipeline.training.tensorboard import Watch

TENSORBOARD = "tensorboard"


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
        metric: What chose its best epoch (``training.best_metric``).
        value: Of that metric, in the best epoch.
    """

    run_id: str
    metric: str
    value: float

    def __str__(self) -> str:
        return f"best {ranking.title(self.metric)} {ranking.text(self.value, self.metric)}"


def find_same_training(workspace: Workspace, job: Job) -> find_runs.Row | None:
    """Return the complete training of the same identity, if there is one: it is not repeated."""
    return find_runs.find_complete_training(
        workspace, job.config_hash, job.seed, job.prepared.fold, job.prepared.digest
    )


def train(
    workspace: Workspace, job: Job, placement: Placement, callbacks: Sequence[Callback] = ()
) -> Outcome:
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
    workspace.need_writable(workspace.checkpoints, *workspace.artifacts)
    try:
        with contextlib.ExitStack() as ended:
            return _train(workspace, job, placement, callbacks, ended)
    except BaseException as error:
        clear_frames(error)
        raise
    finally:
        release_memory()


def _train(
    workspace: Workspace,
    job: Job,
    placement: Placement,
    callbacks: Sequence[Callback],
    ended: contextlib.ExitStack,
) -> Outcome:
    """Do what `train` does; checkpoints are removed by `ended`, since a kill before the run's end must find them."""
    tags = {
        names.CONFIG_HASH: job.config_hash,
        names.DATA_DIGEST: job.prepared.digest,
        **(placement.tags or {}),
    }
    identity = {
        "run_id": placement.run_id,
        "parent": placement.parent,
        "tags": tags,
        "single": placement.single and not placement.run_id,
    }
    with (
        TrackedRun(workspace, "train", placement.name, **identity) as run,  # type: ignore[arg-type]
        TrainingProgress(placement.name, job.configuration.training.best_metric) as progress,
    ):
        placement.on_run(run.id)
        kept = _kept(workspace, run, placement)
        job = _with_recorded(workspace, job, placement.run_id)
        with open_job_context(job, kept, join_group()) as built:
            setting = _with_numerics(workspace, run, job, built, placement)
            _log_source(run, job)
            if not placement.run_id or not _has_start(run):
                _log_start(run, job, setting, placement)
            call_helpers(job, setting.numerics)
            fitted = FitResult()
            try:
                _fit(
                    run, job, use_cached_features(run, job, setting), fitted, [*callbacks, progress]
                )
            except (Pruned, TrainingFailed) as error:
                _log_best(run, setting)
                run.flush()
                if isinstance(error, Pruned | LossNotFinite):
                    # Another failure may have passed when the training goes on.
                    ended.callback(remove_child, workspace.checkpoints, run.uid)
                raise
            except Exception as error:
                # Other processes would still be in this training.
                setting.group.is_broken = setting.group.size > 1
                if is_peer_lost(error):
                    raise Interrupted("another process of the group has died") from error
                raise
            _log_best(run, setting)
            if placement.export:
                load_state(setting.network.module, setting.checkpoint, job.configuration.model.name)
                registry.log_model(
                    workspace,
                    run.id,
                    setting.network.module,
                    job.prepared.classes,
                    setting.preprocessing,
                )
        run.flush()
        ended.callback(remove_child, workspace.checkpoints, run.uid)
        metric = job.configuration.training.best_metric
        return Outcome(run.id, metric, fitted.best[metric])


def _kept(workspace: Workspace, run: TrackedRun, placement: Placement) -> Path:
    """Return the folder of what a training needs to go on, event files of an earlier life in it."""
    kept = child_path(workspace.checkpoints, run.uid)
    if kept.is_symlink():
        raise UserError(
            f"{kept} is a link; checkpoints are kept in a folder that stands there itself"
        )
    kept.mkdir(parents=True, exist_ok=True)
    if placement.run_id and not (kept / TENSORBOARD).exists():
        # A training that begins anew, its checkpoints gone, writes over them.
        with contextlib.suppress(UserError):
            find_runs.download_artifact(workspace, run.id, TENSORBOARD, kept)
    return kept


def _fit(
    run: TrackedRun,
    job: Job,
    setting: TrainingContext,
    fitted: FitResult,
    callbacks: Sequence[Callback],
) -> None:
    """Train with everything logged; what there is at the end of a pruned or failed training is logged too."""
    classes, training = job.prepared.classes, job.configuration.training
    majority = validation_majority_rate(job.prepared, len(classes))
    once = {"parameters": models.num_parameters(setting.network.module), "majority_rate": majority}
    log = build_epoch_log(run, once, training.best_metric)
    flags = FlagsLog(run, Diagnostics(len(classes), majority, best_metric=training.best_metric))
    watch = Watch(setting.network.module, setting.checkpoint.parent / TENSORBOARD, fitted)
    try:
        fit(job.configuration, setting, [log, flags, watch, *callbacks], fitted)
    except LossNotFinite as error:
        flags.failed(str(error))
        raise
    finally:
        # Its thread and file would stay where a training fails before the first epoch ends.
        watch.close()
        if isinstance(sys.exception(), Pruned | TrainingFailed | None):
            log.conclude()
        events = setting.checkpoint.parent / TENSORBOARD
        if isinstance(sys.exception(), KeyboardInterrupt):
            # No figures: the run must end within seconds, and by the signal, also where the store is away.
            with contextlib.suppress(Exception):
                log_events(run, watch, events)
        elif fitted.history:
            log_events(run, watch, events)
            log_outcome(run, fitted, classes, len(setting.train), majority)
            log_weight_ridgeline(run, watch)


def _with_numerics(
    workspace: Workspace, run: TrackedRun, job: Job, setting: TrainingContext, placement: Placement
) -> TrainingContext:
    """Choose number and memory format; a run that goes on keeps what it had."""
    choice = None
    if placement.run_id:
        with tempfile.TemporaryDirectory() as temporary, contextlib.suppress(UserError):
            raw = find_runs.download_artifact(
                workspace, run.id, names.NUMERICS, Path(temporary)
            ).read_text(encoding="utf-8")
            choice = Choice.from_dict(json.loads(raw))
    if choice is None:
        study = (placement.tags or {}).get(names.STUDY, "")
        choice = choose_precision(
            job.configuration, setting, workspace.checkpoints / names.NUMERICS, study
        )
        run.json(names.NUMERICS, choice.to_dict())
        run.tag({names.NUMERICS_USED: str(choice.numerics)})
    return replace(setting, numerics=choice.numerics)


def _with_recorded(workspace: Workspace, job: Job, run_id: str) -> Job:
    """Have a run that goes on normalise its images as it began, whatever stands beside its weights by now."""
    if not run_id:
        return job
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(UserError):
        return replace(
            job,
            preprocessing=load_preprocessing(
                workspace, run_id, job.configuration.model, Path(folder)
            ),
        )
    return job


def _log_source(run: TrackedRun, job: Job) -> None:
    """Keep the files of one's own network with the run, where it has not all of them: one begun by release 0.1.0 has no neighbours."""
    files = models.source_files(
        job.configuration.model,
        job.origin,
        len(job.prepared.classes),
        job.configuration.data.image_size,
    )
    if {f"{names.SOURCE}/{name}" for name in files} <= set(
        find_runs.list_artifacts(run.workspace, run.id, names.SOURCE) if files else []
    ):
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            file = Path(folder, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        run.files(Path(folder), names.SOURCE)
        run.flush()


def _has_start(run: RunLog) -> bool:
    """Whether all of `_log_start` was done before the run was interrupted."""
    return find_runs.has_artifact(run.workspace, run.id, names.CONFIG)


def _log_start(run: TrackedRun, job: Job, setting: TrainingContext, placement: Placement) -> None:
    run.json(names.CLASSES, job.prepared.classes)
    run.json(names.PREPROCESSING, setting.preprocessing.to_dict())
    log_dataset(run, job.prepared, job.configuration.data)
    if placement.single:
        log_report(run, job.prepared)
    # Last: what tells that the others are there.
    run.configuration(job.resolved(setting.group.size))
    # Before the first step: without these a killed run could not be taken up.
    run.flush()


def _log_best(run: RunLog, setting: TrainingContext) -> None:
    if setting.checkpoint.is_file():
        run.file(setting.checkpoint, str(Path(names.CHECKPOINT).parent))
