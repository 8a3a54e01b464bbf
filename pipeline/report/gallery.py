"""A page of pictures that were classified wrongly, and where the network looked."""

from __future__ import annotations

import math
import textwrap
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from pipeline.report.figures import save
from pipeline.report.fonts import drawable

MOST_MISTAKES = 12
_TINY = 64
"""Length in pixels of the longer side up to which an image is drawn smaller, as squares."""
_DPI = 100
_FONT = 8
_LINE = 0.16
"""Height of a line of text, in inches."""
_COLUMNS_PER_INCH = 15
"""Number of usual characters of a text in one inch."""
_DARK, _PALE, _FRAME = "#222222", "#6b7480", "#d0d5da"
_MARGIN, _GAP, _BETWEEN = 0.15, 0.05, 0.3
_NARROWEST = 2.2
_WIDTH = 11.3
_HEAT = "autumn_r"
_STRONGEST = 0.75
"""How much of the colour covers the image where the map is 1."""
_GREY = (0.299, 0.587, 0.114)


class Mistake(NamedTuple):
    """An image that was classified wrongly.

    Attributes:
        image: Pixels of shape (3, height, width).
        true: Name of its class.
        predicted: Name of the class that was predicted.
        confidence: Probability of the prediction, from 0 to 1.
        map: The parts that spoke for the prediction, from 0 to 1, of any shape (height, width);
            None if the network gives no map.
        name: Name of its file.
    """

    image: NDArray[np.uint8]
    true: str
    predicted: str
    confidence: float
    map: NDArray[np.float32] | None
    name: str


class _Layout(NamedTuple):
    """Sizes of the page in inches, if nothing else is said.

    Attributes:
        side: Side of the square that an image is drawn in.
        width: Width of an image, or of two side by side, and of the text below.
        num_columns: Number of mistakes side by side.
        num_rows: Number of rows of mistakes.
        text_lines: Number of lines of text below an image.
        header: Lines of text above all.
    """

    side: float
    width: float
    num_columns: int
    num_rows: int
    text_lines: int
    header: list[str]

    @property
    def row_height(self) -> float:
        return self.side + self.text_lines * _LINE + _BETWEEN

    @property
    def header_height(self) -> float:
        return len(self.header) * 1.2 * _LINE + 2 * _MARGIN

    @property
    def size(self) -> tuple[float, float]:
        width = self.num_columns * (self.width + _BETWEEN) - _BETWEEN + 2 * _MARGIN
        return width, self.header_height + self.num_rows * self.row_height


def draw_gallery(file: Path, mistakes: Sequence[Mistake], num_all: int) -> None:
    """Draw mistakes: the image, the image with the map over it, the classes and the file's name.

    Args:
        file: PNG to write.
        mistakes: What is drawn, in this order, at least one.
        num_all: Number of mistakes that there are.
    """
    has_maps = any(mistake.map is not None for mistake in mistakes)
    captions, layout = _plan(mistakes, num_all, has_maps)
    figure = Figure(figsize=layout.size, dpi=_DPI)
    page = Image.new("RGB", (round(layout.size[0] * _DPI), round(layout.size[1] * _DPI)), "white")
    for number, (mistake, caption) in enumerate(zip(mistakes, captions, strict=True)):
        row, column = divmod(number, layout.num_columns)
        left = _MARGIN + column * (layout.width + _BETWEEN)
        top = layout.header_height + row * layout.row_height
        _paste(page, mistake.image, layout.side, left, top)
        if has_maps:
            beside = left + layout.side + _GAP
            _paste(page, _lay_over(mistake.image, mistake.map), layout.side, beside, top)
            middle = beside + layout.side / 2, top + layout.side * 0.85
            _write_over(figure, layout, *middle, _describe_map(mistake.map))
        _write(figure, layout, left, top + layout.side, caption)
    _write(figure, layout, _MARGIN, _MARGIN / 2, layout.header, 1.2)
    # One picture for all images: an axis for each takes three times as long.
    figure.figimage(np.asarray(page), origin="upper")
    save(figure, file)


def _plan(
    mistakes: Sequence[Mistake], num_all: int, has_maps: bool
) -> tuple[list[list[str]], _Layout]:
    """Return the lines of text below each image, and the sizes of the page."""
    longest = max(max(mistake.image.shape[1:]) for mistake in mistakes)
    side = 1.2 if has_maps and longest <= _TINY else 1.7
    width = max(_NARROWEST, 2 * side + _GAP if has_maps else side)
    captions = _write_captions(mistakes, int(width * _COLUMNS_PER_INCH))
    most = round(_WIDTH / (width + _BETWEEN))
    num_columns = max(1, min(most, len(mistakes)))
    num_rows = math.ceil(len(mistakes) / num_columns)
    header = _describe(len(mistakes), num_all, has_maps)
    wrapped = textwrap.wrap(header, int((num_columns * width) * 0.9 * _COLUMNS_PER_INCH))
    return captions, _Layout(side, width, num_columns, num_rows, len(captions[0]), wrapped)


