"""What all benchmarks need: interleaved timing, memory of a process with its children, a table with bounds."""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

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
        table = Table("what", "ours", "peer", "measured", "bound holds", title=self.title, title_justify="left")
        for *cells, holds in self.rows:
            table.add_row(*cells, "yes" if holds else "NO")
        console.print(table)
        return 0 if all(row[-1] for row in self.rows) else 1


def seconds(function: Callable[[], object]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def interleaved(ours: Callable[[], object], peer: Callable[[], object], rounds: int) -> tuple[float, float, float]:
    """Time two calls in turns, each order as often as the other.

    Returns:
        Median seconds of ours, of the peer, and the median of the paired ratios peer / ours: above 1, ours is faster.
    """
    pairs = []
    for number in range(rounds):
        if number % 2:
            second, first = seconds(peer), seconds(ours)
            pairs.append((first, second))
        else:
            pairs.append((seconds(ours), seconds(peer)))
    ratio = statistics.median(other / own for own, other in pairs)
    return statistics.median(own for own, _ in pairs), statistics.median(other for _, other in pairs), ratio


def anonymous_bytes(pid: int | str = "self") -> int:
    """Return the anonymous memory of a process and its children, in bytes: not the pages of mapped files."""
    folder = Path(f"/proc/{pid}")
    try:
        status = (folder / "status").read_text()
        children = [child for task in (folder / "task").iterdir() for child in (task / "children").read_text().split()]
    except OSError:
        return 0
    own = next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon")), 0)
    return own + sum(map(anonymous_bytes, children))


@contextlib.contextmanager
def peak_memory(interval: float = 0.05) -> Iterator[list[int]]:
    """Yield a list whose last element is, afterwards, the highest anonymous memory of this process and its children."""
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
