"""The life of one run: it is started, written to, and ended with the true status."""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from mlflow.entities import RunData

from pipeline import signals
from pipeline.background import Background, Task, run_within
from pipeline.errors import Paused, StoreAway, TakenOver, UserError, first_line, may_pass
from pipeline.safe_text import escape_markdown, hide_passwords, make_visible
from pipeline.tracking import names
from pipeline.tracking.entries import Entry
from pipeline.tracking.heartbeat import Beat
from pipeline.tracking.journalled import Journalled
from pipeline.tracking.run_log import TAG_LENGTH, RunLog, metric_entries
from pipeline.tracking.system_metrics import PREFIX, SystemMetrics
from pipeline.tracking.transport import Direct, Guard, always
from pipeline.tracking.workspace import Workspace, is_away


def new_uid() -> str:
    """Return an identity for a run that the store does not know yet."""
    return uuid.uuid4().hex


def uid_of(run_id: str, tags: Mapping[str, str]) -> str:
    """Return the identity that a run was given, or its id if it was given none.

    Raises:
        UserError: The identity is not 32 hex digits. This is checked since it names a folder of
            checkpoints, and anybody may have written the tag.
    """
    uid = tags.get(names.UID, run_id)
    if not names.is_uid(uid):
        raise UserError(
            f"run_id: run {run_id} has {uid!r} for its tag {names.UID}; 32 hex digits are needed, "
            "so it cannot be gone on with"
        )
    return uid


_INTERRUPTING = (KeyboardInterrupt, SystemExit, StoreAway, Paused)
"""What ends a run KILLED: its training can go on."""


class Pruned(Exception):
    """A trial of a search is given up early. Its run ends FINISHED, in state pruned."""


