"""The page of mistakes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.report.gallery import MOST_MISTAKES, Mistake, _describe, _shorten, draw_gallery


def mistakes(number: int, side: int = 32, maps: bool = True, text: str = "class") -> list[Mistake]:
    rng = np.random.default_rng(0)
    found = []
    for place in range(number):
        image = rng.integers(0, 255, (3, side, side), dtype=np.uint8)
        heat = rng.random((4, 4), dtype=np.float32) if maps else None
        found.append(Mistake(image, f"{text} a", f"{text} b", 0.9, heat, f"{text} {place}.png"))
    return found


def size_of(file: Path) -> tuple[int, int]:
    with Image.open(file) as picture:
        return picture.size


@pytest.mark.parametrize("maps", [True, False])
@pytest.mark.parametrize("number", [1, MOST_MISTAKES])
@pytest.mark.parametrize("side", [8, 224])
def test_it_is_drawn_for_any_number(tmp_path: Path, number: int, maps: bool, side: int) -> None:
    file = tmp_path / "mistakes.png"
    draw_gallery(file, mistakes(number, side, maps), number)
    width, height = size_of(file)
    assert 200 < width < 2000 and 150 < height < 3000


def test_names_that_a_figure_would_read_as_a_formula_are_drawn(tmp_path: Path) -> None:
    file = tmp_path / "mistakes.png"
    draw_gallery(file, mistakes(2, text="$\\frac{1}$ 犬の写真と長い名前 " * 5), 2)
    assert size_of(file)[0] > 200


@pytest.mark.parametrize(
    ("shown", "there_are", "expected"),
    [
        (1, 1, "The only mistake."),
        (3, 3, "3 mistakes, the most confident first."),
        (12, 1500, "The 12 most confident of 1,500 mistakes."),
    ],
)
def test_it_says_how_many_there_are(shown: int, there_are: int, expected: str) -> None:
    assert _describe(shown, there_are, has_maps=False) == expected
    assert _describe(shown, there_are, has_maps=True).startswith(f"{expected} Left:")


def test_a_long_name_keeps_both_ends() -> None:
    assert _shorten("a" * 20 + "z" * 20, 11) == "aaaaa…zzzzz"
    assert _shorten("short", 11) == "short"
