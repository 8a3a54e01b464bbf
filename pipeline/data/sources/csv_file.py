"""A CSV that names images and their classes, and perhaps their split and group."""

from __future__ import annotations

import codecs
import csv
import io
import os
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from pipeline.config import Data
from pipeline.data.decode import EXTENSIONS
from pipeline.data.sources.source import SPLIT_NAMES, SPLITS, Files, Item, Source
from pipeline.errors import UserError, first_line, nearest


def open_csv(path: str, data: Data) -> Source:
    """List the images that a CSV names; whether their files exist is met when they are read.

    Args:
        path: Of the CSV.
        data: Names of the columns, root of the images, and the second CSV of labels where there is one.

    Raises:
        UserError: A file or a column is missing, or rows are wrong: all of them are listed.
    """
    table = _read("data.source", path)
    rows = _Rows(table, data, _Images(_root(table.file, data)))
    if not table.rows:
        raise UserError(f"data.source: {path!r} has no rows below its column names")
    labels = _second_labels(table, data) if data.labels else None
    items, findings = [], []
    for number, (line, fields) in enumerate(zip(table.lines, table.rows, strict=True)):
        try:
            items.append(rows.item(line, fields, None if labels is None else labels[number]))
        except _WrongRow as error:
            findings.append(f"line {line}: {error}")
    _refuse(table, findings)
    return Source(str(table.file.resolve()), Files(rows.images.root), items)


class _WrongRow(Exception):
    """What is wrong with a row."""


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
        problem = f"has {found} columns {name!r}" if found else f"has no column {name!r} (data.{setting}){nearest(name, self.columns)}"
        raise UserError(f"{self.setting}: {self.path!r} {problem}; columns: {', '.join(self.columns)}")

    def check(self, fields: list[str]) -> None:
        if len(fields) != len(self.columns):
            given = f"{len(fields)} {'field' if len(fields) == 1 else 'fields'}"
            raise _WrongRow(f"{given}, expected {len(self.columns)}" if fields else "empty line")


def _read(setting: str, path: str) -> _Table:
    file = Path(path).expanduser()
    try:
        content = file.read_bytes().removeprefix(codecs.BOM_UTF8)
        text = content.decode()
    except (FileNotFoundError, NotADirectoryError) as error:
        siblings = [str(other) for other in file.parent.glob("*.csv")] if file.parent.is_dir() else []
        raise UserError(f"{setting}: file {path!r} does not exist{nearest(str(file), siblings)}") from error
    except OSError as error:
        raise UserError(f"{setting}: {path!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{setting}: {path!r}, line {line}: not UTF-8; save the file in that encoding") from error
    if "\0" in text:
        raise UserError(f"{setting}: {path!r}, line {text.count(chr(10), 0, text.index(chr(0))) + 1}: a zero byte; this is no text")
    # Strict: a quotation mark that is never closed would swallow the rows below it as one field.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows, lines = [], [1]
    try:
        for fields in reader:
            rows.append(fields)
            lines.append(reader.line_num + 1)
    except csv.Error as error:
        raise UserError(f"{setting}: {path!r}, line {lines[-1]}: {first_line(error)}; is a quotation mark missing?") from error
    while rows and not "".join(rows[-1]).strip() and len(rows[-1]) < 2:
        rows.pop()
    if not rows:
        raise UserError(f"{setting}: {path!r} is empty; its first line must name the columns")
    return _Table(setting, path, [name.strip() for name in rows[0]], rows[1:], lines[1 : len(rows)])


def _refuse(table: _Table, findings: list[str]) -> None:
    if len(findings) == 1:
        raise UserError(f"{table.setting}: {table.path!r}, {findings[0]}")
    if findings:
        raise UserError(f"{table.setting}: {table.path!r} has {len(findings)} wrong rows", findings)


def _root(file: Path, data: Data) -> Path:
    root = Path(data.root).expanduser() if data.root else file.parent
    if not root.is_dir():
        siblings = [str(other) for other in root.parent.glob("*") if other.is_dir()] if root.parent.is_dir() else []
        raise UserError(f"data.root: folder {data.root!r} does not exist{nearest(str(root), siblings)}")
    return root.resolve()


def _second_labels(images: _Table, data: Data) -> list[str]:
    """Return the labels of `data.labels`, one for each row of the first CSV."""
    table = _read("data.labels", data.labels)
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
    for line, fields, image_line, image_fields in zip(table.lines, table.rows, images.lines, images.rows, strict=True):
        try:
            table.check(fields)
            labels.append(_label(fields[label_column]))
        except _WrongRow as error:
            findings.append(f"line {line}: {error}")
            continue
        if other_column is not None and len(image_fields) == len(images.columns):
            name, other = image_fields[image_column].strip(), fields[other_column].strip()
            if name != other:
                findings.append(f"line {line}: image {other!r}, but {name!r} in line {image_line} of {images.path}")
    _refuse(table, findings)
    return labels


