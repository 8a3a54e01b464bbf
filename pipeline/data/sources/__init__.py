"""Sources of labelled images: one file per kind of source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.config import Data
from pipeline.data.sources.class_folders import open_folder
from pipeline.data.sources.csv_file import open_csv
from pipeline.data.sources.digits import open_digits
from pipeline.data.sources.npz_file import open_npz
from pipeline.data.sources.source import SPLITS, Item, Reader, Source
from pipeline.data.sources.torchvision_data import open_published
from pipeline.errors import UserError, unknown_name

_OPENERS: dict[str, Callable[[str, Data], Source]] = {
    "digits": lambda path, data: open_digits(),
    "folder:PATH": lambda path, data: open_folder(path),
    "csv:PATH": open_csv,
    "torchvision:NAME": lambda path, data: open_published(path, data.root),
    "npz:PATH": lambda path, data: open_npz(path, data.max_pixels),
}
"""Functions that open a source, by how it is written: from what stands behind the colon, and the
other fields of `Data`."""
SOURCES = tuple(_OPENERS)
_OPTIONS = {
    "root": ("csv:PATH", "torchvision:NAME"),
    "labels": ("csv:PATH",),
    "image_column": ("csv:PATH",),
    "label_column": ("csv:PATH",),
    "split_column": ("csv:PATH",),
    "group_column": ("csv:PATH",),
}
"""The sources that read a field of `Data`, by the name of the field."""

__all__ = ["SOURCES", "SPLITS", "Item", "Reader", "Source", "open_source"]


def open_source(data: Data) -> Source:
    """Return the source that ``data.source`` names.

    Raises:
        UserError: The source is unknown, an option belongs to another source, files are missing,
            there are no images, or there are fewer than two classes.
    """
    _refuse_options_of_others(data)
    source = _open(data)
    labels = {item.label for item in source.items}
    if len(labels) < 2:
        raise UserError(
            f"data.source: {data.source!r} has one class only ({next(iter(labels))!r}); "
            "a classifier needs at least two classes"
        )
    return source


def _refuse_options_of_others(data: Data) -> None:
    kind = _kind_of(data.source)
    if kind not in map(_kind_of, SOURCES):
        return
    for option, sources in _OPTIONS.items():
        is_used = kind in map(_kind_of, sources)
        if not is_used and getattr(data, option) != Data.model_fields[option].default:
            raise UserError(
                f"data.{option} belongs to {' and '.join(sources)}, got data.source {data.source!r}"
            )


def _kind_of(source: str) -> str:
    return source.partition(":")[0]


def _open(data: Data) -> Source:
    kind, _, path = data.source.partition(":")
    for source, open_this in _OPENERS.items():
        is_meant = kind == _kind_of(source) and path
        if data.source == source or (is_meant and ":" in source):
            return open_this(path, data)
    if ":" not in data.source and Path(data.source).expanduser().is_dir():
        raise UserError(f"unknown data.source {data.source!r}; nearest: folder:{data.source}")
    raise unknown_name("data.source", data.source, SOURCES)
