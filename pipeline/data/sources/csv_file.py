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
"""What would tear apart a line of a table or a message."""
_DELIMITERS = (",", ";", "\t")
_SEPARATOR_LINE = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)
"""What spreadsheets write above the first row, for one another."""


def open_csv(path: str, data: Data) -> Source:
    """List the images that a CSV names; whether their files exist is met when they are read.

    Args:
        path: Of the CSV.
        data: Names of the columns, root of the images, and the second CSV of labels where there is one.

    Raises:
        UserError: A file or a column is missing, or rows are wrong: all of them are listed.
    """
    table = _read("data.source", path, data.image_column)
    rows = _Rows(table, data, _images(table.file, data))
    if not table.rows:
        raise UserError(f"data.source: {path!r} has no rows below its column names")
    labels = _second_labels(table, data, rows.images) if data.labels else None
    items, findings = [], []
    for number, (line, fields) in enumerate(zip(table.lines, table.rows, strict=True)):
        try:
            items.append(rows.item(line, fields, None if labels is None else labels[number]))
        except WrongRow as error:
            findings.append(f"line {line}: {error}")
    _refuse(table, findings)
    return Source(str(table.file.resolve()), Files(rows.images.root), items)


@dataclass(frozen=True)
class _Table:
    """A CSV as read; each row is a list of fields, and begins in a line of the file."""

    setting: str
    path: str
    columns: list[str]
    rows: list[list[str]]
    lines: list[int]

    @property
    def file(self) -> Path:
        return Path(self.path).expanduser()

    def optional(self, setting: str, name: str) -> int | None:
        """Return the number of a column; None where there is none and its name is the default."""
        missing = name not in self.columns and name == Data.model_fields[setting].default
        return None if missing else self.column(setting, name)

    def column(self, setting: str, name: str) -> int:
        """Return the number of a column.

        Raises:
            UserError: There is none of that name, or more than one.
        """
        found = self.columns.count(name)
        if found == 1:
            return self.columns.index(name)
        shown = [repr(column) if _CONTROL.search(column) else column for column in self.columns]
        problem = (
            f"has {found} columns {name!r}"
            if found
            else f"has no column {name!r} (data.{setting}){nearest(name, shown)}"
        )
        raise UserError(f"{self.setting}: {self.path!r} {problem}; columns: {', '.join(shown)}")

    def check(self, fields: list[str]) -> None:
        if len(fields) != len(self.columns):
            given = f"{len(fields)} {'field' if len(fields) == 1 else 'fields'}"
            raise WrongRow(f"{given}, expected {len(self.columns)}" if fields else "empty line")


def _delimiter(text: str, column: str) -> str:
    """Return the delimiter with which the first row has a column of that name; where it has none, the one with which it has most."""
    columns = {}
    for delimiter in _DELIMITERS:
        with suppress(csv.Error, StopIteration):
            columns[delimiter] = [
                name.strip()
                for name in next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
            ]
    named = [delimiter for delimiter, names in columns.items() if column in names]
    return named[0] if named else max(columns, key=lambda one: len(columns[one]), default=",")


def _read(setting: str, path: str, column: str) -> _Table:
    """Read a table whose first row has a column of that name, as far as it is known by one."""
    file = Path(path).expanduser()
    try:
        content = read_regular(file, MOST_BYTES).removeprefix(codecs.BOM_UTF8)
        # As a spreadsheet's "Unicode text" is written.
        text = content.decode(
            "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8"
        )
    except (FileNotFoundError, NotADirectoryError) as error:
        siblings = (
            [str(other) for other in file.parent.glob("*.csv")] if file.parent.is_dir() else []
        )
        raise UserError(
            f"{setting}: file {path!r} does not exist{nearest(str(file), siblings)}"
        ) from error
    except OSError as error:
        raise UserError(f"{setting}: {path!r} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{setting}: {path!r}, line {line}: not UTF-8; save the file in that encoding"
        ) from error
    if "\0" in text:
        raise UserError(
            f"{setting}: {path!r}, line {text.count(chr(10), 0, text.index(chr(0))) + 1}: a zero byte; this is no text"
        )
    said = _SEPARATOR_LINE.match(text)
    text, skipped = text[said.end() if said else 0 :], 1 if said else 0
    delimiter = said[1] if said else _delimiter(text, column)
    # Strict: a quotation mark that is never closed would swallow the rows below it as one field.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    rows, lines = [], [1 + skipped]
    try:
        for fields in reader:
            rows.append(fields)
            lines.append(reader.line_num + 1 + skipped)
    except csv.Error as error:
        raise UserError(
            f"{setting}: {path!r}, line {lines[-1]}: {first_line(error)}; is a quotation mark missing?"
        ) from error
    while rows and not "".join(rows[-1]).strip() and len(rows[-1]) < 2:
        rows.pop()
    if not rows:
        raise UserError(f"{setting}: {path!r} is empty; its first line must name the columns")
    # Of emptied cells spreadsheets write rows of nothing but delimiters.
    below = [
        (fields, line)
        for fields, line in zip(rows[1:], lines[1:], strict=False)
        if len(fields) < 2 or "".join(fields).strip()
    ]
    return _Table(
        setting,
        path,
        [name.strip() for name in rows[0]],
        [fields for fields, _ in below],
        [line for _, line in below],
    )


