"""Work that is done beside the training, in order.

The network never waits for a disk or a server.
"""

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
    """Do a task in a thread of its own, wait `seconds` for it, and return whether it has ended.

    Raises:
        BaseException: The error that the task raised.
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

    A task that raises stops the rest, since what follows may build on it. The next `submit` or
    `flush` raises its error.

    Args:
        most_waiting: Number of tasks that may wait. Beyond it `submit` blocks, so that memory stays
            bounded if the disk is slow.
    """

    def __init__(self, most_waiting: int = 64) -> None:
        self._most_waiting = most_waiting
        self._tasks: deque[tuple[Task, str]] = deque()
        self._changed = threading.Condition()
        self._is_busy = False
        self._is_closed = False
        self._is_awaited = False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def submit(self, task: Task, replaces: str = "", patience: float | None = None) -> None:
        """Do a task after the tasks that were submitted before.

        Args:
            task: The task.
            patience: Seconds to wait if too many tasks wait already. After them this task is left
                out. None waits as long as it takes.
            replaces: A name. If the last waiting task was submitted with the same name, this task
                replaces it. Tasks with a name are done once in ten seconds, or when others wait
                behind them.

        Raises:
            BaseException: The error that an earlier task raised.
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
            has_room = self._changed.wait_for(
                lambda: len(self._tasks) < self._most_waiting, timeout=patience
            )
            if not has_room:
                return
            self._tasks.append((task, replaces))
            self._changed.notify_all()

    def make_room(self, replaces: str, most: int) -> None:
        """Wait until few tasks are left, before a task is made whose data is large.

        So its data is not in memory beside that of too many others. If the last waiting task was
        submitted with the name `replaces`, it is dropped: its replacement must be submitted next.

        Args:
            replaces: The name that the new task will be submitted with.
            most: Number of tasks that may be left, the one at work included.

        Raises:
            BaseException: The error that an earlier task raised.
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
        """Wait until all tasks are done.

        Raises:
            BaseException: The error that a task raised.
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
        """Wait until all tasks are done, and end the thread.

        Raises:
            BaseException: The error that a task raised.
        """
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
                    # The task was dropped: its replacement is being made.
                    continue
                task, name = self._tasks.popleft()
                self._is_busy = True
                self._changed.notify_all()
            error = None
            try:
                task()
            except BaseException as raised:
                error = raised
            # The task may hold a copy of the weights.
            del task
            if name:
                resumes = time.monotonic() + _PAUSE
            with self._changed:
                self._is_busy = False
                if error is not None:
                    self._error = error
                    self._tasks.clear()
                self._changed.notify_all()
            # The error's traceback holds this frame. Each would keep the other, and the task's
            # data.
            error = None
