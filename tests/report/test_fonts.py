"""Texts in any script are drawn with fonts that are there, and what none of them has is said."""

from __future__ import annotations

import os
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image

from pipeline.report import confusion_figures, fonts
from tests.conftest import PROJECT

pytestmark = pytest.mark.filterwarnings("error")

PRIVATE, OTHER = "\U00100001", "\U00100002"
"""Characters that belong to no script: no font but one made for them has them."""


def make_font(file: Path, characters: str) -> None:
    """Write a font in which each character is a filled square."""
    pen = TTGlyphPen(None)
    for place in ((0, 0), (0, 800), (800, 800), (800, 0)):
        (pen.lineTo if place != (0, 0) else pen.moveTo)(place)
    pen.closePath()
    square = pen.glyph()
    builder = FontBuilder(1000)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap({ord(character): "square" for character in characters})
    builder.setupGlyf({".notdef": square, "square": square})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "square": (1000, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": file.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(file)


@pytest.fixture
def own_font(tmp_path: Path) -> Iterator[str]:
    """The family of a font that has PRIVATE, and only as long as a test lasts."""
    before = list(font_manager.fontManager.ttflist)
    make_font(tmp_path / "Squares.ttf", PRIVATE)
    font_manager.fontManager.addfont(tmp_path / "Squares.ttf")
    fonts._fonts.clear()
    yield "Squares"
    font_manager.fontManager.ttflist[:] = before
    fonts._fonts.clear()


def darkness(file: Path, name: str) -> int:
    confusion_figures.draw_confusion_matrix(
        file, np.zeros((2, 2), dtype=np.int64), [name, "a"], "title"
    )
    with Image.open(file) as image:
        return int((np.asarray(image.convert("L")) < 100).sum())


def test_a_name_is_drawn_by_a_font_that_has_it(tmp_path: Path, own_font: str) -> None:
    assert fonts.is_drawable(PRIVATE)
    assert fonts.families([f"a{PRIVATE}"])[-1] == own_font
    # Filled squares instead of the outline of one.
    assert (
        darkness(tmp_path / "own.png", PRIVATE * 8)
        > darkness(tmp_path / "none.png", fonts.INSTEAD * 8) + 500
    )


def test_what_no_font_has_is_a_box_and_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    fonts._fonts.clear()
    assert fonts.drawable([f"a{OTHER}", OTHER]) == [f"a{fonts.INSTEAD}", fonts.INSTEAD]
    assert not fonts.is_drawable(OTHER)
    out = capsys.readouterr().out
    assert (
        out.count("\n") == 1 and "1 characters that no installed font has" in out and OTHER in out
    )
    assert fonts.drawable([OTHER]) == [fonts.INSTEAD]
    assert capsys.readouterr().out == ""


def test_a_name_that_cannot_be_drawn_is_told_by_its_number(tmp_path: Path) -> None:
    names = confusion_figures._make_names_drawable(["cat", OTHER, "dog"], [1, 2])
    assert names == [f"1 {fonts.INSTEAD}", "dog"]


@pytest.mark.parametrize(
    "text", ["resnet18, lr 0.001", "Kätzchen", "œuvre", "γάτα", "Кошка", "a\u200bb", ""]
)
def test_what_the_usual_font_has_needs_no_other(text: str) -> None:
    assert fonts.families([text]) == fonts.families([])


def test_names_are_composed_as_fonts_have_them() -> None:
    apart = unicodedata.normalize("NFD", "고양이 é")
    assert apart != "고양이 é"
    assert fonts.drawable([apart]) == fonts.drawable(["고양이 é"])


def test_a_formula_is_no_formula() -> None:
    assert fonts.drawable(["$x$"]) == [r"\$x\$"]


def test_marks_that_only_shape_are_no_missing_characters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert all(fonts.is_drawable(text) for text in ("a\u200d", "a\ufe0f", "\u2067a\u2069"))
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_a_font_installed_later_is_found(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "XDG_DATA_HOME": str(tmp_path),
        "MPLCONFIGDIR": str(tmp_path / "cache"),
        "PYTHONPATH": str(PROJECT),
    }
    ask = f"from pipeline.report import fonts; print(fonts.is_drawable({PRIVATE!r}))"

    def answer() -> list[str]:
        asked = subprocess.run(
            [sys.executable, "-c", ask],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            encoding="utf-8",
        )
        assert asked.stderr == ""
        return asked.stdout.splitlines()

    first = answer()
    assert len(first) == 2 and "no installed font has" in first[0] and first[1] == "False"
    (tmp_path / "fonts").mkdir()
    make_font(tmp_path / "fonts" / "Squares.ttf", PRIVATE)
    # Matplotlib's own list of fonts, in its cache, does not have it.
    assert answer() == ["True"]


def test_a_folder_for_caches_that_cannot_be_made_is_no_line_on_the_console(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    environment = {
        **os.environ,
        "MPLCONFIGDIR": str(tmp_path / "file" / "cache"),
        "PYTHONPATH": str(PROJECT),
    }
    done = subprocess.run(
        [sys.executable, "-c", "import pipeline.report.figures"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")
