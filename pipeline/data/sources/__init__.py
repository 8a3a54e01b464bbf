"""Where labelled images come from: one file per kind of source."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from pipeline.config import Data
from pipeline.data.sources.class_folders import open_folder
from pipeline.data.sources.csv_file import open_csv
from pipeline.data.sources.digits import open_digits
from pipeline.data.sources.npz_file import open_npz
from pipeline.data.sources.source import SPLITS, Item, Reader, Source
from pipeline.data.sources.torchvision_data import open_published
from pipeline.errors import UserError, unknown_name

SOURCES = ("digits", "folder:PATH", "csv:PATH", "torchvision:NAME", "npz:PATH")
_OPTIONS = {
    "root": ("csv:PATH", "torchvision:NAME"),
    "labels": ("csv:PATH",),
    "image_column": ("csv:PATH",),
    "label_column": ("csv:PATH",),
    "split_column": ("csv:PATH",),
    "group_column": ("csv:PATH",),
}
"""By field of `Data`, the sources that look at it."""

__all__ = ["SOURCES", "SPLITS", "Item", "Reader", "Source", "open_source"]


def open_source(data: Data) -> Source:
    """Return the source that ``data.source`` names.

    Raises:
        UserError: Unknown source, options of another one, missing files, no images, or fewer than two classes.
    """
    kind, colon, path = data.source.partition(":")
    if kind in (name.partition(":")[0] for name in SOURCES):
        _refuse_options_of_others(data, kind)
    if data.source == "digits":
        source = open_digits()
    elif kind == "folder" and path:
        source = open_folder(path)
    elif kind == "csv" and path:
        source = open_csv(path, data)
    elif kind == "torchvision" and path:
        source = open_published(path, data.root)
    elif kind == "npz" and path:
        source = open_npz(path, data.max_pixels)
    elif colon == "" and Path(data.source).expanduser().is_dir():
        raise UserError(f"unknown data.source {data.source!r}; nearest: folder:{data.source}")
    else:
        raise unknown_name("data.source", data.source, SOURCES)
    labels = Counter(item.label for item in source.items)
    if len(labels) < 2:
        raise UserError(
            f"data.source: {data.source!r} has one class only ({next(iter(labels))!r}); a classifier needs at least two classes"
        )
    return source


def _refuse_options_of_others(data: Data, kind: str) -> None:
    for option, sources in _OPTIONS.items():
        used = kind in (source.partition(":")[0] for source in sources)
        if not used and getattr(data, option) != Data.model_fields[option].default:
            raise UserError(
                f"data.{option} belongs to {' and '.join(sources)}, got data.source {data.source!r}"
            )
