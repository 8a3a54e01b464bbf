"""The errors a user can meet, and the nearest valid name in them."""

from __future__ import annotations

import pytest

from pipeline.errors import (
    Interrupted,
    PipelineError,
    TrainingFailed,
    UserError,
    nearest,
    unknown_name,
)


def test_findings_stand_indented_below_the_message() -> None:
    assert str(UserError("2 images cannot be read", ["a.png: empty", "b.png: truncated"])) == (
        "2 images cannot be read\n  a.png: empty\n  b.png: truncated"
    )


def test_an_error_without_findings_is_one_line() -> None:
    assert str(UserError("no such file")) == "no such file"


@pytest.mark.parametrize("kind", [UserError, PipelineError])
def test_of_a_long_line_the_middle_is_left_out(kind: type[PipelineError]) -> None:
    shown = str(kind(f"table.csv has no column 'image'; columns: {'x' * 100_000}, label"))
    assert (
        shown.startswith("table.csv has no column 'image'; columns: xxx")
        and shown.endswith("xxx, label")
        and len(shown) < 3010
    )
    assert str(UserError("wrong", ["y" * 100_000])).count("y") == 3000


@pytest.mark.parametrize("kind", [UserError, TrainingFailed])
def test_what_ends_a_step_is_a_pipeline_error(kind: type[BaseException]) -> None:
    assert issubclass(kind, PipelineError)


def test_except_exception_does_not_swallow_an_interruption() -> None:
    swallowed = False
    with pytest.raises(KeyboardInterrupt):
        try:
            raise Interrupted("SIGTERM")
        except Exception:
            swallowed = True
    assert not swallowed


@pytest.mark.parametrize(
    ("given", "expected"),
    [("resnet81", "; nearest: resnet18"), ("Adam", "; nearest: adam"), ("xyz", ""), ("", "")],
)
def test_nearest_name(given: str, expected: str) -> None:
    assert nearest(given, ["adam", "resnet18", "squeezenet1_1"]) == expected


def test_nearest_of_no_names_is_empty() -> None:
    assert nearest("adam", []) == ""


def test_unknown_name_tells_what_was_given_the_nearest_and_what_is_allowed() -> None:
    assert str(unknown_name("source", "digit", ["digits", "folder:PATH"])) == (
        "unknown source 'digit'; nearest: digits; allowed: digits, folder:PATH"
    )


def test_a_long_list_of_names_is_cut_and_counted() -> None:
    message = str(unknown_name("model.name", "model7", (f"model{number}" for number in range(50))))
    assert "nearest: model7" in message
    assert "model11, … (50 in all)" in message
    assert "model12," not in message
