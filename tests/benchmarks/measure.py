"""What all benchmarks need.

It is timing in turns, the memory of a process with its children, and a table with bounds.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

console = Console(highlight=False, width=150)


@dataclass
class Results:
    """Rows of a benchmark; each says whether its bound holds."""

    title: str
    rows: list[tuple[str, str, str, str, bool]] = field(default_factory=list)

    def add(self, what: str, ours: str, peer: str, measured: str, holds: bool) -> None:
        """Add a row and print it, so that a long benchmark can be followed."""
        self.rows.append((what, ours, peer, measured, holds))
        console.print(f"{'ok  ' if holds else 'MISS'} {what}: {measured}", markup=False)

    def conclude(self) -> int:
        """Print the table; return the exit code."""
        table = Table(
            "what",
            "ours",
            "peer",
            "measured",
            "bound holds",
            title=self.title,
            title_justify="left",
        )
        for *cells, holds in self.rows:
            table.add_row(*cells, "yes" if holds else "NO")
        console.print(table)
        return 0 if all(row[-1] for row in self.rows) else 1


def seconds(function: Callable[[], object]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def interleaved(
    ours: Callable[[], object], peer: Callable[[], object], rounds: int
) -> tuple[float, float, float]:
    """Time two calls in turns, each order as often as the other.

    Returns:
        Median seconds of ours, of the peer, and the median of the paired ratios peer / ours: above
        1, ours is faster.
    """
    pairs = []
    for number in range(rounds):
        if number % 2:
            second, first = seconds(peer), seconds(ours)
            pairs.append((first, second))
        else:
            pairs.append((seconds(ours), seconds(peer)))
    ratio = statistics.median(other / own for own, other in pairs)
    return (
        statistics.median(own for own, _ in pairs),
        statistics.median(other for _, other in pairs),
        ratio,
    )


def _serve(connection: Connection, make: Callable[[], Callable[[], Any]]) -> None:
    os.setpgid(0, 0)  # So that whatever it starts stops with it.
    call = make()
    connection.send(None)
    connection.recv()
    connection.send(call())


class Contestant:
    """A call in a process of its own, made once, that runs only in the slices of time it is given.

    Args:
        make: Returns the call, ready and warm; is called in the process, and can be pickled.
    """

    def __init__(self, make: Callable[[], Callable[[], Any]]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make), daemon=True)
        self.process.start()
        theirs.close()
        self.connection.recv()
        self.seconds, self.result = 0.0, None

    def begin(self) -> None:
        """Begin the call, without a slice yet."""
        self._signal(signal.SIGSTOP)
        self.connection.send(None)

    def advance(self, slice_seconds: float) -> bool:
        """Run for a slice.

        Return whether the call has ended, its result, and the seconds that it ran.
        """
        started = time.perf_counter()
        self._signal(signal.SIGCONT)
        ended = self.connection.poll(slice_seconds)
        self._signal(signal.SIGSTOP)
        self.seconds += time.perf_counter() - started
        if ended:
            self.result = self.connection.recv()
        return ended

    def close(self) -> None:
        """End the process, wherever it is.

        A process that is stopped would take no notice of anything else.
        """
        self._signal(signal.SIGKILL)
        self.process.join()

    def _signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.killpg(self.process.pid, number)


def sliced(
    ours: Callable[[], Callable[[], Any]],
    peer: Callable[[], Callable[[], Any]],
    rounds: int,
    slice_seconds: float = 0.5,
) -> tuple[float, float, float, tuple[Any, Any]]:
    """Time two calls that alternate every half second, each in a process of its own.

    One is stopped while the other runs. Noise of a shared machine that lasts longer than a slice
    meets both alike: two trainings of a minute, one after the other, differ by 30% on a machine
    whose neighbours are busy.

    Returns:
        Median seconds of ours, of the peer, the median of the paired ratios peer / ours (above 1,
        ours is faster), and both results.
    """
    pairs, results = [], (None, None)
    for number in range(rounds):
        # In new processes each round: where the memory of one lies makes it a few percent faster or
        # slower for all its life.
        contestants = (Contestant(ours), Contestant(peer))
        try:
            running = list(contestants if number % 2 == 0 else contestants[::-1])
            for contestant in running:
                contestant.begin()
            while running:
                running = [
                    contestant for contestant in running if not contestant.advance(slice_seconds)
                ]
        finally:
            for contestant in contestants:
                contestant.close()
        own, other = (contestant.seconds for contestant in contestants)
        console.print(
            f"     {own:.2f} s, peer {other:.2f} s, ratio {own / other:.3f}", markup=False
        )
        pairs.append((own, other))
        results = (contestants[0].result, contestants[1].result)
    ratio = statistics.median(other / own for own, other in pairs)
    return (
        statistics.median(own for own, _ in pairs),
        statistics.median(other for _, other in pairs),
        ratio,
        results,
    )


def anonymous_bytes(pid: int | str = "self") -> int:
    """Return the anonymous memory of a process and its children, in bytes.

    Pages of mapped files do not count.
    """
    folder = Path(f"/proc/{pid}")
    try:
        status = (folder / "status").read_text()
        children = [
            child
            for task in (folder / "task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except OSError:
        return 0
    own = next(
        (int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon")),
        0,
    )
    return own + sum(map(anonymous_bytes, children))


@contextlib.contextmanager
def peak_memory(interval: float = 0.05) -> Iterator[list[int]]:
    """Yield a list that gets the highest anonymous memory of this process and its children.

    It is the last element, afterwards.
    """
    peak, stop = [anonymous_bytes()], threading.Event()

    def watch() -> None:
        while not stop.wait(interval):
            peak[0] = max(peak[0], anonymous_bytes())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()
        peak[0] = max(peak[0], anonymous_bytes())
