"""What a person sees in the terminal: lines, tables, progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pipeline import ranking
from pipeline.errors import Interrupted
from pipeline.report.tables import duration, percent
from pipeline.training.callback import Callback


class _Output(Console):
    def on_broken_pipe(self) -> None:
        """End as by a signal where nobody reads any more, as in ``train | head``; rich would exit without a reason."""
        try:
            super().on_broken_pipe()
        except SystemExit:
            raise Interrupted("its output was closed") from None


# A log file has no width of its own; the comparison needs about this much.
console = _Output(highlight=False, width=None if sys.stdout.isatty() else 140, soft_wrap=not sys.stdout.isatty())


def say(line: str = "") -> None:
    """Print one line."""
    console.print(line, markup=False)


def show_table(table: pd.DataFrame, title: str) -> None:
    """Print a table of text."""
    shown = Table(title=title, title_justify="left")
    for number, column in enumerate(table.columns):
        shown.add_column(column, justify="left" if number in (1, 2) else "right", overflow="fold")
    for row in table.itertuples(index=False):
        shown.add_row(*(Text(str(value)) for value in row), style=None if str(row[0]).isdigit() else "dim")
    console.print(shown)


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
        """Tell that `done` of `total` images are done."""
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total)
        self._progress.update(self._tasks[what], completed=done)
        if not console.is_terminal and time.monotonic() - self._last > 10:
            self._last = time.monotonic()
            say(f"{what} images: {done} of {total}")


class TrainingProgress(Callback):
    """A bar with loss, accuracy and time left on a terminal; a line per epoch everywhere."""

    def __init__(self, title: str, metric: str = ranking.DEFAULT) -> None:
        self._title, self._metric = title, metric
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[shown]}"), TimeRemainingColumn(compact=True))
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task: TaskID | None = None
        self._epochs = self._steps = self._done = 0
        self._started = 0.0

    def __enter__(self) -> TrainingProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def on_start(self, epochs: int, steps_per_epoch: int) -> None:
        self._epochs, self._steps, self._started = epochs, steps_per_epoch, time.monotonic()
        self._progress.start()
        self._task = self._progress.add_task(self._title, total=epochs * steps_per_epoch, shown="")

    def on_resume(self, epoch: int, history: Sequence[dict[str, float]]) -> None:
        if epoch:
            say(f"  {self._title}: goes on after epoch {epoch}")
            if self._task is not None:
                self._progress.update(self._task, completed=epoch * self._steps)
        self._done = epoch

    def on_step(self, epoch: int, loss: float, accuracy: float) -> None:
        if self._task is not None:
            self._progress.update(self._task, advance=1, shown=f"epoch {epoch}/{self._epochs} loss {loss:.4f} accuracy {percent(accuracy)}")

    def on_epoch(self, epoch: int, values: dict[str, float], is_best: bool) -> None:
        chosen_by = ""
        if self._metric not in ("val/accuracy", "val/loss"):
            chosen_by = f" {ranking.title(self._metric).partition(' ')[2]} {ranking.text(values[self._metric], self._metric)}"
        left = (time.monotonic() - self._started) / (epoch - self._done) * (self._epochs - epoch)
        say(
            f"  {self._title}: epoch {epoch}/{self._epochs}"
            f"  train loss {values['train/loss']:.4f} accuracy {percent(values['train/accuracy'])}"
            f"  val loss {values['val/loss']:.4f} accuracy {percent(values['val/accuracy'])}{chosen_by}{' *' if is_best else '  '}"
            + (f"  {duration(left)} left" if epoch < self._epochs else "")
        )