class TrackedRun(RunLog):
    """A run as a context manager: it never stays RUNNING, and never ends FINISHED after an error.

    If the block ends without an error, the run ends FINISHED and complete. `Pruned` ends it
    FINISHED and pruned. `Paused`, a signal, or a store that does not answer, ends it KILLED. Any
    other error ends it FAILED, with the traceback kept as ``traceback.txt``. The error is not
    suppressed.

    Metrics, files, figures and tags are written beside the work, in order, and all of them before
    the run ends. An error of the store is raised by the next write. If the store is a server, they
    are written to a journal on disk (see `pipeline.tracking.journal`), and a thread sends them: the
    server may be away then, and a training has no id before the server has made its run. A
    heartbeat tag tells that the process lives. For a training the use of processor, memory, disk,
    network and NVIDIA's GPUs is logged every ten seconds (``system/…``, a tab of its own in the
    UI).

    Args:
        workspace: The open store.
        step: Value of ``pipeline.step``.
        name: Name of the run in the UI.
        run_id: Id of an existing run that is taken up instead of making one, or empty.
        tags: Further tags; `names.PARENT` nests the run under another one.
        single: Take the run that ``mlflow run`` has made for this process, if there is one.

    Attributes:
        uid: Identity of the run, which is known before the store knows the run.
        before: What the run had logged before it was taken up by its id; None for another run.
        guard: Called before each write. If it raises `TakenOver`, another process has the run:
            nothing more is written to it, and that process ends it. It is set before the run is
            started.
        takes_over: Whether the process that had the run gives no sign of life, but may hold its
            locks. It is set before the run is started.
    """

    def __init__(
        self,
        workspace: Workspace,
        step: str,
        name: str,
        *,
        run_id: str = "",
        tags: Mapping[str, str] | None = None,
        single: bool = False,
    ) -> None:
        self._existing = run_id or (workspace.launched_run if single else "")
        self.uid = ""
        self.before: RunData | None = None
        self._writing = Background()
        self._is_hurried = False
        self._is_withdrawn = False
        self.guard: Guard = always
        self.takes_over = False
        self._has_begun = False
        self._system: SystemMetrics | None = None
        super().__init__(workspace, "")
        self._step = step
        if run_id:
            # A run that is taken up again keeps the name and the identity it was given at first.
            self._name = ""
            self._tags = {names.STATE: names.RUNNING}
            return
        self._name = name
        self._tags = {
            names.STEP: step,
            names.EXPERIMENT: workspace.experiment,
            names.STATE: names.RUNNING,
        }
        self._tags |= dict(tags or {})
        self.uid = self._tags[names.UID] = new_uid()

    def __enter__(self) -> TrackedRun:
        try:
            # A signal between the run's start and this block would leave it RUNNING.
            with signals.delay_signals():
                self._start()
        except BaseException as error:
            if self._has_begun:
                self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def _write(self, task: Task) -> None:
        # After a signal nothing waits for a store that does not answer.
        self._writing.submit(task, patience=1.0 if signals.has_arrived() else None)

    def _log_figure(self, name: str, draw: Callable[[Path], None]) -> None:
        # After a signal the run must end within seconds.
        if not self._is_hurried:
            super()._log_figure(name, draw)

    def flush(self) -> None:
        self._writing.flush()

    def _start(self) -> None:
        is_training = self._step == "train" and names.JOINS not in self._tags
        self._tags[names.HEARTBEAT] = str(Beat.now())
        entry = self._take_up() if self._existing else self._create()
        if self.workspace.is_server:
            self._transport = Journalled(self.workspace, self.uid, self.guard, self.takes_over)
        else:
            self._transport = Direct(self.workspace, guard=self.guard)
        # A training begins without a server. All else asks the server anyway as it begins.
        self._transport.begin(entry, needs_id=not is_training)
        self._has_begun = True
        if is_training:
            self._system = SystemMetrics(self._write_metrics, _next_system_step(self.before))
            self._system.start()  # type: ignore[no-untyped-call]

    def _take_up(self) -> Entry:
        stale: set[str] = set()
        if not self.uid:
            # Read once, before the work begins: later the server may be away.
            self.before = self.client.get_run(self._existing).data
            self.uid = uid_of(self._existing, self.before.tags)
            stale = {names.REASON, names.NOTE, names.RETRY} & self.before.tags.keys()
        return {
            "kind": "take_up",
            "run_id": self._existing,
            "name": self._name,
            "tags": self._tags,
            "stale": sorted(stale),
            **self._place(),
        }

    def _create(self) -> Entry:
        return {
            "kind": "create",
            "name": self._name,
            "tags": {**_find_source_tags(self._step), **self._tags},
            "start_time": int(time.time() * 1000),
            **self._place(),
        }

    def _place(self) -> dict[str, str]:
        """Return where the run belongs, for a process that sends its journal later."""
        return {
            "uri": hide_passwords(self.workspace.uri),
            "experiment": self.workspace.experiment,
            "experiment_id": self.workspace.known_experiment_id,
        }

    def _write_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Write metrics from a thread that must not take the errors of others."""
        with contextlib.suppress(TakenOver):
            for entry in metric_entries(values, step):
                self._transport.add(entry)

    def tell_id(self, on_id: Callable[[str], None]) -> None:
        """Call a function with the run's id: now, or from another thread when it is known."""
        self._transport.tell_id(on_id)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, TakenOver):
            self._leave()
            return
        self._is_hurried = isinstance(error, KeyboardInterrupt)
        # A signal at this moment must not prevent the run's end. It is raised after that.
        with signals.delay_signals():
            if self._is_hurried and error is not None:
                self._end_soon(error)
                return
            try:
                self._writing.close()
            except Exception as unwritten:
                # What could not be written makes the run incomplete. But an error that ended the
                # block says more than this one.
                if error is None or isinstance(error, Pruned | Paused):
                    self._end(unwritten)
                    raise
            self._end(error)

    def _end_soon(self, error: BaseException) -> None:
        """End the run within seconds, if the store allows it.

        What the store does not take, is left to `reconcile`.
        """
        steps: list[Task] = [self._writing.close, lambda: self._end(error)]
        for number, step in enumerate(steps):
            try:
                is_done = run_within(signals.seconds_left() / (len(steps) - number), step)
            except Exception as unwritten:
                # The signal says more than what could not be written. If the store does not answer,
                # nobody expects that all was written.
                is_done = number == 0
                reason = first_line(unwritten)
            else:
                reason = "the store does not answer"
            if not is_done:
                tell_unended(self.id or self.uid, reason)
                return

    def _end(self, error: BaseException | None) -> None:
        # A signal at this moment must not prevent the run's end.
        with signals.delay_signals():
            if self._system is not None:
                self._system.finish()
            self._end_by(error)

    def _leave(self) -> None:
        """Write nothing more to the run, which another process has."""
        with contextlib.suppress(Exception):
            self._writing.close()
        if self._system is not None:
            self._system.finish()
        self._transport.abandon()

    def withdraw(self) -> None:
        """Leave the run to another process that has taken it up, and that will end it."""
        self._is_withdrawn = True

    def _end_by(self, error: BaseException | None) -> None:
        if self._is_withdrawn:
            self._transport.end({"kind": "leave"})
            return
        if error is None:
            self.end(names.COMPLETE)
        elif isinstance(error, Pruned):
            self.end(names.PRUNED, str(error))
        elif isinstance(error, _INTERRUPTING) or is_away(error):
            self.end(names.INTERRUPTED, str(error) or type(error).__name__)
        else:
            try:
                if self._step == "train":
                    self._set_tags({names.RETRY: str(may_pass(error)).lower()})
                if not isinstance(error, UserError):
                    text = "".join(traceback.format_exception(error))
                    self._log_text("traceback.txt", hide_passwords(text))
            finally:
                # The reason why the run fails, such as a full disk, may keep the traceback from
                # being written too.
                self.end(names.FAILED, str(error).strip() or type(error).__name__)

    def end(self, state: str, reason: str = "") -> None:
        """Write state and reason, and end the run with the status that belongs to the state."""
        tags = {names.STATE: state}
        if reason:
            tags[names.REASON] = reason[:TAG_LENGTH]
            tags[names.NOTE] = f"{state}: {escape_markdown(reason)}"[:TAG_LENGTH]
        with signals.delay_signals():
            self._set_tags(tags)
            status = names.STATUS_OF_STATE[state]
            end_time = int(time.time() * 1000)
            self._transport.end({"kind": "end", "status": status, "end_time": end_time})


