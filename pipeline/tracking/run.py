"""The life of one run: started, written to, ended with the status that is true."""

from __future__ import annotations

import json
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from pipeline import signals
from pipeline.background import Background, Task, run_within
from pipeline.config import Configuration
from pipeline.errors import StoreAway, UserError, first_line, may_pass
from pipeline.safe_text import escape_markdown, hide_passwords, make_visible
from pipeline.tracking import find_runs, launcher, names
from pipeline.tracking.find_runs import as_param
from pipeline.tracking.heartbeat import Beat, Heartbeat
from pipeline.tracking.workspace import Workspace, database_file, is_away

_PARAM_LENGTH, _TAG_LENGTH = 6000, 8000
_PARAMS_PER_BATCH, _METRICS_PER_BATCH = 100, 1000


def new_uid() -> str:
    """Return an identity for a run, given before the store knows it."""
    return uuid.uuid4().hex


def uid_of(run_id: str, tags: Mapping[str, str]) -> str:
    """Return the identity that a run was given; a run that has none is its own.

    Raises:
        UserError: It is no 32 hex digits. It names a folder of checkpoints, and anybody may have written the tag.
    """
    uid = tags.get(names.UID, run_id)
    if not names.is_uid(uid):
        raise UserError(
            f"run_id: run {run_id} has {uid!r} for its tag {names.UID}; 32 hex digits are needed, so it cannot be gone on with"
        )
    return uid


class Pruned(Exception):
    """A searched trial is given up early; its run ends FINISHED, in state pruned."""


