"""Work that is done beside the training, in order, so that the network never waits for a disk or a server."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

Task = Callable[[], None]


class Background:
    """Runs tasks one after another in a thread of its own.

    A task that raises stops the rest: its error is raised by the next `submit` or `flush`, since what follows may build on it.

    Args:
        most_waiting: Tasks that may wait; `submit` blocks beyond, so that memory stays bounded where the disk is slow.
    """

    def __init__(self, most_waiting: int = 64) -> None:
        self._tasks: queue.Queue[Task | None] = queue.Queue(most_waiting)
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def submit(self, task: Task) -> None:
        """Do this after what was submitted before.

        Raises:
            BaseException: What an earlier task raised.
        """
        self._raise()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="background", daemon=True)
            self._thread.start()
        self._tasks.put(task)

    def flush(self) -> None:
        """Wait until all is done.

        Raises:
            BaseException: What a task raised.
        """
        self._tasks.join()
        self._raise()

    def close(self) -> None:
        """Wait until all is done, and end the thread; raises as `flush`."""
        try:
            self.flush()
        finally:
            if self._thread is not None:
                self._tasks.put(None)
                self._thread.join()
                self._thread = None

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _work(self) -> None:
        while True:
            task = self._tasks.get()
            try:
                if task is None:
                    return
                if self._error is None:
                    task()
            except BaseException as error:
                self._error = error
            finally:
                self._tasks.task_done()
