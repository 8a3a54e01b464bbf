"""Journals that a process has left, since it was killed or its server stayed away: sent later."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from mlflow.exceptions import MlflowException

from pipeline.config import valid_name
from pipeline.errors import InUse
from pipeline.report.console import say
from pipeline.safe_text import hide_passwords
from pipeline.tracking import names
from pipeline.tracking.delivery import Delivery, RunGone, describe
from pipeline.tracking.heartbeat import Beat
from pipeline.tracking.journal import Journal
from pipeline.tracking.journalled import open_run_journal
from pipeline.tracking.patience import few_retries
from pipeline.tracking.workspace import JOURNAL, Workspace


def send_left(workspace: Workspace, experiment: str = "") -> int:
    """Send the journals that stand here and that no process sends, also what was refused before.

    Runs that their process has not ended become interrupted, at the last sign of its life.

    Args:
        workspace: The open store. A database has no journals.
        experiment: Name of the experiment whose journals are sent; empty: all.

    Returns:
        The number of runs that the server has all of now.

    Raises:
        MlflowException: The server does not answer, or refuses this user. What is left stays in the
            journals.
    """
    if not workspace.is_server:
        return 0
    sent = 0
    for folder in list(_find_journals(workspace.home / JOURNAL, experiment)):
        # The launcher's run is this process's.
        own = replace(workspace, experiment=folder.parent.name, launched_run="")
        with suppress(InUse):
            journal, held = open_run_journal(own, folder.name)
            with held:
                sent += _send(own, journal)
    return sent


def _find_journals(root: Path, experiment: str) -> Iterator[Path]:
    for folder in sorted(root.glob(f"{experiment or '*'}/*/")):
        with suppress(ValueError):
            valid_name(folder.parent.name)
            if names.is_uid(folder.name) and not folder.is_symlink():
                yield folder


def _send(workspace: Workspace, journal: Journal) -> bool:
    """Send a journal whose lock is held; return whether the server has all of it."""
    if not _may_send(workspace, journal):
        return False
    delivery = Delivery(workspace, journal)
    try:
        with few_retries():
            if _goes_on_elsewhere(workspace, delivery):
                say(f"run {delivery.run_id} has gone on elsewhere; what was left of it is dropped")
                journal.remove()
                return False
            _send_all(delivery)
    except RunGone as gone:
        say(f"{gone}; what is left of it stays in {journal.folder}")
        return False
    for one in journal.sent.refused:
        say(
            f"run {delivery.run_id}: the tracking server refuses {describe(one['entry'])}: "
            f"{one['reason']}; it stays in {journal.folder}"
        )
    if journal.sent.refused:
        return False
    say(f"run {delivery.run_id}: all that it had logged is sent")
    journal.remove()
    return True


def _send_all(delivery: Delivery) -> None:
    """Send what is left of a journal, after its run has ended in it, and what was refused before.

    Raises:
        RunGone: The run was deleted.
        MlflowException: The server does not answer, or refuses this user.
    """
    journal = delivery.journal
    if not journal.is_ended:
        _end(journal, journal.last_beat())
    if delivery.run_id:
        delivery.send_refused()
    while delivery.send_next():
        pass
    delivery.remove_doubles()


def _goes_on_elsewhere(workspace: Workspace, delivery: Delivery) -> bool:
    """Whether another process has taken the run of a journal up, and does not share the journal.

    A worker on another machine does that if this one was silent.
    """
    ours = delivery.journal.last_beat()
    if not delivery.run_id or ours is None:
        return False
    try:
        theirs = Beat.of(workspace.client.get_run(delivery.run_id).data.tags)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    if theirs is None or theirs.time <= ours.time:
        return False
    return theirs[:2] != ours[:2] or abs(theirs.started - ours.started) >= 1


def _may_send(workspace: Workspace, journal: Journal) -> bool:
    """Whether a journal is for this server, and its process is gone."""
    if not journal.first:
        # The process was killed before it had logged anything.
        journal.remove()
        return False
    uri = journal.first["uri"]
    if uri != hide_passwords(workspace.uri):
        say(f"{journal.folder} is for {uri}: MLFLOW_TRACKING_URI={uri} sends it")
        return False
    # The lock does not tell it if the folder is shared by a network.
    beat = journal.last_beat()
    is_alive = beat is not None and beat.lives and beat.host != socket.gethostname()
    return journal.is_ended or not is_alive


def _end(journal: Journal, beat: Beat | None) -> None:
    """End the run of a process that was killed, in its journal, at the last sign of its life."""
    times = [1000 * beat.time if beat else 0.0]
    for placed in journal.read_unsent():
        if placed.entry["kind"] == "metrics":
            times += [timestamp for _, _, timestamp, _ in placed.entry["values"]]
    where = f" (process {beat.process_id} on {beat.host})" if beat else ""
    reason = f"its process died{where}"
    tags = {
        names.STATE: names.INTERRUPTED,
        names.REASON: reason,
        names.NOTE: f"{names.INTERRUPTED}: {reason}",
    }
    journal.append({"kind": "tags", "values": tags})
    status = names.STATUS_OF_STATE[names.INTERRUPTED]
    journal.append({"kind": "end", "status": status, "end_time": int(max(times))})
