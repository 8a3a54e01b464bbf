"""What a node of a Ray cluster runs: one worker of a study, as a process.

Ray sends these functions to the node as they are, so they need nothing but Python there.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PAUSE = 10.0
"""Seconds until a worker is run again whose store was away."""
_END_SECONDS = 20.0
"""Seconds that a worker has to end when the study is interrupted."""


@dataclass(frozen=True)
class WorkerCall:
    """How a worker is called.

    Attributes:
        number: Number of the worker.
        arguments: Arguments of the node's Python.
        environment: Environment variables beside those of the node.
        folder: Folder to run it in.
        away: Exit code that means its database or tracking server is away; it is run again.
        longest_away: Seconds for which that goes on.
    """

    number: int
    arguments: Sequence[str]
    environment: Mapping[str, str]
    folder: str
    away: int
    longest_away: float


def run_worker(call: WorkerCall, lines: Any) -> str:
    """Run a worker until nothing is left for it.

    Args:
        call: How it is called.
        lines: Ray's queue for the number of the worker and each line that it prints.

    Returns:
        Why it could not be run; empty if nothing is left for it.

    Raises:
        RuntimeError: It has died, so that Ray is to start it again.
    """
    where = socket.gethostname()
    if not Path(call.folder).is_dir():
        return f"{where} has no folder {call.folder}"
    away_since = 0.0
    while True:
        code, printed = _run_once(call, lines)
        if code == 0:
            return ""
        if code == 2:
            return f"{where}: {printed[-1] if printed else 'it was refused'}"
        if any(line.startswith("trial ") for line in printed):
            away_since = 0.0
        away_since = away_since or time.monotonic()
        if code != call.away or time.monotonic() - away_since > call.longest_away:
            raise RuntimeError(f"{where}: the worker has ended with exit code {code}")
        time.sleep(_PAUSE)


def _run_once(call: WorkerCall, lines: Any) -> tuple[int, list[str]]:
    """Run a worker's process to its end; return its exit code and what it has printed."""
    process = subprocess.Popen(
        [sys.executable, *call.arguments],
        cwd=call.folder,
        env={**os.environ, **call.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    printed = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            printed.append(line.rstrip())
            # The study goes on if who has begun it sees nothing of it any more.
            with contextlib.suppress(Exception):
                lines.put((call.number, printed[-1]), timeout=5)
        return process.wait(), printed
    finally:
        # Ray raises here if the study is interrupted.
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)
            process.kill()
