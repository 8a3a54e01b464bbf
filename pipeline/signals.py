"""SIGINT and SIGTERM as an exception, put off while what must not be torn apart is written."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.errors import Interrupted

_STOPPING = (signal.SIGINT, signal.SIGTERM)


class _State:
    held = 0
    pending = 0


def _stop(number: int, frame: FrameType | None) -> None:
    # mlflow run passes Ctrl-C on as a second signal, which must not break the ending of the run.
    ignore_signals()
    if _State.held:
        _State.pending = number
    else:
        raise Interrupted(f"stopped by {signal.Signals(number).name}")


def raise_on_signals() -> None:
    """Raise `Interrupted` in the main thread at the first SIGINT or SIGTERM; further ones are ignored."""
    _State.held = _State.pending = 0
    for number in _STOPPING:
        signal.signal(number, _stop)


def ignore_signals() -> None:
    """Let no SIGINT or SIGTERM break the exit of a process that has done its work."""
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def held() -> Iterator[None]:
    """Put a signal off until the block is left."""
    _State.held += 1
    try:
        yield
    finally:
        _State.held -= 1
        if _State.pending and not _State.held:
            number, _State.pending = _State.pending, 0
            raise Interrupted(f"stopped by {signal.Signals(number).name}")
