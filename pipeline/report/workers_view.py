"""What several workers of a study are doing: one line each."""

from __future__ import annotations

import re
import threading

from rich.live import Live
from rich.text import Text

from pipeline.report.console import console, say
from pipeline.safe_text import hide_passwords, make_visible

_EPOCH = re.compile(r": epoch \d+/\d+ ")
_TRAIN = re.compile(r"train loss \S+ accuracy \S+ +")
_TRIAL = re.compile(r"trial \d+ of \d+: ")
_BEST = re.compile(r" *(best so far: (.*?); trials left: \d+)$")


class WorkersView:
    """What workers print, as a context manager.

    On a terminal, each worker has one line at the bottom, with its training, epoch, validation and
    time left, and below them stands the best trial so far. All else goes by above. Elsewhere, as in
    a log file, each line begins with the worker's number, and those of epochs end with the best
    trial so far.
    """

    def __init__(self) -> None:
        self._now: dict[int, str] = {}
        self._summary = ""
        self._best = ""
        self._lock = threading.Lock()
        self._live = Live(console=console, transient=True, auto_refresh=False)

    def __enter__(self) -> WorkersView:
        if console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, number: int, line: str) -> None:
        """Show a line that a worker has printed."""
        with self._lock:
            is_epoch = _EPOCH.search(line) is not None
            found = _BEST.match(line)
            if found is not None:
                self._summary, self._best = found.group(1), f"best so far: {found.group(2)}"
            if line.startswith("nothing is left to begin"):
                self._now.pop(number, None)
            if is_epoch or _TRIAL.match(line):
                # The line is cut at the terminal's edge: what others compare comes first.
                self._now[number] = _TRAIN.sub("", line.strip())
            if not console.is_terminal:
                best = f"  {self._best}" if is_epoch and self._best else ""
                say(f"[{number}] {line}{best}")
                return
            if not is_epoch and found is None:
                say(f"[{number}] {line}")
            self._live.update(self._render(), refresh=True)

    def _render(self) -> Text:
        lines = [f"[{number}] {line}" for number, line in sorted(self._now.items())]
        if self._summary:
            lines.append(self._summary)
        shown = [make_visible(hide_passwords(line)) for line in lines]
        return Text("\n".join(shown), no_wrap=True, overflow="ellipsis")
