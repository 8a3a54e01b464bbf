"""A CSV that names images and their classes, and perhaps their split and group."""

from __future__ import annotations

import codecs
import csv
import io
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pipeline.config import Data
from pipeline.data.sources.image_lookup import Images, WrongRow
from pipeline.data.sources.source import MOST_BYTES, SPLIT_NAMES, SPLITS, Files, Item, Source
from pipeline.errors import UserError, first_line, nearest
from pipeline.files import read_regular

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""Characters that would break up a line of a table or a message."""
_DELIMITERS = (",", ";", "\t")
_SEPARATOR_LINE = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)
"""Line that spreadsheets write above the first row: it tells other spreadsheets the delimiter."""
_Row = tuple[int, list[str]]
"""The number of the line that a row begins in, and the row's fields."""


def open_csv(path: str, data: Data) -> Source:
    """List the images that a CSV names; whether their files exist shows when they are read.

    Args:
        path: Path of the CSV.
        data: Names of the columns, root of the images, and the second CSV with the labels, if there
            is one.

    Raises:
        UserError: A file or a column is missing, or rows are wrong: all of them are listed.
    """
    table = _read("data.source", path, data.image_column)
    rows = _Rows(table, data, _open_images(table.file, data))
    if not table.rows:
        raise UserError(f"data.source: {path!r} has no rows below its column names")
    labels = [""] * len(table.rows)
    if data.labels:
        labels = _read_second_labels(table, data, rows.images)
    items = []
    findings = []
    for (line, fields), label in zip(table.rows, labels, strict=True):
        try:
            items.append(rows.make_item(line, fields, label))
        except WrongRow as error:
            findings.append(f"line {line}: {error}")
    _refuse_rows(table, findings)
    return Source(str(table.file.resolve()), Files(rows.images.root), items)


def load_further_columns(path: str, data: Data) -> dict[str, dict[str, str]]:
    """Return what a CSV says of its images beside class, split and group.

    Args:
        path: Path of the CSV.
        data: As for `open_csv`.

    Returns:
        For each further column, by its name, the value of each image by its path. Columns whose
        name is empty or stands twice are left out.

    Raises:
        UserError: The file, or the column of the images, is missing.
    """
    table = _read("data.source", path, data.image_column)
    images = _open_images(table.file, data)
    used = {data.image_column, data.label_column, data.split_column, data.group_column, ""}
    place = table.find_column("image_column", data.image_column)
    columns: dict[str, dict[str, str]] = {}
    for number, name in enumerate(table.columns):
        if name in used or table.columns.count(name) > 1:
            continue
        values = columns.setdefault(name, {})
        for _, fields in table.rows:
            if len(fields) == len(table.columns):
                with suppress(WrongRow):
                    values[images.find(fields[place].strip())] = fields[number].strip()
    return columns


@dataclass(frozen=True)
class _Table:
    """A CSV.

    Attributes:
        setting: The setting that names it, for messages.
        path: Its path, as the user has written it.
        columns: Names of the columns.
        rows: The rows below the names of the columns.
    """

    setting: str
    path: str
    columns: list[str]
    rows: list[_Row]

    @property
    def file(self) -> Path:
        return Path(self.path).expanduser()

    def find_optional_column(self, setting: str, name: str) -> int | None:
        """Return the number of a column; None if there is none and its name is the default."""
        if name not in self.columns and name == Data.model_fields[setting].default:
            return None
        return self.find_column(setting, name)

    def find_column(self, setting: str, name: str) -> int:
        """Return the number of a column.

        Raises:
            UserError: There is none of that name, or more than one.
        """
        found = self.columns.count(name)
        if found == 1:
            return self.columns.index(name)
        shown = [_show_column(column) for column in self.columns]
        problem = f"has {found} columns {name!r}"
        if not found:
            problem = f"has no column {name!r} (data.{setting}){nearest(name, shown)}"
        raise UserError(f"{self.setting}: {self.path!r} {problem}; columns: {', '.join(shown)}")

    def check(self, fields: list[str]) -> None:
        if not fields:
            raise WrongRow("empty line")
        if len(fields) != len(self.columns):
            noun = "field" if len(fields) == 1 else "fields"
            raise WrongRow(f"{len(fields)} {noun}, expected {len(self.columns)}")


def _show_column(name: str) -> str:
    return repr(name) if _CONTROL.search(name) else name


def _read(setting: str, path: str, column: str) -> _Table:
    """Read a table.

    Args:
        setting: The setting that names the table, for messages.
        path: Path of the CSV.
        column: Name of a column that the table probably has; it shows which delimiter is right.
    """
    text = _read_text(setting, path)
    start = 1
    said = _SEPARATOR_LINE.match(text)
    if said:
        text = text[said.end() :]
        start = 2
        delimiter = said[1]
    else:
        delimiter = _find_delimiter(text, column)
    rows = _parse_rows(text, delimiter, start, f"{setting}: {path!r}")
    while rows and len(rows[-1][1]) < 2 and _is_blank(rows[-1][1]):
        rows.pop()
    if not rows:
        raise UserError(f"{setting}: {path!r} is empty; its first line must name the columns")
    columns = [name.strip() for name in rows[0][1]]
    # Spreadsheets write rows of nothing but delimiters for cells that were emptied.
    below = [row for row in rows[1:] if len(row[1]) < 2 or not _is_blank(row[1])]
    return _Table(setting, path, columns, below)


def _is_blank(fields: list[str]) -> bool:
    return not "".join(fields).strip()


