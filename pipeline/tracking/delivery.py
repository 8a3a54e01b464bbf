"""How the journal of one run is sent to the server: in order, and with the effect of once.

Whatever the server may have done before its answer was lost is done again: equal metrics, params
and tags fall together, files are replaced. A run is made once: before each try it is looked for by
its uid, and runs that a late answer has brought beside it are deleted.

What the server refuses is one of three things:

- It is away, or out of order: the same is sent again later (`is_away`).
- It refuses the user, or is no MLflow server (`refuses_all`): nothing can be sent before a person
  changes that.
- It refuses one item: a metric, a param, a tag or a file. The item is put aside in the journal with
  the reason, and what is behind it goes on. Only `reconcile` tries such items again. If the run
  itself is gone, this holds for all that is left of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from operator import attrgetter

from mlflow.entities import Metric, Run, ViewType
from mlflow.exceptions import MlflowException

from pipeline.errors import first_line
from pipeline.safe_text import hide_passwords
from pipeline.tracking import names
from pipeline.tracking.entries import (
    ITEMS,
    MOST_METRICS,
    Entry,
    Item,
    entry_of,
    fit_in_one_call,
    items_of,
    make_run,
    write_entry,
    write_items,
)
from pipeline.tracking.heartbeat import Beat
from pipeline.tracking.journal import Journal, Placed, Sent
from pipeline.tracking.workspace import Workspace, http_status, is_away


class RunGone(Exception):
    """The run was deleted, so that the server takes nothing of it."""


def refuses_all(error: BaseException) -> bool:
    """Whether an error says that the server refuses this user, or is no MLflow server."""
    if isinstance(error, MlflowException):
        is_none = error.error_code == "ENDPOINT_NOT_FOUND"
        if is_none or "not in a valid JSON format" in str(error):
            return True
    return http_status(error) in (401, 403)


class Delivery:
    """Sends one journal.

    Args:
        workspace: The open store, a server.
        journal: The journal. The caller holds its lock.
    """

    def __init__(self, workspace: Workspace, journal: Journal) -> None:
        self._workspace = workspace
        self._client = workspace.client
        self.journal = journal
        self._lock = threading.Lock()
        self._listeners: list[Callable[[str], None]] = []
        if not journal.sent.run_id and journal.first.get("kind") == "take_up":
            self._mark(run_id=journal.first["run_id"])

    @property
    def run_id(self) -> str:
        """Id of the run, or empty if it is not made yet."""
        return self.journal.sent.run_id

    def tell_id(self, on_id: Callable[[str], None]) -> None:
        """Call a function with the run's id, when it is known."""
        with self._lock:
            self._listeners.append(on_id)
        self._tell_id()

    def _tell_id(self) -> None:
        with self._lock:
            listeners = self._listeners if self.run_id else []
            self._listeners = self._listeners[len(listeners) :]
        for on_id in listeners:
            # Who cannot note the id has it in the run's own tags.
            with suppress(Exception):
                on_id(self.run_id)

    def send_next(self) -> bool:
        """Send as much as one call takes; return whether there was anything.

        Raises:
            Exception: The server is away (`is_away`) or refuses this user (`refuses_all`).
            RunGone: The run was deleted.
        """
        batch = self._read_batch()
        if not batch:
            return False
        first = batch[0].entry
        if first["kind"] == "create":
            self._create(first)
        elif first["kind"] in ITEMS:
            items: list[Item] = []
            for placed in batch:
                items += items_of(placed.entry)
            self._send_items(items)
        else:
            self._send_entry(first)
        self._mark(offset=batch[-1].end)
        return True

    def _read_batch(self) -> list[Placed]:
        """Return the next entries that one call takes."""
        batch: list[Placed] = []
        items: list[Item] = []
        for placed in self.journal.read_unsent():
            has_items = placed.entry["kind"] in ITEMS
            if batch and not has_items:
                break
            if has_items:
                items += items_of(placed.entry)
                if batch and not fit_in_one_call(items):
                    break
            batch.append(placed)
            if not has_items or len(items) >= MOST_METRICS:
                break
        return batch

    def _create(self, entry: Entry) -> None:
        if not self.run_id:
            experiment_id = entry["experiment_id"] or self._workspace.experiment_id
            made = self._find_made(experiment_id)
            if not made:
                self._mark(attempts=self.journal.sent.attempts + 1)
                made = [make_run(self._client, experiment_id, entry)]
            self._mark(run_id=made[0])
        self._tell_id()

    def _find_made(self, experiment_id: str) -> list[str]:
        """Return the ids of the runs that have this uid, the deleted ones last."""
        found = self._search_made(experiment_id)
        runs = sorted(found, key=attrgetter("info.lifecycle_stage", "info.run_id"))
        return [str(run.info.run_id) for run in runs]

    def _search_made(self, experiment_id: str) -> list[Run]:
        condition = f"tags.`{names.UID}` = '{self.journal.uid}'"
        return list(self._client.search_runs([experiment_id], condition, ViewType.ALL))

    def remove_doubles(self) -> None:
        """Delete runs that requests have made whose answer was lost, and that came late.

        Such a run has nothing but the tags that it was made with. Anybody may give these to another
        run, which stays.
        """
        if self.journal.sent.attempts < 2:
            return
        experiment_id = str(self._client.get_run(self.run_id).info.experiment_id)
        for double in self._search_made(experiment_id):
            is_other = double.info.run_id != self.run_id
            is_active = double.info.lifecycle_stage == "active"
            is_ours = double.info.start_time == self.journal.first.get("start_time")
            is_empty = not (double.data.metrics or double.data.params)
            if is_other and is_active and is_ours and is_empty:
                self._client.delete_run(double.info.run_id)

    def _send_items(self, items: Sequence[Item]) -> None:
        """Send items; if some are refused, find them by halves, and send the others."""
        try:
            write_items(self._client, self.run_id, items)
        except Exception as error:
            self._raise_unless_refused(error)
            if len(items) == 1:
                self._put_aside(entry_of(items[0]), error)
                return
            half = len(items) // 2
            self._send_items(items[:half])
            self._send_items(items[half:])

    def _send_entry(self, entry: Entry) -> None:
        try:
            self._write(entry)
        except Exception as error:
            self._raise_unless_refused(error)
            self._put_aside(entry, error)

    def _write(self, entry: Entry) -> None:
        write_entry(self._workspace, self.run_id, entry, self.journal.contents_of(entry))

    def _raise_unless_refused(self, error: Exception) -> None:
        """Raise an error again unless it says that the server refuses one item."""
        if is_away(error) or refuses_all(error):
            raise error
        try:
            is_active = self._client.get_run(self.run_id).info.lifecycle_stage == "active"
        except MlflowException as missing:
            if is_away(missing) or refuses_all(missing):
                raise
            is_active = False
        if not is_active:
            raise RunGone(f"run {self.run_id} is deleted") from error

    def _put_aside(self, entry: Entry, error: Exception) -> None:
        reason = hide_passwords(first_line(error))
        if any(one["entry"] == entry for one in self.journal.sent.refused):
            # What was sent with it is sent again, since the server went away behind it.
            return
        self._mark(refused=[*self.journal.sent.refused, {"entry": entry, "reason": reason}])

    def send_refused(self) -> None:
        """Send once more what was refused before."""
        left = self.journal.sent.refused
        self._mark(refused=[])
        try:
            while left:
                self._send_entry(left[0]["entry"])
                left = left[1:]
        finally:
            self._mark(refused=[*left, *self.journal.sent.refused])

    def beat(self) -> None:
        """Renew the run's heartbeat."""
        if self.run_id and self.journal.sent.offset:
            self._client.set_tag(self.run_id, names.HEARTBEAT, str(Beat.now()))

    def _mark(self, **changes: object) -> None:
        sent: Sent = replace(self.journal.sent, **changes)  # type: ignore[arg-type]
        self.journal.mark(sent)


def describe(item: Entry) -> str:
    """Return the name of what was refused, for a message."""
    if item["kind"] in ITEMS:
        first = items_of(item)[0]
        kind = "metric" if isinstance(first, Metric) else item["kind"][:-1]
        return f"{kind} {first.key}"
    return f"{item['kind']} {item.get('path') or item.get('name') or ''}".strip()
