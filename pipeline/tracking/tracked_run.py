"""The life of one run: started, written to, ended with the status that is true."""

from __future__ import annotations

import sys
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from pipeline import signals
from pipeline.background import Background, Task, run_within
from pipeline.errors import StoreAway, UserError, first_line, may_pass
from pipeline.safe_text import escape_markdown, hide_passwords, make_visible
from pipeline.tracking import names
from pipeline.tracking.heartbeat import Beat, Heartbeat
from pipeline.tracking.run_log import TAG_LENGTH, RunLog
from pipeline.tracking.workspace import Workspace, is_away


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
                names.REASON: reason[:TAG_LENGTH],
                names.NOTE: f"{state}: {escape_markdown(reason)}"[:TAG_LENGTH],
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


def adopt_training(workspace: Workspace, run_id: str, study: str) -> None:
    """Make a training that is complete already part of a further study."""
    studies = workspace.client.get_run(run_id).data.tags.get(names.STUDY, "").split(",")
    if study not in studies:
        RunLog(workspace, run_id).tag({names.STUDY: ",".join([*filter(None, studies), study])})


def _source_tags(step: str) -> dict[str, str]:
    from mlflow.tracking.context.registry import resolve_tags

    return {**resolve_tags(), "mlflow.source.name": f"python -m pipeline {step}"}
