"""The thread that sends the journals of this process to the tracking server.

One thread sends the journals of all runs that this process has begun, each in its order. It renews
their heartbeats. If the server is away, it asks every few seconds whether the server answers again;
nothing else in the process waits for it.
"""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, suppress

from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from pipeline.errors import PipelineError, StoreAway, TakenOver
from pipeline.report.console import say
from pipeline.tracking.delivery import Delivery, RunGone, describe
from pipeline.tracking.heartbeat import INTERVAL
from pipeline.tracking.patience import no_retries
from pipeline.tracking.transport import Guard, always
from pipeline.tracking.workspace import JOURNAL, Workspace, explain_store_error, is_away

_PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds between questions to a server that is away; the last one holds from then on."""
_REFUSED_PAUSE = 60.0
"""Seconds until a server that refuses this user is asked again."""
_PATIENCE = 5.0
"""Seconds that a server has to say that it is there."""
_SETTLED = 1.0
"""Seconds in which a server that is there again does what it was asked before."""
_SILENT = 3.0
"""Seconds that a step waits without saying it."""
HOW = "`python -m pipeline reconcile` sends it"


class _Run:
    """A journal that this process sends.

    Args:
        delivery: What sends it.
        held: What is released when the journal is no longer sent: its lock.
        guard: Called before anything is sent; it raises `TakenOver` if another process has the run.
    """

    def __init__(self, delivery: Delivery, held: ExitStack, guard: Guard) -> None:
        self.delivery = delivery
        self.held = held
        self.guard = guard
        self.next_beat = time.monotonic()

    @property
    def is_done(self) -> bool:
        journal = self.delivery.journal
        return journal.is_sent and journal.is_ended


class Sender:
    """Sends the journals of a process; see the module.

    Args:
        workspace: The open store, a server.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._changed = threading.Condition()
        self._runs: list[_Run] = []
        self._given_up: list[_Run] = []
        self._news = False
        self._trouble: PipelineError | None = None
        self._is_refused = False
        self._num_refusals = 0
        self._failures = 0
        self._told = ""
        self._thread: threading.Thread | None = None
        self.left: list[str] = []
        """One line for each run of which the server has refused something for good."""

    @property
    def is_away(self) -> bool:
        """Whether the server did not answer, or refused, when it was asked last."""
        return self._trouble is not None

    def add(self, delivery: Delivery, held: ExitStack, guard: Guard = always) -> None:
        """Send a journal from now on, until all of it is sent and its run has ended.

        Args:
            delivery: What sends it.
            held: What is released when it is no longer sent.
            guard: Called before anything is sent.
        """
        with self._changed:
            self._runs.append(_Run(delivery, held, guard))
            self._news = True
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="sender", daemon=True)
                self._thread.start()

    def forget(self, delivery: Delivery) -> None:
        """Send a journal no longer, and leave it as it is: another process has the run."""
        with self._changed:
            found = [run for run in self._runs if run.delivery is delivery]
            self._runs = [run for run in self._runs if run.delivery is not delivery]
            self._changed.notify_all()
        for run in found:
            run.delivery.journal.close()
            run.held.close()

    def notify(self) -> None:
        """Say that a journal has a further entry."""
        with self._changed:
            self._news = True
            self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        """Wait until all that is in the journals is sent, and show that this waits.

        Raises:
            StoreAway: The server has not taken all in that time. What is left stays in the
                journals.
            PipelineError: The server refuses this user.
        """
        began = time.monotonic()
        refusals = self._num_refusals
        is_shown = False
        self._ask_now()
        while num_unsent := self._count_unsent():
            passed = time.monotonic() - began
            trouble = self._trouble
            reason = f": {trouble}" if trouble else ""
            kept = f"it stays in {self._workspace.home / JOURNAL}; {HOW}"
            if trouble is not None and self._num_refusals > refusals:
                raise PipelineError(f"not all that was logged is sent{reason}; {kept}")
            if passed >= seconds:
                raise StoreAway(f"not all that was logged is sent{reason}; {kept} later")
            if passed > _SILENT and not is_shown:
                is_shown = True
                say(
                    f"waiting up to {seconds:.0f} seconds until the tracking server has all "
                    f"that was logged; unfinished runs: {num_unsent}{reason}"
                )
            with self._changed:
                self._changed.wait(min(0.5, max(seconds - passed, 0.01)))

    def is_sending(self, uid: str) -> bool:
        """Whether the server lacks something of a run, so that it does not know how far it is."""
        with self._changed:
            return any(run.delivery.journal.uid == uid for run in self._runs)

    def has_given_up(self, uid: str) -> bool:
        """Whether the server has refused a run that went on, as one that was deleted there."""
        with self._changed:
            return any(run.delivery.journal.uid == uid for run in self._given_up)

    def settle(self, seconds: float) -> bool:
        """Give the thread some time, unless the server is away; return whether all is sent."""
        ends = time.monotonic() + seconds
        while self._count_unsent() and time.monotonic() < ends and not self.is_away:
            with self._changed:
                self._changed.wait(0.1)
        return not self._count_unsent()

    def abandon(self) -> None:
        """Send nothing any more, and release the journals."""
        with self._changed:
            runs = [*self._runs, *self._given_up]
            self._runs, self._given_up = [], []
            self._news = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            # It ends after the request that it waits for, if that is answered soon.
            thread.join(0.5)
        for run in runs:
            run.held.close()

    def _count_unsent(self) -> int:
        with self._changed:
            return sum(
                not run.delivery.journal.is_sent or run.delivery.journal.is_ended
                for run in self._runs
            )

    def _ask_now(self) -> None:
        with self._changed:
            self._news = True
            if self._is_refused:
                self._trouble, self._is_refused = None, False
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._runs:
                    self._thread = None
                    return
                runs = list(self._runs)
                self._news = False
            if self._trouble is not None:
                self._wait_for_server()
                continue
            num_busy = sum([self._serve(run) for run in runs])
            with self._changed:
                self._changed.notify_all()
                if not num_busy and self._trouble is None:
                    self._changed.wait_for(lambda: self._news, INTERVAL / 4)

    def _serve(self, run: _Run) -> bool:
        """Send the next part of a journal; return whether there may be more."""
        try:
            with no_retries():
                run.guard()
                self._beat(run)
                is_more = run.delivery.send_next()
                if is_more:
                    self._note_success()
                if not is_more and run.is_done:
                    run.delivery.remove_doubles()
        except TakenOver:
            self.forget(run.delivery)
            return True
        except RunGone as gone:
            self._drop(run, str(gone))
            return True
        except Exception as error:
            self._note_trouble(error)
            return False
        if is_more or not run.is_done:
            return is_more
        refused = ""
        for one in run.delivery.journal.sent.refused[:1]:
            refused = f"{describe(one['entry'])}: {one['reason']}"
        self._drop(run, refused)
        return True

    def _beat(self, run: _Run) -> None:
        if time.monotonic() < run.next_beat or run.delivery.journal.is_ended:
            return
        run.next_beat = time.monotonic() + INTERVAL
        run.delivery.journal.beat()
        run.delivery.beat()

    def _drop(self, run: _Run, refused: str) -> None:
        """Send a journal no longer: all is sent, or the rest was refused for good."""
        journal = run.delivery.journal
        with self._changed:
            if run not in self._runs:
                return
            self._runs.remove(run)
        if refused:
            line = (
                f"the tracking server has refused a part of run {run.delivery.run_id}: {refused}; "
                f"it stays in {journal.folder}"
            )
            say(line)
            self.left.append(line)
        if not journal.is_ended:
            # The run still logs to it.
            self._given_up.append(run)
            return
        if refused:
            journal.close()
        else:
            journal.remove()
        run.held.close()

    def _note_trouble(self, error: Exception) -> None:
        self._failures += 1
        self._is_refused = not (isinstance(error, StoreAway) or is_away(error))
        self._num_refusals += self._is_refused
        self._trouble = error if isinstance(error, PipelineError) else explain_store_error(error)
        if self._told != str(self._trouble):
            self._told = str(self._trouble)
            say(f"{self._trouble}; the work goes on, and what it logs is sent later")

    def _note_success(self) -> None:
        self._failures = 0
        if self._told:
            self._told = ""
            say("the tracking server answers again")

    def _wait_for_server(self) -> None:
        """Wait until the server answers, or until it may have changed its mind about the user."""
        while True:
            for run in list(self._runs):
                run.delivery.journal.beat()
            seconds = _PAUSES[min(self._failures, len(_PAUSES)) - 1]
            with self._changed:
                is_over = self._changed.wait_for(
                    lambda: not self._runs or self._trouble is None,
                    _REFUSED_PAUSE if self._is_refused else seconds,
                )
            if is_over or self._is_refused or self._is_there():
                break
            self._failures += 1
        if not is_over and not self._is_refused:
            time.sleep(_SETTLED)
        with self._changed:
            self._trouble, self._is_refused = None, False

    def _is_there(self) -> bool:
        return answers(self._workspace.uri)


def answers(uri: str) -> bool:
    """Whether a tracking server answers within a few seconds."""
    with suppress(Exception):
        answer = http_request(  # type: ignore[no-untyped-call]
            get_default_host_creds(uri),  # type: ignore[no-untyped-call]
            "/health",
            "GET",
            max_retries=0,
            timeout=_PATIENCE,
            raise_on_status=False,
        )
        return bool(answer.status_code < 500)
    return False
