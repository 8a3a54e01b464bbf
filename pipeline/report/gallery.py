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
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from pipeline.report.figures import save
from pipeline.report.fonts import drawable

MOST_MISTAKES = 24
_TINY = 64
"""Length in pixels of the longer side up to which an image is drawn smaller, as squares."""
_FONT = 8
_LINE = 0.16
"""Height of a line of text, in inches."""
_COLUMNS_PER_INCH = 15
"""Number of usual characters of a text in one inch."""
_DARK, _PALE = "#222222", "#6b7480"
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
    figure = Figure(figsize=layout.size, dpi=130)
    for number, (mistake, caption) in enumerate(zip(mistakes, captions, strict=True)):
        row, column = divmod(number, layout.num_columns)
        left = _MARGIN + column * (layout.width + _BETWEEN)
        top = layout.header_height + row * layout.row_height
        _draw_image(_add_square(figure, layout, left, top), mistake.image)
        if has_maps:
            _draw_map(_add_square(figure, layout, left + layout.side + _GAP, top), mistake)
        _write(figure, layout, left, top + layout.side, caption)
    _write(figure, layout, _MARGIN, _MARGIN / 2, layout.header, 1.2)
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


def _add_square(figure: Figure, layout: _Layout, left: float, top: float) -> Axes:
    """Add a square of the page, whose upper left corner is given in inches."""
    width, height = layout.size
    bottom = height - top - layout.side
    box = (left / width, bottom / height, layout.side / width, layout.side / height)
    axes = figure.add_axes(box)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color("#d0d5da")
    return axes


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


def _draw_image(axes: Axes, pixels: NDArray[np.uint8] | NDArray[np.float64]) -> None:
    """Draw an image of shape (3, height, width) in the middle of a square."""
    height, width = pixels.shape[1:]
    side = max(height, width)
    interpolation = "nearest" if side <= _TINY else "auto"
    axes.imshow(pixels.transpose(1, 2, 0), interpolation=interpolation)
    axes.set(
        xlim=((width - side) / 2 - 0.5, (width + side) / 2 - 0.5),
        ylim=((height + side) / 2 - 0.5, (height - side) / 2 - 0.5),
    )


def _draw_map(axes: Axes, mistake: Mistake) -> None:
    if mistake.map is None:
        axes.text(0.5, 0.5, "no map", ha="center", va="center", fontsize=_FONT, color=_PALE)
        return
    _draw_image(axes, _lay_over(mistake.image, mistake.map))
    if not mistake.map.any():
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8}
        place = axes.transAxes
        style = {"ha": "center", "va": "bottom", "fontsize": _FONT - 1}
        axes.text(0.5, 0.06, "no part stands out", style, transform=place, bbox=box)


def _lay_over(image: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return a grey image with a map in colours over it, of shape (3, height, width), 0 to 1.

    A tiny image is enlarged, so that the map can be smooth over its pixels.
    """
    times = max(1, 256 // max(image.shape[1:]))
    grey = np.tensordot(_GREY, image / 255, axes=1)
    grey = grey.repeat(times, axis=0).repeat(times, axis=1)
    resized = Image.fromarray(heat.astype(np.float32)).resize(
        grey.shape[::-1], Image.Resampling.BICUBIC
    )
    strength = np.clip(np.asarray(resized, dtype=np.float64), 0, 1)
    colours = matplotlib.colormaps[_HEAT](strength)[..., :3]
    cover = _STRONGEST * strength[..., None]
    return np.moveaxis((1 - cover) * grey[..., None] + cover * colours, 2, 0)
