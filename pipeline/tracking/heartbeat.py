"""Whether the process of a run still lives: a tag that it renews, and how the tag is read."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import psutil
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipeline.errors import StoreAway, TakenOver
from pipeline.tracking import names

INTERVAL = 10.0
"""Seconds between two beats."""
STALE = 60.0
"""Seconds without a beat after which a process on another machine counts as dead."""


class Beat(NamedTuple):
    """What the tag says.

    Attributes:
        host: Name of the machine.
        process_id: Id of the process on that machine.
        started: When the process started, in seconds since 1970. It is needed since the system uses
            process ids again.
        time: When the tag was written, in seconds since 1970.
        space: What process ids count in on that machine (see `process_space`); empty: the machine.
    """

    host: str
    process_id: int
    started: float
    time: float
    space: str = ""

    @classmethod
    def now(cls) -> Beat:
        """Return the beat of this process."""
        started = psutil.Process().create_time()
        return cls(socket.gethostname(), os.getpid(), started, time.time(), process_space())

    @classmethod
    def of(cls, tags: Mapping[str, str]) -> Beat | None:
        """Read the tag among a run's tags; return None if it is missing or cannot be a beat's."""
        return cls.parse(tags.get(names.HEARTBEAT, ""))

    @classmethod
    def parse(cls, text: str) -> Beat | None:
        """Read the text of a beat; return None if it cannot be one."""
        try:
            host, process_id, started, time, *space = text.split()
            beat = cls(host, int(process_id), float(started), float(time), *space[:1])
        except ValueError:
            return None
        has_id = 0 < beat.process_id < 2**31
        has_times = 0 <= beat.started < 2**40 and 0 <= beat.time < 2**40
        return beat if has_id and has_times else None

    def __str__(self) -> str:
        return f"{self.process} {self.time:.0f} {self.space}".strip()

    @property
    def process(self) -> str:
        """The process, told from all others."""
        return f"{self.host} {self.process_id} {self.started:.2f}"

    def is_of(self, process_id: int) -> bool:
        """Whether the beat is that of a process of this machine."""
        return self.is_from_here and self.process_id == process_id

    @property
    def is_from_here(self) -> bool:
        """Whether the process is one of this machine, or of this container."""
        return self.host == socket.gethostname() and self.space in ("", process_space())

    @property
    def lives(self) -> bool:
        """Whether the process still runs.

        On this machine its id and its start tell it, on another machine, or in another container,
        the time of the beat.
        """
        if not self.is_from_here:
            return time.time() - self.time < STALE
        try:
            process = psutil.Process(self.process_id)
            return (
                abs(process.create_time() - self.started) < 1
                and process.status() != psutil.STATUS_ZOMBIE
            )
        except psutil.NoSuchProcess:
            return False


def process_space() -> str:
    """Return what process ids count in: containers may have the name of their machine."""
    with contextlib.suppress(OSError):
        return str(Path("/proc/self/ns/pid").stat().st_ino)
    return ""


class Heartbeat:
    """A thread that renews the tag of a run every ten seconds, until it is stopped.

    If the store does not answer, beats are missing; the run neither ends nor slows down.

    Args:
        client: Client of the store.
        run_id: Id of the run.
        guard: Called before each beat; see `pipeline.tracking.tracked_run.TrackedRun`.
    """

    def __init__(self, client: MlflowClient, run_id: str, guard: Callable[[], None]) -> None:
        self._client = client
        self._run_id = run_id
        self._guard = guard
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._stopped.wait(INTERVAL):
            with contextlib.suppress(MlflowException, TakenOver, StoreAway):
                self._guard()
                self._client.set_tag(self._run_id, names.HEARTBEAT, str(Beat.now()))
