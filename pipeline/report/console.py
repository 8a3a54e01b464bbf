"""What a person sees in the terminal: lines, tables, progress."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from functools import lru_cache

import pandas as pd
from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pipeline import ranking
from pipeline.errors import Interrupted
from pipeline.report.format import format_duration, format_percent
from pipeline.report.table_layout import fit_table
from pipeline.safe_text import hide_passwords, make_visible
from pipeline.training.callback import Callback


class _Output(Console):
    def on_broken_pipe(self) -> None:
        """End as by a signal if nobody reads any more, as in ``train | head``.

        Rich would exit without a reason.
        """
        try:
            super().on_broken_pipe()
        except SystemExit:
            raise Interrupted("its output was closed") from None


# A log file has no width of its own; the comparison needs about this much.
console = _Output(
    highlight=False,
    emoji=False,
    width=None if sys.stdout.isatty() else 140,
    soft_wrap=not sys.stdout.isatty(),
)


def say(line: str = "") -> None:
    """Print one line.

    On a terminal that is narrower than the line, the line is broken at spaces; an address or a path
    stays whole.
    """
    shown = make_visible(hide_passwords(line))
    if console.is_terminal:
        shown = _break_at_spaces(shown, console.width)
    console.print(shown, markup=False, soft_wrap=True)


@lru_cache
def say_once(line: str) -> None:
    """Print a line that would be said again for each entry of a list."""
    say(line)


def _break_at_spaces(line: str, width: int) -> str:
    """Return a text with line breaks at spaces, so that lines are at most `width` wide.

    A longer word stays whole. Rich would break it, so that an address could not be copied.
    """
    lines = [""]
    for word in re.findall(r" *[^ ]+", line):
        if lines[-1] and cell_len(lines[-1] + word) > width:
            lines.append(word.lstrip())
        else:
            lines[-1] += word
    return "\n".join(lines)


_NOTES = "notes"
_WORDS = ("verdict", _NOTES)
"""Columns of tables that hold words, but no numbers alone."""


def show_table(
    table: pd.DataFrame,
    title: str,
    texts: Sequence[str] = ("run", "settings"),
    expendable: Sequence[str] = (),
) -> None:
    """Print a table of text so that no number is broken.

    On a terminal that is too narrow, columns are stacked or left out.

    Args:
        table: The whole table. Rows whose column ``#`` holds no number are printed dim.
        title: Title above the table.
        texts: Columns that may be broken at spaces. The second and further ones stand below the
            first if there is no room beside it.
        expendable: Columns that may be left out, the first to go first. Columns that were left out
            are named below the table.
    """
    written = table.astype(str).map(make_visible)
    if _NOTES in written:
        # One below the other, so that they need less room.
        written[_NOTES] = written[_NOTES].str.replace(", ", ",\n")
    shown = fit_table(
        written,
        [name for name in texts if name in table.columns],
        expendable,
        console.width,
    )
    printed = Table(title=Text(make_visible(title)), title_justify="left")
    for name, width in shown.widths.items():
        side: JustifyMethod = "left" if name in (*shown.texts, *_WORDS) else "right"
        printed.add_column(name, justify=side, width=width, overflow="fold")
    for row in shown.cells.to_dict("records"):
        is_ranked = row.get("#", "0").isdigit()
        cells = [Text(row[name]) for name in shown.widths]
        printed.add_row(*cells, style=None if is_ranked else "dim")
    console.print(printed)
    if shown.left_out:
        say(f"not shown in {console.width} columns: {', '.join(shown.left_out)}")


class Counter:
    """Progress of reading images: a bar on a terminal, a line every ten seconds elsewhere."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._last = time.monotonic()

    def __enter__(self) -> Counter:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` images are done; `what` names the images."""
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(escape(make_visible(what)), total=total)
        self._progress.update(self._tasks[what], completed=done)
        if not console.is_terminal and time.monotonic() - self._last > 10:
            self._last = time.monotonic()
            say(f"{what} images: {done} of {total}")


class TrainingProgress(Callback):
    """A bar with loss, accuracy and time left on a terminal; a line per epoch everywhere."""

    def __init__(self, title: str, metric: str = ranking.DEFAULT) -> None:
        self._title = title
        self._metric = metric
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeRemainingColumn(compact=True),
        )
        self._progress = Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal
        )
        self._task: TaskID | None = None
        self._epochs = 0
        self._steps = 0
        self._done = 0
        self._started = 0.0

    def __enter__(self) -> TrainingProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def on_start(self, epochs: int, steps_per_epoch: int) -> None:
        self._epochs = epochs
        self._steps = steps_per_epoch
        self._started = time.monotonic()
        self._progress.start()
        self._task = self._progress.add_task(
            escape(make_visible(self._title)), total=epochs * steps_per_epoch, shown=""
        )

    def on_resume(self, steps: int, history: Sequence[dict[str, float]]) -> None:
        epoch = len(history)
        if epoch:
            say(f"  {self._title}: goes on after epoch {epoch}")
            if self._task is not None:
                self._progress.update(self._task, completed=epoch * self._steps)
        self._done = epoch

    def on_step(self, epoch: int, loss: float, accuracy: float, lr: float) -> None:
        if self._task is not None:
            shown = (
                f"epoch {epoch}/{self._epochs} loss {loss:.4f} accuracy {format_percent(accuracy)}"
            )
            self._progress.update(self._task, advance=1, shown=shown)

    def on_epoch(self, epoch: int, values: dict[str, float], is_best: bool) -> None:
        chosen_by = ""
        if self._metric not in ("val/accuracy", "val/loss"):
            name = ranking.title(self._metric).partition(" ")[2]
            chosen_by = f" {name} {ranking.text(values[self._metric], self._metric)}"
        left = ""
        if epoch < self._epochs:
            passed = time.monotonic() - self._started
            seconds = passed / (epoch - self._done) * (self._epochs - epoch)
            left = f"  {format_duration(seconds)} left"
        say(
            f"  {self._title}: epoch {epoch}/{self._epochs}"
            f"  train loss {values['train/loss']:.4f}"
            f" accuracy {format_percent(values['train/accuracy'])}"
            f"  val loss {values['val/loss']:.4f}"
            f" accuracy {format_percent(values['val/accuracy'])}"
            f"{chosen_by}{' *' if is_best else '  '}{left}"
        )