def _read_text(setting: str, path: str) -> str:
    file = Path(path).expanduser()
    try:
        content = read_regular(file, MOST_BYTES).removeprefix(codecs.BOM_UTF8)
    except (FileNotFoundError, NotADirectoryError) as error:
        siblings = []
        if file.parent.is_dir():
            siblings = [str(other) for other in file.parent.glob("*.csv")]
        raise UserError(
            f"{setting}: file {path!r} does not exist{nearest(str(file), siblings)}"
        ) from error
    except OSError as error:
        raise UserError(f"{setting}: {path!r} cannot be read: {error.strerror or error}") from error
    # Spreadsheets write "Unicode text" as UTF-16.
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if is_utf16 else "utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{setting}: {path!r}, line {line}: not UTF-8; save the file in that encoding"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{setting}: {path!r}, line {line}: a zero byte; this is no text")
    return text


def _find_delimiter(text: str, column: str) -> str:
    """Return the delimiter with which the first row has a column of that name.

    If there is none, return the one with which the first row has most columns.
    """
    columns: dict[str, list[str]] = {}
    for delimiter in _DELIMITERS:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        with suppress(csv.Error, StopIteration):
            columns[delimiter] = [name.strip() for name in next(reader)]
    for delimiter, names in columns.items():
        if column in names:
            return delimiter
    return max(columns, key=lambda delimiter: len(columns[delimiter]), default=",")


def _parse_rows(text: str, delimiter: str, start: int, table: str) -> list[_Row]:
    # Strict: a quotation mark that is never closed would swallow the rows below it as one field.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    rows = []
    line = start
    try:
        for fields in reader:
            rows.append((line, fields))
            line = start + reader.line_num
    except csv.Error as error:
        raise UserError(
            f"{table}, line {line}: {first_line(error)}; is a quotation mark missing?"
        ) from error
    return rows


def _refuse_rows(table: _Table, findings: list[str]) -> None:
    if len(findings) == 1:
        raise UserError(f"{table.setting}: {table.path!r}, {findings[0]}")
    if findings:
        raise UserError(f"{table.setting}: {table.path!r} has {len(findings)} wrong rows", findings)


def _open_images(file: Path, data: Data) -> Images:
    root = Path(data.root).expanduser() if data.root else file.parent
    if not root.is_dir():
        siblings = []
        if root.parent.is_dir():
            siblings = [str(other) for other in root.parent.glob("*") if other.is_dir()]
        raise UserError(
            f"data.root: folder {data.root!r} does not exist{nearest(str(root), siblings)}"
        )
    return Images(root.resolve(), root.absolute())


def _read_second_labels(images: _Table, data: Data, files: Images) -> list[str]:
    """Return the labels of `data.labels`, one for each row of the first CSV, which is `images`."""
    table = _read("data.labels", data.labels, data.label_column)
    if len(table.rows) != len(images.rows):
        raise UserError(
            f"data.labels: {data.labels!r} has {len(table.rows)} and {images.path!r} has "
            f"{len(images.rows)} rows below the column names; "
            "each image needs its label in the same row"
        )
    label_column = 0
    other_column = None
    if len(table.columns) != 1:
        label_column = table.find_column("label_column", data.label_column)
        if data.image_column in table.columns:
            other_column = table.find_column("image_column", data.image_column)
    image_column = images.find_column("image_column", data.image_column)
    labels = []
    findings = []
    for (line, fields), (image_line, image_fields) in zip(table.rows, images.rows, strict=True):
        try:
            table.check(fields)
            labels.append(_parse_label(fields[label_column]))
        except WrongRow as error:
            findings.append(f"line {line}: {error}")
            continue
        if other_column is not None and len(image_fields) == len(images.columns):
            name = image_fields[image_column].strip()
            other = fields[other_column].strip()
            if files.found(name) != files.found(other):
                findings.append(
                    f"line {line}: image {other!r}, "
                    f"but {name!r} in line {image_line} of {images.path}"
                )
    _refuse_rows(table, findings)
    return labels


def _parse_label(text: str) -> str:
    label = text.strip()
    if not label:
        raise WrongRow("empty label")
    if _CONTROL.search(label):
        raise WrongRow(f"label {label!r} has control characters")
    return label


class _Rows:
    """Turns the rows of a table into items, one after another."""

    def __init__(self, table: _Table, data: Data, images: Images) -> None:
        self.images = images
        self._table = table
        self._image = table.find_column("image_column", data.image_column)
        self._label = None if data.labels else table.find_column("label_column", data.label_column)
        self._split = table.find_optional_column("split_column", data.split_column)
        self._group = table.find_optional_column("group_column", data.group_column)
        self._lines: dict[str, int] = {}

    def make_item(self, line: int, fields: list[str], second_label: str) -> Item:
        """Return the item of a row; `second_label` is its label in the second CSV, if any."""
        self._table.check(fields)
        path = self.images.find(fields[self._image].strip())
        label = second_label
        if self._label is not None:
            label = _parse_label(fields[self._label])
        split = "" if self._split is None else _parse_split(fields[self._split])
        group = "" if self._group is None else fields[self._group].strip()
        first = self._lines.setdefault(path, line)
        if first != line:
            raise WrongRow(f"{path!r} is in line {first} already")
        return Item(path, label, split, group)


def _parse_split(text: str) -> str:
    name = text.strip().lower()
    if name and name not in SPLIT_NAMES:
        raise WrongRow(_describe_unknown_split(text))
    return SPLIT_NAMES[name] if name else ""


@cache
def _describe_unknown_split(text: str) -> str:
    # Cached, since all rows may have the same wrong split, and the nearest name takes long to find.
    allowed = ", ".join(SPLITS)
    return f"unknown split {text!r}{nearest(text, SPLIT_NAMES)}; allowed: {allowed}, or empty"
