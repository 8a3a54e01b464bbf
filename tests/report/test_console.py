"""Tables and lines on terminals of any width."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from pipeline import ranking
from pipeline.report import console, people_table, tables
from tests.report.test_tables import row

WIDTHS = [40, 60, 80, 100, 140, 250]

Terminal = Callable[[int], io.StringIO]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """The console on a terminal of so many columns, and what it prints."""

    def of_width(width: int) -> io.StringIO:
        printed = io.StringIO()
        screen = console._Output(
            highlight=False,
            width=width,
            force_terminal=True,
            color_system=None,
            soft_wrap=False,
            file=printed,
        )
        monkeypatch.setattr(console, "console", screen)
        return printed

    return of_width


def test_a_line_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("data from folder:phone: 1 run :smile: [red]x[/red] from folder:rose:")
    assert (
        capsys.readouterr().out
        == "data from folder:phone: 1 run :smile: [red]x[/red] from folder:rose:\n"
    )


def study(count: int = 20, metric: str = "val/accuracy") -> pd.DataFrame:
    """Return the table of runs that differ in many settings."""
    rows = []
    for number in range(count):
        settings: dict[str, Any] = {
            "model.freeze": "backbone" if number % 3 else "none",
            "optimizer.lr": 1.234567e-5 * (number + 1),
            "optimizer.weight_decay": 10.0 ** -(number % 5 + 2),
            "training.label_smoothing": 0.1 * (number % 2),
            "data.image_size": 32 * (1 + number % 2),
            "optimizer.betas": [0.9, 0.999 if number % 2 else 0.99],
        }
        values = {
            "run_name": f"{number:02d} mobilenet_v3_small",
            "val_accuracy": 1 - number / 100,
            "val_loss": 12.3456 + number,
        }
        values |= {
            "test_accuracy": 0.9 if number < 15 else None,
            "parameters": (26154, 11181642)[number % 2],
            "seconds": 4000.0 * number,
        }
        values |= {
            "state": "complete" if number < 17 else "interrupted",
            "metric": metric,
            "value": 0.5,
        }
        rows.append(row(f"r{number}", settings, **values))
    return people_table.table_for_people(rows, metric)


def cells(printed: str) -> list[list[str]]:
    """Return the texts of each printed line of a table's body."""
    return [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in printed.splitlines()
        if line.startswith("│")
    ]


def left_out(printed: str) -> list[str]:
    """Return the columns that are said not to be shown."""
    _, _, said = " ".join(printed.split()).partition("not shown in ")
    return said.partition(": ")[2].split(", ") if said else []


def numbers(text: str) -> list[str]:
    return [
        word
        for word in re.split(r"[\s,]+", text)
        if re.fullmatch(r"[\[(]?[\d.]+(e-?\d+)?[%)\]]?", word)
    ]


@pytest.mark.parametrize("width", WIDTHS)
def test_no_number_of_a_comparison_is_broken(terminal: Terminal, width: int) -> None:
    printed, table = terminal(width), study()
    console.show_table(table, "Comparison", expendable=people_table.least_important("val/accuracy"))
    lines = printed.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    shown = [text for line in cells(printed.getvalue()) for text in line]
    allowed = {number for text in table.to_numpy().ravel() for number in numbers(text)}
    assert {number for text in shown for number in numbers(text)} <= allowed
    # Each cell of figures stands on one line.
    for column in ("val accuracy", "test accuracy (95%)", "parameters", "time"):
        if column not in left_out(printed.getvalue()):
            assert {text for text in table[column] if text} <= set(shown), column


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("metric", ["val/accuracy", "val/loss", "val/f1_macro"])
def test_rank_run_settings_and_what_ranks_are_always_shown(
    terminal: Terminal, width: int, metric: str
) -> None:
    printed, table = terminal(width), study(6, metric)
    console.show_table(table, "Comparison", expendable=people_table.least_important(metric))
    columns = list(zip(*cells(printed.getvalue()), strict=True))
    texts = ["".join(cell.replace(" ", "") for cell in column) for column in columns]
    assert texts[0] == "".join(table["#"])
    # Run and settings side by side, or below each other.
    apart = ["".join(table[name]).replace(" ", "") for name in ("run", "settings")]
    below = "".join(table["run"] + table["settings"]).replace(" ", "")
    assert texts[1:3] == apart or texts[1] == below
    ranked = ranking.title(metric).replace("validation", "val")
    assert set(table[ranked]) <= {cell for column in columns for cell in column}


def test_what_is_left_out_is_named(terminal: Terminal) -> None:
    narrow = terminal(60)
    console.show_table(
        study(3), "Comparison", expendable=people_table.least_important("val/accuracy")
    )
    assert left_out(narrow.getvalue()) == ["parameters", "time", "test accuracy (95%)"]
    wide = terminal(200)
    console.show_table(
        study(3), "Comparison", expendable=people_table.least_important("val/accuracy")
    )
    assert left_out(wide.getvalue()) == []
    assert cells(wide.getvalue())[0][:2] == ["1", "00 mobilenet_v3_small"]


@pytest.mark.parametrize("width", WIDTHS)
def test_no_number_of_the_scores_per_class_is_broken(terminal: Terminal, width: int) -> None:
    names = [
        "cat",
        "a long name of a class with spaces",
        "averyveryverylongnamewithoutanyspacesatall",
        "大熊猫" * 9,
    ]
    scores = pd.DataFrame(
        {"class": names, "precision": 1.0, "recall": 0.51234, "f1": 0.25, "images": 123456}
    )
    printed = terminal(width)
    table, title = tables.scores_table(scores)
    console.show_table(table, title, ["class"], ["images", "precision"])
    shown = [text for line in cells(printed.getvalue()) for text in line]
    assert shown.count("25.00%") == shown.count("51.23%") == 4
    assert shown.count("123456") == (0 if "images" in left_out(printed.getvalue()) else 4)


@pytest.mark.parametrize("width", [1, 10, 20])
def test_a_terminal_that_is_too_narrow_for_anything_is_no_error(
    terminal: Terminal, width: int
) -> None:
    printed = terminal(width)
    console.show_table(
        study(2), "Comparison", expendable=people_table.least_important("val/accuracy")
    )
    assert printed.getvalue()


def test_a_table_without_rows_is_no_error(terminal: Terminal) -> None:
    printed = terminal(80)
    console.show_table(people_table.table_for_people([]), "Comparison")
    assert printed.getvalue().strip() == ""


@pytest.mark.parametrize("width", [20, 40, 60])
def test_lines_go_on_at_a_space_and_addresses_stay_whole(terminal: Terminal, width: int) -> None:
    address = "http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning"
    line = f"  then open [the] trainings: {address} epoch 1/2  train loss 1.2867 accuracy 60.62%"
    printed = terminal(width)
    console.say(line)
    lines = printed.getvalue().splitlines()
    assert " ".join(printed.getvalue().split()) == " ".join(line.split())
    assert all(len(part) <= width or part == address for part in lines) and address in lines


def test_a_file_gets_each_line_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(
        console,
        "console",
        console._Output(highlight=False, width=140, soft_wrap=True, file=written),
    )
    console.say("word " * 100)
    assert written.getvalue() == "word " * 100 + "\n"


def test_notes_stand_one_below_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"#": "1", "run": "00 small_cnn", "notes": "still improving (2 of 3), badly calibrated"}
    console.show_table(pd.DataFrame([row]), "runs")
    lines = capsys.readouterr().out.splitlines()
    assert any("still improving (2 of 3), │" in line for line in lines)
    assert any("│ badly calibrated " in line for line in lines)