def _describe(num_shown: int, num_all: int, has_maps: bool) -> str:
    parts = [f"{num_all:,} mistakes, the most confident first."]
    if num_all == 1:
        parts = ["The only mistake."]
    elif num_all > num_shown:
        parts = [f"The {num_shown} most confident of {num_all:,} mistakes."]
    if has_maps:
        parts.append(
            "Left: the image. Right, in red: the parts that spoke most for the prediction."
        )
    return " ".join(parts)


def _write_captions(mistakes: Sequence[Mistake], num_columns: int) -> list[list[str]]:
    """Return the lines of text below each image, equally many below each.

    The classes share one line if that is long enough for all of them.
    """
    room = num_columns - len("predicted  (100%)")
    classes = []
    names = []
    for mistake in mistakes:
        predicted = f"predicted {_shorten(mistake.predicted, room)} ({mistake.confidence:.0%})"
        classes.append((f"true {_shorten(mistake.true, room)},", predicted))
        names.append(_shorten(mistake.name, num_columns))
    is_short = all(_measure(" ".join(pair)) <= num_columns for pair in classes)
    texts = []
    for pair, name in zip(classes, names, strict=True):
        texts += [" ".join(pair), name] if is_short else [*pair, name]
    lines = 2 if is_short else 3
    shown = drawable(texts)
    return [shown[start : start + lines] for start in range(0, len(shown), lines)]


def _shorten(text: str, most: int) -> str:
    """Return a text, without its middle if it is too long: names differ at one of the ends."""
    text = unicodedata.normalize("NFC", text)
    if _measure(text) <= most:
        return text
    start, end = text, text
    while _measure(start) > most // 2:
        start = start[:-1]
    while _measure(end) > most - most // 2 - 1:
        end = end[1:]
    return f"{start}…{end}"


def _measure(text: str) -> int:
    """Return the width of a text in usual characters; those of East Asia are twice as wide."""
    return len(text) + sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)


def _paste(
    page: Image.Image, pixels: NDArray[np.uint8], side: float, left: float, top: float
) -> None:
    """Put an image of shape (3, height, width) into the middle of a square, lengths in inches."""
    length = round(side * _DPI)
    x, y = round(left * _DPI), round(top * _DPI)
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    scale = length / max(image.size)
    kind = Image.Resampling.NEAREST if max(image.size) <= _TINY else Image.Resampling.LANCZOS
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    page.paste(_FRAME, (x - 1, y - 1, x + length + 1, y + length + 1))
    page.paste("white", (x, y, x + length, y + length))
    page.paste(image.resize(size, kind), (x + (length - size[0]) // 2, y + (length - size[1]) // 2))


def _describe_map(heat: NDArray[np.float32] | None) -> str:
    if heat is None:
        return "no map"
    return "" if heat.any() else "no part stands out"


def _write_over(figure: Figure, layout: _Layout, left: float, top: float, text: str) -> None:
    """Write a text over an image, around a place in inches."""
    if text:
        width, height = layout.size
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8}
        style = {"ha": "center", "va": "center", "fontsize": _FONT - 1, "color": _DARK}
        figure.text(left / width, 1 - top / height, text, style, bbox=box)


def _write(
    figure: Figure,
    layout: _Layout,
    left: float,
    top: float,
    lines: Sequence[str],
    spacing: float = 1,
) -> None:
    width, height = layout.size
    for number, line in enumerate(lines):
        below = top + 0.05 + number * spacing * _LINE
        is_name = spacing == 1 and number == len(lines) - 1
        figure.text(
            left / width,
            1 - below / height,
            line,
            fontsize=_FONT * spacing,
            va="top",
            color=_PALE if is_name else _DARK,
        )


def _lay_over(image: NDArray[np.uint8], heat: NDArray[np.float32] | None) -> NDArray[np.uint8]:
    """Return a grey image with a map in colours over it, of shape (3, height, width).

    A tiny image is enlarged, so that the map can be smooth over its pixels.
    """
    times = max(1, 256 // max(image.shape[1:]))
    grey = np.tensordot(_GREY, image / 255, axes=1)
    grey = grey.repeat(times, axis=0).repeat(times, axis=1)
    if heat is None:
        heat = np.zeros((1, 1), np.float32)
    resized = Image.fromarray(heat.astype(np.float32)).resize(
        grey.shape[::-1], Image.Resampling.BICUBIC
    )
    strength = np.clip(np.asarray(resized, dtype=np.float64), 0, 1)
    colours = matplotlib.colormaps[_HEAT](strength)[..., :3]
    cover = _STRONGEST * strength[..., None]
    mixed = (1 - cover) * grey[..., None] + cover * colours
    return np.moveaxis((255 * mixed).round().astype(np.uint8), 2, 0)
