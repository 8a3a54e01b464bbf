"""The way from a run's log to a tracking server: by a journal on disk, which a thread sends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from pipeline.files import lock
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.entries import Entry
from pipeline.tracking.journal import Journal, open_journal
from pipeline.tracking.patience import few_retries
from pipeline.tracking.sending import sender_of
from pipeline.tracking.transport import Guard, always
from pipeline.tracking.workspace import Workspace


def open_run_journal(
    workspace: Workspace, uid: str, breaks: bool = False
) -> tuple[Journal, ExitStack]:
    """Open the journal of a run and take its lock, so that no other process sends it.

    Args:
        workspace: The open store, a server.
        uid: The run's uid, which names the journal.
        breaks: Take the lock from a process that gives no sign of life.

    Returns:
        The journal, and what releases it.

    Raises:
        InUse: Another process has it.
    """
    workspace.journals.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        held.enter_context(_lock_journal(workspace, uid, breaks))
        journal = open_journal(workspace.journals, uid)
        return journal, held.pop_all()
    raise AssertionError


def need_not_being_sent(workspace: Workspace, uid: str) -> None:
    """Check that no other process of this machine still sends what a run has logged.

    Raises:
        InUse: One does, so that the server may not know the run yet.
    """
    if not workspace.is_server or not (workspace.journals / uid).is_dir():
        return
    if not sender_of(workspace).has_given_up(uid):
        with _lock_journal(workspace, uid):
            pass


def _lock_journal(
    workspace: Workspace, uid: str, breaks: bool = False
) -> AbstractContextManager[None]:
    refusal = f"what run {uid} has logged is being sent by another process on this machine"
    return lock(workspace.journals / uid, refusal, breaks)


class Journalled:
    """A transport by a journal on disk, which a thread of this process sends.

    Args:
        workspace: The open store, a server.
        uid: The run's uid, which names the journal.
        guard: Called before each write, and before anything is sent.
        takes_over: Whether to take the journal from a process that gives no sign of life.
    """

    def __init__(
        self, workspace: Workspace, uid: str, guard: Guard = always, takes_over: bool = False
    ) -> None:
        self._workspace = workspace
        self._guard = guard
        self._takes_over = takes_over
        self._sender = sender_of(workspace)
        self._uid = uid

    @property
    def run_id(self) -> str:
        return self._delivery.run_id

    def begin(self, entry: Entry, needs_id: bool) -> None:
        self._guard()
        self._journal, held = open_run_journal(self._workspace, self._uid, self._takes_over)
        is_new = not self._journal.first
        with held:
            self._journal.append(entry)
            self._journal.beat()
            self._delivery = Delivery(self._workspace, self._journal)
            if needs_id:
                self._begin_now(is_new)
            self._sender.add(self._delivery, held.pop_all(), self._guard)

    def _begin_now(self, is_new: bool) -> None:
        """Begin the run on the server before anything is built on it.

        Without a server nothing is begun, and a journal that is new is removed.
        """
        try:
            with few_retries():
                while self._delivery.send_next():
                    pass
        except BaseException:
            if is_new:
                self._journal.remove()
            raise

    def add(self, entry: Entry, contents: Mapping[str, Path] | None = None) -> None:
        self._guard()
        self._journal.append(entry, contents)
        self._sender.notify()

    def end(self, entry: Entry) -> None:
        self._guard()
        self._journal.beat()
        self.add(entry)

    def abandon(self) -> None:
        self._sender.forget(self._delivery)

    def tell_id(self, on_id: Callable[[str], None]) -> None:
        self._delivery.tell_id(on_id)