def _refuse(table: _Table, findings: list[str]) -> None:
    if len(findings) == 1:
        raise UserError(f"{table.setting}: {table.path!r}, {findings[0]}")
    if findings:
        raise UserError(f"{table.setting}: {table.path!r} has {len(findings)} wrong rows", findings)


def _images(file: Path, data: Data) -> Images:
    root = Path(data.root).expanduser() if data.root else file.parent
    if not root.is_dir():
        siblings = (
            [str(other) for other in root.parent.glob("*") if other.is_dir()]
            if root.parent.is_dir()
            else []
        )
        raise UserError(
            f"data.root: folder {data.root!r} does not exist{nearest(str(root), siblings)}"
        )
    return Images(root.resolve(), root.absolute())


def _second_labels(images: _Table, data: Data, files: Images) -> list[str]:
    """Return the labels of `data.labels`, one for each row of the first CSV."""
    table = _read("data.labels", data.labels, data.label_column)
    if len(table.rows) != len(images.rows):
        raise UserError(
            f"data.labels: {data.labels!r} has {len(table.rows)} and {images.path!r} has {len(images.rows)} rows below the column names; "
            "each image needs its label in the same row"
        )
    label_column = 0 if len(table.columns) == 1 else table.column("label_column", data.label_column)
    named = len(table.columns) > 1 and data.image_column in table.columns
    other_column = table.column("image_column", data.image_column) if named else None
    image_column = images.column("image_column", data.image_column)
    labels, findings = [], []
    for line, fields, image_line, image_fields in zip(
        table.lines, table.rows, images.lines, images.rows, strict=True
    ):
        try:
            table.check(fields)
            labels.append(_label(fields[label_column]))
        except WrongRow as error:
            findings.append(f"line {line}: {error}")
            continue
        if other_column is not None and len(image_fields) == len(images.columns):
            name, other = image_fields[image_column].strip(), fields[other_column].strip()
            if files.found(name) != files.found(other):
                findings.append(
                    f"line {line}: image {other!r}, but {name!r} in line {image_line} of {images.path}"
                )
    _refuse(table, findings)
    return labels


def _label(text: str) -> str:
    label = text.strip()
    if not label:
        raise WrongRow("empty label")
    if _CONTROL.search(label):
        raise WrongRow(f"label {label!r} has control characters")
    return label


class _Rows:
    """Turns rows into items, one after another."""

    def __init__(self, table: _Table, data: Data, images: Images) -> None:
        self.images = images
        self._table = table
        self._image = table.column("image_column", data.image_column)
        self._label = None if data.labels else table.column("label_column", data.label_column)
        self._split = table.optional("split_column", data.split_column)
        self._group = table.optional("group_column", data.group_column)
        self._lines: dict[str, int] = {}

    def item(self, line: int, fields: list[str], second_label: str | None) -> Item:
        self._table.check(fields)
        path = self.images.find(fields[self._image].strip())
        label = second_label if self._label is None else _label(fields[self._label])
        split = "" if self._split is None else _split(fields[self._split])
        group = "" if self._group is None else fields[self._group].strip()
        if (first := self._lines.setdefault(path, line)) != line:
            raise WrongRow(f"{path!r} is in line {first} already")
        return Item(path, label or "", split, group)


def _split(text: str) -> str:
    name = text.strip().lower()
    if name and name not in SPLIT_NAMES:
        raise WrongRow(_unknown_split(text))
    return SPLIT_NAMES[name] if name else ""


@cache
def _unknown_split(text: str) -> str:
    # Kept, since all rows may have the same wrong one, and the nearest name takes long to find.
    return f"unknown split {text!r}{nearest(text, SPLIT_NAMES)}; allowed: {', '.join(SPLITS)}, or empty"
