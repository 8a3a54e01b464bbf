"""The way from a run's log to the store: directly, or by a journal (`tracking.journalled`).

A database is written directly. A server may go away, so what is logged goes to the journal first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from pipeline.tracking.entries import Entry, make_run, write_entry
from pipeline.tracking.heartbeat import Heartbeat
from pipeline.tracking.workspace import Workspace

Guard = Callable[[], None]
"""Called before each write; it raises `TakenOver` if another process has the run."""


def always() -> None:
    """Allow every write."""


class Transport(Protocol):
    """Takes the entries of one run, in their order."""

    @property
    def run_id(self) -> str:
        """Id of the run; empty as long as the store has not made it."""

    def begin(self, entry: Entry, needs_id: bool) -> None:
        """Take the first entry of a run's life, ``create`` or ``take_up``; begin its heartbeat.

        Args:
            entry: The entry.
            needs_id: Whether the run's id must be known when this returns.
        """

    def add(self, entry: Entry, contents: Mapping[str, Path] | None = None) -> None:
        """Take an entry. When this returns, the files of `contents` may change."""

    def end(self, entry: Entry) -> None:
        """Take the last entry, ``end`` or ``leave``; stop the heartbeat."""

    def abandon(self) -> None:
        """Take and send nothing more: another process has the run."""

    def tell_id(self, on_id: Callable[[str], None]) -> None:
        """Call a function with the run's id: now, or from another thread when it is known."""


class Direct:
    """Writes to the store at once.

    Args:
        workspace: The open store.
        run_id: Id of an existing run; empty if `begin` makes the run.
        guard: Called before each write.
    """

    def __init__(self, workspace: Workspace, run_id: str = "", guard: Guard = always) -> None:
        self._workspace = workspace
        self._guard = guard
        self._heartbeat: Heartbeat | None = None
        self.run_id = run_id

    def begin(self, entry: Entry, needs_id: bool) -> None:
        if entry["kind"] == "create":
            self._guard()
            client = self._workspace.client
            self.run_id = make_run(client, self._workspace.experiment_id, entry)
        else:
            self.run_id = entry["run_id"]
            self.add(entry)
        self._heartbeat = Heartbeat(self._workspace.client, self.run_id, self._guard)

    def add(self, entry: Entry, contents: Mapping[str, Path] | None = None) -> None:
        self._guard()
        write_entry(self._workspace, self.run_id, entry, contents or {})

    def end(self, entry: Entry) -> None:
        self.abandon()
        self.add(entry)

    def abandon(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.stop()

    def tell_id(self, on_id: Callable[[str], None]) -> None:
        on_id(self.run_id)
