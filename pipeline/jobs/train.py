"""Train one configuration as one run."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from pipeline import models, ranking
from pipeline.errors import Interrupted, LossNotFinite, Paused, TakenOver, TrainingFailed, UserError
from pipeline.files import child_path, remove_child
from pipeline.jobs.helper_processes import call_helpers, train_in_group
from pipeline.jobs.precision_choice import choose_precision
from pipeline.jobs.predictions_table import log_validation
from pipeline.jobs.prepare import log_dataset, log_report
from pipeline.jobs.recorded_run import load_preprocessing
from pipeline.jobs.same_training import remember_complete
from pipeline.jobs.shared_checkpoints import SharedCheckpoints, fetch_checkpoint
from pipeline.jobs.training_job import Job, open_job_context
from pipeline.jobs.training_log import TrainingLog
from pipeline.models.state_dicts import load_state
from pipeline.report.console import TrainingProgress
from pipeline.scores.calibration import fit_temperature
from pipeline.tracking import artifacts, export, names
from pipeline.tracking.tracked_run import Pruned, TrackedRun
from pipeline.tracking.transport import Guard, always
from pipeline.tracking.workspace import Workspace
from pipeline.training.callback import Callback
from pipeline.training.context import TrainingContext
from pipeline.training.distributed import is_peer_lost, join_group
from pipeline.training.fit_result import FitResult, result_of
from pipeline.training.malloc import clear_frames, release_memory
from pipeline.training.precision import Choice, Numerics

TENSORBOARD = "tensorboard"
"""Folder of the event files, beside the checkpoints and among the artifacts."""


_SETTLES = 30.0
"""Seconds in which a tracking server takes the checkpoint of a training that waits."""


@dataclass(frozen=True)
class Placement:
    """The place of a training among the runs.

    Attributes:
        name: Name of the run.
        parent: Run id of its study's parent, or empty.
        study: Name of its study, or empty.
        place: Number of the trial in its study, from 0; None outside of studies.
        export: Whether the trained network is logged as LoggedModel ``model``, which takes seconds.
        run_id: An interrupted run to go on with, or empty.
        single: Whether the training is no part of a study. It then takes the run that ``mlflow
            run`` has made, if there is one, and has the report on the images itself.
        on_uid: Called with the run's uid: before there is a new run, or when one is taken up.
        on_run: Called with the run id: before training starts, or if a tracking server is away,
            from another thread when it is there again.
        guard: Called before anything is written to the run or its checkpoints; it raises
            `TakenOver` if another process has the training.
        takes_over: Whether the run is taken over from a process that gives no sign of life.
        is_searched: Whether the search drew the configuration, and no person chose it.
        shares_checkpoints: Whether workers on other machines may go on with the training.
    """

    name: str
    parent: str = ""
    study: str = ""
    place: int | None = None
    export: bool = False
    run_id: str = ""
    single: bool = False
    on_uid: Callable[[str], None] = lambda uid: None
    on_run: Callable[[str], None] = lambda run_id: None
    guard: Guard = always
    takes_over: bool = False
    is_searched: bool = False
    shares_checkpoints: bool = False

    def tags(self, data_digest: str) -> dict[str, str]:
        """Return the tags of a run at this place, for the digest of its images."""
        tags = {names.DATA_DIGEST: data_digest}
        if self.parent:
            tags[names.PARENT] = self.parent
        if self.study:
            tags[names.STUDY] = self.study
        if self.place is not None:
            tags[names.TRIAL] = str(self.place)
        if self.is_searched:
            tags[names.SEARCHED] = "true"
        return tags


class Outcome(NamedTuple):
    """What a training has come to.

    Attributes:
        run: Its run, which has ended.
        metric: The metric that chose its best epoch (``training.best_metric``).
        value: Value of that metric in the best epoch.
    """

    run: TrackedRun
    metric: str
    value: float

    @property
    def run_id(self) -> str:
        """Id of its run; empty as long as a tracking server that is away has not made it."""
        return self.run.id

    def __str__(self) -> str:
        return f"best {ranking.title(self.metric)} {ranking.text(self.value, self.metric)}"


class TrackedTraining:
    """One training with everything logged to one run: started, trained, finished.

    A run that was interrupted goes on where its last checkpoint is.

    Args:
        workspace: The open store.
        job: Configuration and images.
        placement: The run's name and parent, or the run to go on with.
        callbacks: Further callbacks; one that raises `Pruned` ends the run pruned, and one that
            raises `Paused` has it go on later.
    """

    # Network, images and logs hang on this object alone, and not on a frame: so their memory can be
    # given back before an error that keeps its frames goes further.
    _context: TrainingContext
    _log: TrainingLog

    def __init__(
        self,
        workspace: Workspace,
        job: Job,
        placement: Placement,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self._workspace = workspace
        self._job = job
        self._placement = placement
        self._callbacks = list(callbacks)

    def run(self) -> Outcome:
        """Train.

        Raises:
            TrainingFailed: The loss is not finite, or memory does not suffice.
            Pruned: A callback gave the training up.
            Paused: A callback has the training wait.
            Interrupted: Another process of the group has died.
        """
        workspace = self._workspace
        workspace.need_writable(workspace.checkpoints, *workspace.artifacts)
        try:
            # `after_run` removes the checkpoints when the run has ended: after a kill before that
            # the training needs them.
            with (
                contextlib.ExitStack() as after_run,
                self._open_run() as run,
                self._progress() as progress,
                contextlib.ExitStack() as opened,
            ):
                self._start(run, opened)
                call_helpers(self._job, self._context.numerics)
                try:
                    result = train_in_group(
                        self._job,
                        self._context,
                        run,
                        [*self._log.callbacks, *self._callbacks, progress],
                    )
                except Exception as error:
                    self._finish_early(run, error, after_run)
                    if is_peer_lost(error):
                        raise Interrupted("another process of the group has died") from error
                    raise
                except BaseException:
                    self._log.leave()
                    raise
                outcome = self._finish(run, result, after_run)
            remember_complete(workspace, self._job, outcome, self._placement.study)
            return outcome
        except BaseException as error:
            clear_frames(error)
            raise
        finally:
            # See above: what hangs on this object goes.
            vars(self).clear()
            release_memory()

    def _open_run(self) -> TrackedRun:
        placement = self._placement
        tags = placement.tags(self._job.prepared.digest)
        tags[names.CONFIG_HASH] = self._job.config_hash
        run = TrackedRun(
            self._workspace,
            "train",
            placement.name,
            run_id=placement.run_id,
            tags=tags,
            single=placement.single and not placement.run_id,
        )
        run.guard = placement.guard
        run.takes_over = placement.takes_over
        if run.uid:
            # Whoever is killed as the run begins leaves one that can be found.
            placement.guard()
            placement.on_uid(run.uid)
        return run

    def _progress(self) -> TrainingProgress:
        metric = self._job.configuration.training.best_metric
        return TrainingProgress(self._placement.name, metric)

    def _start(self, run: TrackedRun, opened: contextlib.ExitStack) -> None:
        """Build all that the training needs, and log what is known before its first step."""
        placement = self._placement
        if placement.run_id:
            placement.on_uid(run.uid)
        run.tell_id(placement.on_run)
        folder = self._make_folder(run)
        if placement.run_id:
            self._job = _keep_preprocessing(self._workspace, self._job, placement.run_id)
        context = opened.enter_context(open_job_context(self._job, folder, join_group()))
        numerics = self._choose_numerics(run, context)
        self._context = replace(context, numerics=numerics, guard=placement.guard)
        if placement.shares_checkpoints and context.resume is not None:
            seconds = self._job.configuration.training.checkpoint_seconds
            shared = SharedCheckpoints(folder, run, seconds)
            self._context = replace(self._context, resume=shared)
        _log_source(run, self._job)
        if not placement.run_id or not _is_start_logged(run):
            self._log_start(run)
        self._log = TrainingLog(run, self._job, self._context, folder / TENSORBOARD)

    def _make_folder(self, run: TrackedRun) -> Path:
        """Return the folder of what a training needs to go on.

        If the run goes on, it has the event files of the run's earlier life.
        """
        folder = child_path(self._workspace.checkpoints, run.uid)
        if folder.is_symlink():
            raise UserError(
                f"{folder} is a link; checkpoints are kept in a folder that stands there itself"
            )
        folder.mkdir(parents=True, exist_ok=True)
        if self._placement.run_id:
            fetch_checkpoint(run, folder)
        if self._placement.run_id and not (folder / TENSORBOARD).exists():
            # If the checkpoints are gone, the training begins anew and writes over these files.
            with contextlib.suppress(UserError):
                artifacts.download_artifact(self._workspace, run.id, TENSORBOARD, folder)
        return folder

    def _choose_numerics(self, run: TrackedRun, context: TrainingContext) -> Numerics:
        """Choose number format and memory format; a run that goes on keeps what it had."""
        choice = _load_choice(run) if self._placement.run_id else None
        if choice is None:
            file = self._workspace.checkpoints / names.NUMERICS
            study = self._placement.study
            choice = choose_precision(self._job.configuration, context, file, study)
            run.json(names.NUMERICS, choice.to_dict())
            run.tag({names.NUMERICS_USED: str(choice.numerics)})
        return choice.numerics

    def _log_start(self, run: TrackedRun) -> None:
        job = self._job
        run.json(names.CLASSES, job.prepared.classes)
        run.json(names.PREPROCESSING, self._context.preprocessing.to_dict())
        log_dataset(run, job.prepared, job.configuration.data)
        if self._placement.single:
            log_report(run, job.prepared)
        # Last: the configuration tells that the others are there.
        run.configuration(job.resolved(self._context.group.size))
        # Before the first step: without these a killed run could not be taken up.
        run.flush()

    def _finish(
        self, run: TrackedRun, result: FitResult, after_run: contextlib.ExitStack
    ) -> Outcome:
        """Log what the training has come to, and export the network if that is wanted."""
        self._log.conclude(result)
        self._log_best(run)
        log_validation(run, self._job.prepared, result.labels, result.logits)
        temperature = fit_temperature(result.labels, result.logits)
        run.metrics({names.TEMPERATURE: temperature})
        if self._placement.export:
            module = self._context.network.module
            load_state(module, self._context.checkpoint, self._job.configuration.model.name)
            classes = self._job.prepared.classes
            preprocessing = self._context.preprocessing
            export.log_model(run, module, classes, preprocessing, temperature)
        run.flush()
        self._remove_checkpoints(run, after_run, None)
        metric = self._job.configuration.training.best_metric
        return Outcome(run, metric, result.best[metric])

    def _finish_early(
        self, run: TrackedRun, error: Exception, after_run: contextlib.ExitStack
    ) -> None:
        """Log what a training that an error has ended early has come to."""
        if isinstance(error, TakenOver):
            # It may have been raised in the midst of an epoch, in which other processes still are.
            self._context.group.is_broken = self._context.group.size > 1
            self._log.abandon()
            return
        if isinstance(error, Paused):
            self._log.leave()
            if isinstance(self._context.resume, SharedCheckpoints):
                # It may go on on another machine.
                self._context.resume.settle(_SETTLES)
            return
        all_have_ended = isinstance(error, Pruned | TrainingFailed)
        if not all_have_ended:
            # Other processes are still in this training. It is noted first: what has ended the
            # training may make logging fail too.
            self._context.group.is_broken = self._context.group.size > 1
        result = result_of(error)
        if result is not None:
            self._log.conclude(result, error)
        if not all_have_ended:
            return
        self._log_best(run)
        run.flush()
        if isinstance(error, Pruned | LossNotFinite):
            # The cause of another failure may be gone when the training goes on.
            self._remove_checkpoints(run, after_run, error)

    def _remove_checkpoints(
        self, run: TrackedRun, after_run: contextlib.ExitStack, error: Exception | None
    ) -> None:
        """Have the checkpoints removed once the run has ended, by an error or without one.

        If another error has kept the store from noting that end, the training goes on from them.
        """
        folder, uid = self._workspace.checkpoints, run.uid
        resume = self._context.resume

        def remove(
            kind: type[BaseException] | None,
            raised: BaseException | None,
            trace: TracebackType | None,
        ) -> None:
            if raised is error:
                if isinstance(resume, SharedCheckpoints):
                    resume.remove()
                remove_child(folder, uid)

        after_run.push(remove)

    def _log_best(self, run: TrackedRun) -> None:
        if self._context.checkpoint.is_file():
            folder = str(Path(names.CHECKPOINT).parent)
            run.file(self._context.checkpoint, folder, may_link=True)


def _keep_preprocessing(workspace: Workspace, job: Job, run_id: str) -> Job:
    """Return the job of a run that goes on, with the preprocessing with which the run began.

    Whatever stands beside its weights by now does not count.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(UserError):
        model = job.configuration.model
        preprocessing = load_preprocessing(workspace, run_id, model, Path(folder))
        return replace(job, preprocessing=preprocessing)
    return job


def _load_choice(run: TrackedRun) -> Choice | None:
    """Return the number format and memory format that a run has recorded, if it has."""
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(UserError):
        file = artifacts.download_artifact(run.workspace, run.id, names.NUMERICS, Path(folder))
        return Choice.from_dict(json.loads(file.read_text(encoding="utf-8")))
    return None


def _log_source(run: TrackedRun, job: Job) -> None:
    """Log the files of one's own network, unless the run has all of them.

    A run that release 0.1.0 has begun has the network's own file alone, without its neighbours.
    """
    num_classes = len(job.prepared.classes)
    image_size = job.configuration.data.image_size
    files = models.source_files(job.configuration.model, job.origin, num_classes, image_size)
    if not files:
        return
    there: set[str] = set()
    if run.before is not None:
        there = set(artifacts.list_artifacts(run.workspace, run.id, names.SOURCE))
    if all(f"{names.SOURCE}/{name}" in there for name in files):
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            file = Path(folder, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        run.files(Path(folder), names.SOURCE)
        run.flush()


def _is_start_logged(run: TrackedRun) -> bool:
    """Whether all of `_log_start` was done before the run was interrupted."""
    return artifacts.has_artifact(run.workspace, run.id, names.CONFIG)