def _next_system_step(before: RunData | None) -> int:
    """Return the step after the last measurement of the machine that a run has logged."""
    steps = []
    for metric in before._metric_objs if before else []:
        if metric.key.startswith(PREFIX):
            steps.append(metric.step)
    return 1 + max(steps, default=-1)


def tell_unended(run_id: str, reason: str) -> None:
    """Print that a run still says RUNNING although its process ends."""
    shown = make_visible(hide_passwords(reason))
    print(
        f"run {run_id} could not be ended ({shown}); `python -m pipeline reconcile` does it later",
        file=sys.stderr,
    )


@contextmanager
def keep_launched_run(workspace: Workspace, step: str) -> Iterator[None]:
    """Keep the run that ``mlflow run`` has made for a step with results that stand elsewhere.

    If there is no such run, do nothing.
    """
    if not workspace.launched_run:
        yield
        return
    with TrackedRun(workspace, step, step, single=True):
        yield


def adopt_training(workspace: Workspace, run_id: str, study: str) -> None:
    """Make a training that is already complete part of a further study."""
    studies = workspace.client.get_run(run_id).data.tags.get(names.STUDY, "").split(",")
    if study not in studies:
        RunLog(workspace, run_id).tag({names.STUDY: ",".join([*filter(None, studies), study])})


def _find_source_tags(step: str) -> dict[str, str]:
    from mlflow.tracking.context.registry import resolve_tags

    return {**resolve_tags(), "mlflow.source.name": f"python -m pipeline {step}"}
