"""Work that is done beside the training, in order, so that the network never waits for a disk or a server."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable

Task = Callable[[], None]

_PAUSE = 10.0
"""Seconds between the end of a task that might have been replaced and the start of another."""


def run_within(seconds: float, task: Task) -> bool:
    """Do something in a thread of its own, and wait for it only so long; return whether it has ended.

    Raises:
        BaseException: What the task raised.
    """
    raised: list[BaseException] = []

    def work() -> None:
        try:
            task()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work, name="within", daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    return not thread.is_alive()


class Background:
    """Runs tasks one after another in a thread of its own.

    A task that raises stops the rest: its error is raised by the next `submit` or `flush`, since what follows may build on it.

    Args:
        most_waiting: Tasks that may wait; `submit` blocks beyond, so that memory stays bounded where the disk is slow.
    """

    def __init__(self, most_waiting: int = 64) -> None:
        self._most_waiting = most_waiting
        self._tasks: deque[tuple[Task, str]] = deque()
        self._changed = threading.Condition()
        self._is_busy = self._is_closed = self._is_awaited = False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def submit(self, task: Task, replaces: str = "", patience: float | None = None) -> None:
        """Do this after what was submitted before.

        Args:
            task: What to do.
            patience: Seconds to wait where too many tasks wait already; beyond, this one is left out. None waits as long as it takes.
            replaces: A name: the last waiting task, if it was submitted with the same one, need not be done any more. Such tasks are
                done once in ten seconds, or when others wait behind them.

        Raises:
            BaseException: What an earlier task raised.
        """
        with self._changed:
            self._raise()
            if self._thread is None:
                self._is_closed = False
                self._thread = threading.Thread(target=self._work, name="background", daemon=True)
                self._thread.start()
            if replaces and self._tasks and self._tasks[-1][1] == replaces:
                self._tasks[-1] = (task, replaces)
                return
            if not self._changed.wait_for(
                lambda: len(self._tasks) < self._most_waiting, timeout=patience
            ):
                return
            self._tasks.append((task, replaces))
            self._changed.notify_all()

    def make_room(self, replaces: str, most: int) -> None:
        """Call this before a task is made whose data is large, so that it is not in memory beside that of too many others.

        Drops the last waiting task if it was submitted with the name `replaces`; what replaces it must be submitted next.

        Args:
            replaces: The name that the new task will be submitted with.
            most: Wait until at most so many tasks are not done, the one at work included.

        Raises:
            BaseException: What an earlier task raised.
        """
        with self._changed:
            if self._tasks and self._tasks[-1][1] == replaces:
                self._tasks.pop()
            self._changed.wait_for(lambda: self._pending() <= most)
            self._raise()

    @property
    def pending(self) -> int:
        """How many tasks are not done, the one at work included."""
        with self._changed:
            return self._pending()

    def _pending(self) -> int:
        return len(self._tasks) + self._is_busy

    def flush(self) -> None:
        """Wait until all is done.

        Raises:
            BaseException: What a task raised.
        """
        with self._changed:
            self._is_awaited = True
            self._changed.notify_all()
            try:
                self._changed.wait_for(lambda: not self._pending())
            finally:
                self._is_awaited = False
            self._raise()

    def close(self) -> None:
        """Wait until all is done, and end the thread; raises as `flush`."""
        try:
            self.flush()
        finally:
            if self._thread is not None:
                with self._changed:
                    self._is_closed = True
                    self._changed.notify_all()
                self._thread.join()
                self._thread = None

    def _raise(self) -> None:
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None

    def _work(self) -> None:
        resumes = -math.inf
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._tasks or self._is_closed)
                if self._tasks and self._tasks[0][1]:
                    seconds = max(resumes - time.monotonic(), 0)
                    self._changed.wait_for(
                        lambda: len(self._tasks) != 1 or self._is_awaited or self._is_closed,
                        timeout=seconds,
                    )
                if not self._tasks:
                    if self._is_closed:
                        return
                    # Dropped: what replaces it is being made.
                    continue
                task, name = self._tasks.popleft()
                self._is_busy = True
                self._changed.notify_all()
            error = None
            try:
                task()
            except BaseException as raised:
                error = raised
            # It may hold a copy of the weights.
            del task
            if name:
                resumes = time.monotonic() + _PAUSE
            with self._changed:
                self._is_busy = False
                if error is not None:
                    self._error = error
                    self._tasks.clear()
                self._changed.notify_all()
            # Its traceback holds this frame: each would keep the other, and the task's data.
            error = None
