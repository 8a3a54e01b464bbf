"""Classify unlabelled images with an exported model, and record what made the file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.data.decode import EXTENSIONS, UNREADABLE, reason
from pipeline.data.sources.listing import Listing, unread_warnings
from pipeline.data.sources.source import MOST_BYTES
from pipeline.data.transforms import Preprocessing
from pipeline.errors import Unwritable, UserError, nearest
from pipeline.files import read_regular, unwritable, write_whole
from pipeline.report.console import say
from pipeline.tracking.registry import load_model

IDENTIFIERS: dict[str, Callable[[Path], str]] = {"name": lambda path: path.name, "stem": lambda path: path.stem, "path": str}
CHUNK = 256
"""Images decoded and classified at a time."""


def predict(
    model_uri: str, images: str, out: Path, identifier: str, probabilities: bool, progress: Callable[[str, int, int], None]
) -> pd.DataFrame:
    """Write ``id,label`` (and ``p_CLASS``) for a folder or a list of images, and ``OUT.json`` beside it.

    Args:
        model_uri: ``models:/NAME@champion`` or ``runs:/ID/model``.
        images: A folder, or a text file with one path per line, relative to that file.
        out: CSV to write, whole or not at all.
        identifier: ``name``, ``stem`` or ``path``: what becomes ``id``.
        probabilities: Add one column per class.
        progress: Told how many images are done.

    Raises:
        UserError: No such model or images; unreadable images are all listed and nothing is written.
    """
    paths = list_images(images)
    if out.is_dir():
        raise UserError(f"out: {str(out)!r} is a folder; a file such as {str(out / 'predictions.csv')!r} is needed")
    if not out.parent.is_dir():
        raise UserError(f"out: folder {str(out.parent)!r} does not exist")
    if problem := unwritable(out.parent):
        raise Unwritable(f"out: {str(out)!r} cannot be written: {problem}")
    model, came_from = load_model(model_uri)
    unreadable: list[str] = []
    parts: list[np.ndarray] = []
    digest = hashlib.sha256()
    for start in range(0, len(paths), CHUNK):
        pixels = _pixels(paths[start : start + CHUNK], model.preprocessing, digest, unreadable)
        if not unreadable:
            parts.append(model.classify(pixels))
        progress("classifying", min(start + CHUNK, len(paths)), len(paths))
    if unreadable:
        raise UserError(f"images: {len(unreadable)} of {len(paths)} cannot be read; nothing is written", unreadable)
    shares = np.concatenate(parts)
    table = pd.DataFrame({"id": [IDENTIFIERS[identifier](path) for path in paths], "label": np.array(model.classes)[shares.argmax(axis=1)]})
    if probabilities:
        table = pd.concat([table, pd.DataFrame(shares, columns=[f"p_{name}" for name in model.classes])], axis=1)
    record = {
        **came_from,
        "images": str(Path(images).resolve()),
        "num_images": len(paths),
        "images_digest": digest.hexdigest()[:32],
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "id": identifier,
        "classes": model.classes,
        "preprocessing": model.preprocessing.to_dict(),
    }
    _write(out, table.to_csv(index=False))
    _write(out.with_name(out.name + ".json"), json.dumps(record, ensure_ascii=False, indent=1) + "\n")
    return table


def list_images(images: str) -> list[Path]:
    """Return the images of a folder (and its subfolders) in order, or of a list.

    Raises:
        UserError: Neither a folder nor a text file, nothing in it, or a listed file is missing.
    """
    place = Path(images).expanduser()
    if place.is_dir():
        listing = Listing(place)
        files = listing.below("")
        unread = unread_warnings(("", file) for file in files)
        found = listing.only_images(files)
        if not found:
            raise UserError(f"images: folder {images!r} has no images ({', '.join(sorted(EXTENSIONS))})", unread)
        for line in [*unread, *listing.warnings]:
            say(f"warning: {line}")
        return [place / path for path in found]
    if not place.is_file():
        siblings = [str(other) for other in place.parent.glob("*")] if place.parent.is_dir() else []
        raise UserError(f"images: {images!r} is neither a folder nor a file{nearest(images, siblings)}")
    if place.suffix.lower() in EXTENSIONS:
        return [place]
    try:
        lines = place.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"images: {images!r} is no text file of paths") from None
    listed = [(number, place.parent / Path(line.strip()).expanduser()) for number, line in enumerate(lines, 1) if line.strip()]
    missing = [f"line {number}: {path}" for number, path in listed if not path.is_file()]
    if missing or not listed:
        raise UserError(
            f"images: {len(missing)} files listed in {images!r} do not exist" if listed else f"images: {images!r} lists no images", missing
        )
    return [path for _, path in listed]


def _pixels(paths: Sequence[Path], preprocessing: Preprocessing, digest: hashlib._Hash, unreadable: list[str]) -> list[NDArray[np.uint8]]:
    pixels = []
    for path in paths:
        try:
            content = read_regular(path, MOST_BYTES)
            digest.update(hashlib.sha256(content).digest())
            pixels.append(preprocessing.pixels(content))
        except UNREADABLE as error:
            unreadable.append(f"{path}: {reason(error)}")
    return pixels


def _write(file: Path, text: str) -> None:
    try:
        write_whole(file, text)
    except OSError as error:
        raise Unwritable(f"out: {str(file)!r} cannot be written: {error.strerror}") from None
