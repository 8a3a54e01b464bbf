"""The senders of this process, and how long a step that is done waits for them."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.tracking.sender import HOW, Sender
from pipeline.tracking.workspace import Workspace

LONGEST_WAIT = "PIPELINE_SEND_SECONDS"
"""Environment variable: seconds that a step which is done waits for its journals, by default 600.

Others wait with it: a batch system, a person.
"""
_senders: dict[tuple[str, Path], Sender] = {}


def sender_of(workspace: Workspace) -> Sender:
    """Return the sender of this process for a server."""
    return _senders.setdefault((workspace.uri, workspace.home), Sender(workspace))


def finish_sending() -> None:
    """Wait until all that this process has logged is sent: a step is done.

    Raises:
        StoreAway: The server has not taken all in the time that `LONGEST_WAIT` says.
        PipelineError: The server refuses this user, or something for good.
    """
    for sender in list(_senders.values()):
        sender.wait(longest_wait())
        if sender.left:
            line = sender.left[0]
            sender.left = []
            raise PipelineError(f"{line}; {HOW} when the reason is gone")


def wait_until_sent(workspace: Workspace) -> None:
    """Wait until a server has all that this process has logged, which is then read back.

    Raises:
        StoreAway: The server has not taken all in the time that `LONGEST_WAIT` says.
        PipelineError: The server refuses this user.
    """
    if workspace.is_server:
        sender_of(workspace).wait(longest_wait())


def settle(workspace: Workspace, seconds: float) -> None:
    """Give a server some time to take what this process has logged, unless it is away."""
    if workspace.is_server:
        sender_of(workspace).settle(seconds)


def longest_wait() -> float:
    """Return the seconds that a step which is done waits for its journals."""
    given = os.environ.get(LONGEST_WAIT, "")
    with suppress(ValueError):
        return max(float(given), 0.0)
    return 600.0


def stop_sending(seconds: float) -> bool:
    """End all sending of this process; return whether all was sent.

    Args:
        seconds: Time to send the rest in, if the server is there.
    """
    ends = time.monotonic() + seconds
    is_all = True
    for sender in list(_senders.values()):
        is_all &= sender.settle(max(ends - time.monotonic(), 0.0))
        sender.abandon()
    _senders.clear()
    return is_all