class RunLog:
    """Writes to one run, whose status it leaves alone: for what is found out later, such as test scores.

    Args:
        workspace: The open store.
        run_id: Of an existing run.
    """

    def __init__(self, workspace: Workspace, run_id: str) -> None:
        self.workspace, self.client, self.id = workspace, workspace.client, run_id

    def _write(self, task: Task) -> None:
        """Do what writes to the store; at once, unless a subclass puts it off."""
        task()

    def flush(self) -> None:
        """Wait until all is written; needed before a file that was logged changes or goes."""

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self._write(lambda: self._tag(tags))

    def _tag(self, tags: Mapping[str, str]) -> None:
        # Every user of a server reads them.
        shown = {key: hide_passwords(str(value))[:_TAG_LENGTH] for key, value in tags.items()}
        self.client.log_batch(self.id, tags=[RunTag(key, value) for key, value in shown.items()])

    def params(self, values: Mapping[str, Any]) -> None:
        """Log params; those the run has already (the launcher's) stay as they are."""
        self._write(lambda: self._params(values))

    def delete_tag(self, name: str) -> None:
        """Remove a tag that the run has."""
        self._write(lambda: self.client.delete_tag(self.id, name))

    def _params(self, values: Mapping[str, Any]) -> None:
        present = self.client.get_run(self.id).data.params
        new = [
            Param(key, hide_passwords(as_param(value))[:_PARAM_LENGTH])
            for key, value in values.items()
            if key not in present
        ]
        for start in range(0, len(new), _PARAMS_PER_BATCH):
            self.client.log_batch(self.id, params=new[start : start + _PARAMS_PER_BATCH])

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of one step (an epoch, from 1; 0 for what is known once)."""
        now = int(time.time() * 1000)
        batch = [Metric(key, float(value), now, step) for key, value in values.items()]
        for start in range(0, len(batch), _METRICS_PER_BATCH):
            part = batch[start : start + _METRICS_PER_BATCH]
            self._write(partial(self._log_metrics, part))

    def _log_metrics(self, metrics: Sequence[Metric]) -> None:
        self.client.log_batch(self.id, metrics=metrics)

    def text(self, name: str, content: str) -> None:
        """Log a text file as artifact `name`, such as ``folder/file.txt``."""
        self._write(lambda: self._text(name, content))

    def _text(self, name: str, content: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / Path(name).name
            file.write_text(content, encoding="utf-8")
            self._file(file, str(Path(name).parent))

    def json(self, name: str, content: Any) -> None:
        """Log plain values as a JSON artifact."""
        self.text(name, json.dumps(content, ensure_ascii=False, indent=1))

    def file(self, file: Path, folder: str = "") -> None:
        """Log a file as an artifact in `folder`; it must stay as it is until `flush` or the run's end."""
        self._write(lambda: self._file(file, folder))

    def _file(self, file: Path, folder: str) -> None:
        self.client.log_artifact(self.id, str(file), folder if folder != "." else "")

    def files(self, folder: Path, name: str) -> None:
        """Log all files of a folder as artifacts under `name`; they must stay as they are until `flush` or the run's end."""
        self._write(lambda: self.client.log_artifacts(self.id, str(folder), name))

    def figure(self, name: str, draw: Callable[[Path], None]) -> None:
        """Log a figure as artifact `name`, such as ``folder/file.png``.

        Args:
            name: Of the artifact.
            draw: Writes the figure to a file; what it draws must not change meanwhile.
        """
        self._write(lambda: self._figure(name, draw))

    def _figure(self, name: str, draw: Callable[[Path], None]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / Path(name).name
            draw(file)
            self._file(file, str(Path(name).parent))

    def configuration(self, configuration: Configuration) -> None:
        """Log the configuration as params and, whole, as the artifact that is read back."""
        self.params(configuration.flat())
        self.text(
            names.CONFIG,
            yaml.safe_dump(
                configuration.model_dump(mode="json"), sort_keys=False, allow_unicode=True
            ),
        )

    def dataset(self, name: str, source: str, digest: str, contexts: Sequence[str]) -> None:
        """Log the data as dataset inputs, one per context."""
        dataset = MetaDataset(CodeDatasetSource({"source": source}), name=name, digest=digest)  # type: ignore[abstract]
        inputs = [
            DatasetInput(dataset._to_mlflow_entity(), [InputTag("mlflow.data.context", context)])
            for context in contexts
        ]
        self._write(lambda: self.client.log_inputs(self.id, inputs))


class TrackedRun(RunLog):
    """A run as a context manager: it never stays RUNNING, and never ends FINISHED after an error.

    Leaving the block normally ends it FINISHED and complete; `Pruned` ends it FINISHED and pruned, a
    signal or a store that does not answer KILLED, any other error FAILED with the traceback kept as ``traceback.txt``. The error goes on.

    Metrics, files, figures and tags are written beside the work, in order, and all of them before the run ends; an error of the store is
    raised by what is written next. A heartbeat tag tells that the process lives; of a training, processor, memory, disk, network and
    NVIDIA's GPUs are logged every ten seconds (``system/…``, a tab of its own in the UI).

    Args:
        workspace: The open store.
        step: Value of ``pipeline.step``.
        name: Shown in the UI.
        parent: Run id that this one nests under, or empty.
        run_id: An existing run to take up instead of making one, or empty.
        tags: Further tags.
        single: Take the run that ``mlflow run`` has made for this process, where there is one.
    """

    def __init__(
        self,
        workspace: Workspace,
        step: str,
        name: str,
        *,
        parent: str = "",
        run_id: str = "",
        tags: Mapping[str, str] | None = None,
        single: bool = False,
    ) -> None:
        self._existing = run_id or (workspace.launched_run if single else "")
        self.uid = ""
        self._writing, self._is_hurried, self._is_withdrawn = Background(), False, False
        self._heartbeat: Heartbeat | None = None
        self._system: SystemMetricsMonitor | None = None
        super().__init__(workspace, "")
        self._step, self._name = step, name
        if run_id:
            # Taken up again: it keeps the name and the identity it was given at first.
            self._name = ""
            self._tags = {names.STATE: names.RUNNING}
        else:
            self._tags = {
                names.STEP: step,
                names.EXPERIMENT: workspace.experiment,
                names.STATE: names.RUNNING,
                names.UID: new_uid(),
            }
            self._tags |= {names.PARENT: parent} if parent else {}
            self._tags |= dict(tags or {})

    def __enter__(self) -> TrackedRun:
        try:
            # A signal between the run's start and this block would leave it RUNNING.
            with signals.delay_signals():
                self._start()
        except BaseException as error:
            if self.id:
                self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def _write(self, task: Task) -> None:
        # After a signal nothing waits for a store that does not answer.
        self._writing.submit(task, patience=1.0 if signals.has_arrived() else None)

    def _figure(self, name: str, draw: Callable[[Path], None]) -> None:
        # After a signal the run must end within seconds.
        if not self._is_hurried:
            super()._figure(name, draw)

    def flush(self) -> None:
        self._writing.flush()

    def _start(self) -> None:
        self._tags[names.HEARTBEAT] = str(Beat.now())
        if self._existing:
            before = self.client.get_run(self._existing).data.tags
            self.uid = self._tags.get(names.UID) or uid_of(self._existing, before)
            self.id = self._existing
            self.client.update_run(self.id, status="RUNNING", name=self._name or None)
            self._tag(self._tags)
            for stale in {names.REASON, names.NOTE, names.RETRY} & before.keys():
                self.client.delete_tag(self.id, stale)
        else:
            self.uid = self._tags[names.UID]
            tags = {**_source_tags(self._step), **self._tags}
            self.id = self.client.create_run(
                self.workspace.experiment_id, tags=tags, run_name=self._name
            ).info.run_id
        self._heartbeat = Heartbeat(self.client, self.id)
        if self._step == "train" and names.JOINS not in self._tags:
            self._system = SystemMetricsMonitor(
                self.id, resume_logging=bool(self._existing), tracking_uri=self.workspace.uri
            )  # type: ignore[no-untyped-call]
            self._system.start()  # type: ignore[no-untyped-call]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_hurried = isinstance(error, KeyboardInterrupt)
        # A signal meanwhile must not keep the run from its end; it is raised after that.
        with signals.delay_signals():
            if self._is_hurried and error is not None:
                self._end_soon(error)
                return
            try:
                self._writing.close()
            except Exception as unwritten:
                # What could not be written makes the run incomplete; the error that ended the block says more than this one.
                if error is None or isinstance(error, Pruned):
                    self._end(type(unwritten), unwritten)
                    raise
            self._end(kind, error)

    def _end_soon(self, error: BaseException) -> None:
        """End the run within seconds, as far as the store takes it: what it does not take is left to `reconcile`."""
        steps: list[Task] = [self._writing.close, lambda: self._end(type(error), error)]
        for number, step in enumerate(steps):
            try:
                is_done = run_within(signals.seconds_left() / (len(steps) - number), step)
            except Exception as unwritten:
                # The signal says more than what could not be written; of a store that is away nobody expects that it was.
                is_done = number == 0
                reason = first_line(unwritten)
            else:
                reason = "the store does not answer"
            if not is_done:
                tell_unended(self.id, reason)
                return

    def _end(self, kind: type[BaseException] | None, error: BaseException | None) -> None:
        # A signal meanwhile must not keep the run from its end.
        with signals.delay_signals():
            if self._system is not None:
                self._system.finish()  # type: ignore[no-untyped-call]
            if self._heartbeat is not None:
                self._heartbeat.stop()
            self._end_by(error)

    def withdraw(self) -> None:
        """Leave the run to another process that has taken it up: its end, too, is the other's."""
        self._is_withdrawn = True

    def _end_by(self, error: BaseException | None) -> None:
        if self._is_withdrawn:
            return
        if error is None:
            self.end(names.COMPLETE)
        elif isinstance(error, Pruned):
            self.end(names.PRUNED, str(error))
        elif isinstance(error, KeyboardInterrupt | SystemExit | StoreAway) or is_away(error):
            self.end(names.INTERRUPTED, str(error) or type(error).__name__)
        else:
            try:
                if self._step == "train":
                    self._tag({names.RETRY: str(may_pass(error)).lower()})
                if not isinstance(error, UserError):
                    self._text(
                        "traceback.txt",
                        hide_passwords("".join(traceback.format_exception(error))),
                    )
            finally:
                # What has failed the run, such as a full disk, may fail the traceback too.
                self.end(names.FAILED, str(error).strip() or type(error).__name__)

    def end(self, state: str, reason: str = "") -> None:
        """Write state and reason, and end the run with the status that belongs to the state."""
        tags = {names.STATE: state} | (
            {
                names.REASON: reason[:_TAG_LENGTH],
                names.NOTE: f"{state}: {escape_markdown(reason)}"[:_TAG_LENGTH],
            }
            if reason
            else {}
        )
        with signals.delay_signals():
            self._tag(tags)
            self.client.set_terminated(self.id, names.STATUS_OF_STATE[state])


def tell_unended(run_id: str, reason: str) -> None:
    """Say that a run still says RUNNING, though its process ends."""
    shown = make_visible(hide_passwords(reason))
    print(
        f"run {run_id} could not be ended ({shown}); `python -m pipeline reconcile` does it later",
        file=sys.stderr,
    )


@contextmanager
def keep_launched_run(workspace: Workspace, step: str) -> Iterator[None]:
    """Keep the run that ``mlflow run`` has made for a step whose results go elsewhere; without one do nothing."""
    if not workspace.launched_run:
        yield
        return
    with TrackedRun(workspace, step, step, single=True):
        yield


def is_alive(tags: Mapping[str, str]) -> bool:
    """Whether the process of a run still works on it, as far as its heartbeat tells."""
    beat = Beat.of(tags)
    return beat is not None and tags.get(names.STATE) == names.RUNNING and beat.lives


def end_abandoned(workspace: Workspace, run_id: str) -> bool:
    """End a run whose process died without ending it, at its last beat; return whether it was one."""
    run = (
        workspace.client.get_run(run_id)
        if run_id and find_runs.get_lifecycle(workspace, run_id)
        else None
    )
    if (
        run is None
        or run.info.status != "RUNNING"
        or run.info.lifecycle_stage != "active"
        or is_alive(run.data.tags)
    ):
        return False
    beat = Beat.of(run.data.tags)
    reason = "its process died" + (f" (process {beat.process_id} on {beat.host})" if beat else "")
    if launcher.has_never_begun(run, database_file(workspace.uri)):
        reason = "mlflow run has ended without starting it: it could not build the environment, or was killed"
    RunLog(workspace, run_id).tag(
        {
            names.STATE: names.INTERRUPTED,
            names.REASON: reason,
            names.NOTE: f"{names.INTERRUPTED}: {reason}",
        }
    )
    workspace.client.set_terminated(
        run_id, names.STATUS_OF_STATE[names.INTERRUPTED], int(beat.time * 1000) if beat else None
    )
    return True


def adopt_training(workspace: Workspace, run_id: str, study: str) -> None:
    """Make a training that is complete already part of a further study."""
    studies = workspace.client.get_run(run_id).data.tags.get(names.STUDY, "").split(",")
    if study not in studies:
        RunLog(workspace, run_id).tag({names.STUDY: ",".join([*filter(None, studies), study])})


def _source_tags(step: str) -> dict[str, str]:
    from mlflow.tracking.context.registry import resolve_tags

    return {**resolve_tags(), "mlflow.source.name": f"python -m pipeline {step}"}
