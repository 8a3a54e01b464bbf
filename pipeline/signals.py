"""SIGINT and SIGTERM as an exception.

The exception is put off while something is written that must not be torn apart. The process ends in
any case.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.errors import Interrupted

_STOPPING = (signal.SIGINT, signal.SIGTERM)
_SAME = 2.0
"""Seconds within which a second signal is the same Ctrl-C.

`mlflow run` and the terminal both deliver it.
"""
LONGEST_END = 6.0
"""Seconds after a signal in which runs are ended.

What a store does not take in that time is left to `reconcile`.
"""
_ONE_MORE = 1.5
"""Seconds after that at which the process ends, whatever it waits for."""


class _State:
    held = 0
    pending = 0
    arrived = 0.0
    is_limited = False
    at_first: list[Callable[[], None]] = []  # noqa: RUF012 - one state of the process


def _stop(number: int, frame: FrameType | None) -> None:
    if _State.arrived:
        if _State.is_limited and time.monotonic() - _State.arrived > _SAME:
            _end_now("ended at once")
        return
    _State.arrived = time.monotonic()
    for task in _State.at_first:
        task()
    if _State.is_limited:
        timer = threading.Timer(
            LONGEST_END + _ONE_MORE, _end_now, ["ended, though not all is written"]
        )
        timer.daemon = True
        timer.start()
    if _State.held:
        _State.pending = number
    else:
        raise Interrupted(f"stopped by {signal.Signals(number).name}")


def _end_now(how: str) -> None:
    """End this process without waiting for anything."""
    message = f"{how}; `python -m pipeline reconcile` ends the runs that still say RUNNING\n"
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, message.encode())
    os._exit(1)


def raise_on_signals() -> None:
    """Raise `Interrupted` in the main thread at the first SIGINT or SIGTERM.

    `limit_endings` says what a second signal does.
    """
    _State.held = 0
    _State.pending = 0
    _State.arrived = 0.0
    for number in _STOPPING:
        signal.signal(number, _stop)


def limit_endings() -> None:
    """End this process within ten seconds of a signal, whatever it waits for.

    A second signal, more than two seconds later, ends it at once.
    """
    _State.is_limited = True


def at_first_signal(task: Callable[[], None]) -> None:
    """Do a task when the first signal arrives, before `Interrupted` is raised.

    The task must be short, and must not wait.
    """
    if task not in _State.at_first:
        _State.at_first.append(task)


def has_arrived() -> bool:
    """Whether a signal has arrived."""
    return _State.arrived > 0


def seconds_left() -> float:
    """Return the seconds that ending may take from now on.

    They are `LONGEST_END` if no signal has arrived, fewer after a signal, and at least a moment.
    """
    passed = time.monotonic() - _State.arrived if _State.arrived else 0.0
    return max(LONGEST_END - passed, 0.1)


def ignore_signals() -> None:
    """Let no SIGINT or SIGTERM break the exit of a process that has done its work."""
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def delay_signals() -> Iterator[None]:
    """Put a signal off until the block is left."""
    _State.held += 1
    try:
        yield
    finally:
        _State.held -= 1
        if _State.pending and not _State.held:
            number = _State.pending
            _State.pending = 0
            raise Interrupted(f"stopped by {signal.Signals(number).name}")