def _label(text: str) -> str:
    if label := text.strip():
        return label
    raise _WrongRow("empty label")


class _Rows:
    """Turns rows into items, one after another."""

    def __init__(self, table: _Table, data: Data, images: _Images) -> None:
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
            raise _WrongRow(f"{path!r} is in line {first} already")
        return Item(path, label or "", split, group)


def _split(text: str) -> str:
    name = text.strip().lower()
    if name and name not in SPLIT_NAMES:
        raise _WrongRow(_unknown_split(text))
    return SPLIT_NAMES[name] if name else ""


@cache
def _unknown_split(text: str) -> str:
    # Kept, since all rows may have the same wrong one, and the nearest name takes long to find.
    return f"unknown split {text!r}{nearest(text, SPLIT_NAMES)}; allowed: {', '.join(SPLITS)}, or empty"


class _Images:
    """Finds images below a folder by name, each folder on the way listed once: a look per image takes long for large sets."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folders = {"": _Folder(root, "", is_inside=True)}

    def find(self, name: str) -> str:
        """Return an image's path below the root, with the extension of its file where there is one."""
        parent, slash, file_name = name.rpartition("/")
        folder = self._folders.get(parent + slash) or self._open(name, parent + slash)
        if file_name in folder.files:
            return folder.prefix + file_name
        if file_name == "..":
            raise _WrongRow(f"{name!r} is not a path below {self.root}")
        if file_name in ("", "."):
            raise _WrongRow(f"{name!r} names a folder, not an image" if name else "empty image name")
        found = folder.find(file_name)
        if not folder.keeps_inside(found):
            raise _WrongRow(f"{name!r} leads out of {self.root} by a symbolic link")
        return folder.prefix + found

    def _open(self, name: str, relative: str) -> _Folder:
        """List a folder; `relative` ends with a slash."""
        parts = relative.split("/")[:-1]
        if not parts[0] or ".." in parts:
            raise _WrongRow(f"{name!r} is not a path below {self.root}")
        folder = self._folders[""]
        for part in parts:
            if part not in ("", "."):
                prefix = f"{folder.prefix}{part}/"
                if prefix not in self._folders:
                    self._folders[prefix] = _Folder(self.root, prefix, folder.keeps_inside(part))
                folder = self._folders[prefix]
        self._folders[relative] = folder
        return folder


class _Folder:
    """One folder below the root; `prefix` is empty or ends with a slash."""

    def __init__(self, root: Path, prefix: str, is_inside: bool) -> None:
        self.prefix = prefix
        self.files: set[str] = set()
        self._root = root
        self._is_inside = is_inside
        self._links: set[str] = set()
        self._is_listed = True
        if is_inside:
            try:
                with os.scandir(f"{root}/{prefix}") as entries:
                    for entry in entries:
                        if entry.is_symlink():
                            self._links.add(entry.name)
                        elif not entry.is_dir():
                            self.files.add(entry.name)
            except (FileNotFoundError, NotADirectoryError):
                pass
            except OSError:
                # It may be searched, yet not listed.
                self._is_listed = False

    def keeps_inside(self, name: str) -> bool:
        """Whether what has this name in here is below the root too, wherever links lead."""
        if not self._is_inside or (self._is_listed and name not in self._links):
            return self._is_inside
        return Path(os.path.realpath(f"{self._root}/{self.prefix}{name}")).is_relative_to(self._root)

    def find(self, name: str) -> str:
        """Return the name of the file that `name` means with or without extension; itself where there is none."""
        if name in self._links:
            return name
        found = self._by_stem.get(name, name)
        if isinstance(found, list):
            raise _WrongRow(f"{self.prefix + name!r} may be {' or '.join(sorted(found))}; name the extension")
        return found

    @cached_property
    def _by_stem(self) -> dict[str, str | list[str]]:
        """The file of each name without extension, or the files where there are several."""
        found: dict[str, str | list[str]] = {}
        for name in (*self.files, *self._links):
            stem, dot, extension = name.rpartition(".")
            if dot + extension.lower() in EXTENSIONS:
                other = found.setdefault(stem, name)
                if other is not name:
                    found[stem] = [*([other] if isinstance(other, str) else other), name]
        return found
