"""Classify unlabelled images with an exported model, and record what made the file."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from pipeline.data.decode import EXTENSIONS, UNREADABLE, explain_unreadable
from pipeline.data.sources.folder_listing import Listing, is_utf8, unread_warnings
from pipeline.data.sources.source import MOST_BYTES
from pipeline.data.transforms import Preprocessing
from pipeline.errors import Unwritable, UserError, nearest
from pipeline.files import new_file, read_regular, unwritable, write_whole
from pipeline.report.console import say
from pipeline.tracking.registry import load_model
from pipeline.training.exported_model import Classifier

Identifier = Literal["name", "stem", "path"]
CHUNK = 64
"""Images decoded and classified at a time."""
MOST_LISTED = 20


class Images(NamedTuple):
    """What is to be classified.

    Attributes:
        folder: That the paths start from.
        paths: Relative to it, where they lie below it.
    """

    folder: Path
    paths: list[str]


class Predicted(NamedTuple):
    """What was written: how many rows, and of how many of them the image could not be read."""

    rows: int
    bad: int


def predict(
    model_uri: str,
    images: str,
    out: Path,
    identifier: Identifier | None,
    probabilities: bool,
    bad: Literal["row", "error"],
    progress: Callable[[str, int, int], None],
) -> Predicted:
    """Write ``id,label`` (and ``p_CLASS``) for a folder or a list of images, and ``OUT.json`` beside it.

    Rows of images that cannot be read have no label, and the reason in a last column ``error``, which is there only then.

    Args:
        model_uri: ``models:/NAME@champion`` or ``runs:/ID/model``.
        images: A folder, or a text file with one path per line, relative to that file.
        out: CSV to write, whole or not at all.
        identifier: What becomes ``id``; None: ``name``, or the path relative to folder or list where names repeat.
        probabilities: Add one column per class.
        bad: ``error``: an image that cannot be read is wrong input, and nothing is written.
        progress: Told how many images are done.

    Raises:
        UserError: No such model or images; images that cannot be read, all of them listed; or names that repeat and were asked for.
    """
    found = list_images(images)
    ids = _ids(found, identifier)
    _need_writable(out)
    model, came_from = load_model(model_uri)
    digest = hashlib.sha256()
    try:
        with new_file(out) as partial:
            unreadable = _write_rows(partial, found, ids, model, probabilities, digest, progress)
            if unreadable and bad == "error":
                count = f"{len(unreadable)} of {len(ids)} cannot be read"
                raise UserError(
                    f"images: {count}; nothing is written",
                    [f"{found.paths[row]}: {why}" for row, why in unreadable.items()],
                )
            if unreadable:
                _add_errors(partial, unreadable)
        record = {
            **came_from,
            "images": str(Path(images).resolve()),
            "num_images": len(ids),
            "num_unreadable": len(unreadable),
            "images_digest": digest.hexdigest()[:32],
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "id": identifier or ("relative path" if ids is found.paths else "name"),
            "classes": model.classes,
            "preprocessing": model.preprocessing.to_dict(),
        }
        write_whole(
            out.with_name(out.name + ".json"),
            json.dumps(record, ensure_ascii=False, indent=1) + "\n",
        )
    except OSError as error:
        raise Unwritable(
            f"out: {str(out)!r} cannot be written: {error.strerror or error}"
        ) from None
    for row, why in list(unreadable.items())[:MOST_LISTED]:
        say(f"cannot be read: {found.paths[row]}: {why}")
    if len(unreadable) > MOST_LISTED:
        say(f"and {len(unreadable) - MOST_LISTED} more; all stand in {out}, column error")
    return Predicted(len(ids), len(unreadable))


def _need_writable(out: Path) -> None:
    if out.is_dir():
        raise UserError(
            f"out: {str(out)!r} is a folder; a file such as {str(out / 'predictions.csv')!r} is needed"
        )
    if not out.parent.is_dir():
        raise UserError(f"out: folder {str(out.parent)!r} does not exist")
    if problem := unwritable(out.parent):
        raise Unwritable(f"out: {str(out)!r} cannot be written: {problem}")


def list_images(images: str) -> Images:
    """Return the images of a folder (and its subfolders) in order, as prepare finds them, or of a list.

    Raises:
        UserError: Neither a folder nor a text file, nothing in it, or a listed file is missing.
    """
    place = Path(images).expanduser()
    if place.is_dir():
        listing = Listing(place)
        try:
            files = listing.below("")
        except OSError as error:
            raise UserError(
                f"images: {images!r} cannot be listed: {error.filename}: {error.strerror or error}"
            ) from None
        if unnameable := [repr(file) for file in files if not is_utf8(file)]:
            raise UserError(
                f"images: {len(unnameable)} file names are not UTF-8; rename them", unnameable
            )
        unread = unread_warnings(("", file) for file in files)
        found = listing.only_images(files)
        if not found:
            raise UserError(
                f"images: folder {images!r} has no images ({', '.join(sorted(EXTENSIONS))})", unread
            )
        for line in [*unread, *listing.warnings]:
            say(f"warning: {line}")
        return Images(place, found)
    if not place.exists():
        siblings = [str(other) for other in place.parent.glob("*")] if place.parent.is_dir() else []
        raise UserError(
            f"images: {images!r} is neither a folder nor a file{nearest(images, siblings)}"
        )
    if place.suffix.lower() in EXTENSIONS:
        return Images(place.parent, [place.name])
    try:
        lines = read_regular(place, MOST_BYTES).decode("utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"images: {images!r} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UserError(f"images: {images!r} is no text file of paths") from None
    listed = [
        (number, str(Path(line.strip()).expanduser()))
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    listed = [(number, _named(place.parent, path)) for number, path in listed]
    missing = [
        f"line {number}: {path}" for number, path in listed if not (place.parent / path).is_file()
    ]
    if missing or not listed:
        raise UserError(
            f"images: {len(missing)} files listed in {images!r} do not exist"
            if listed
            else f"images: {images!r} lists no images",
            missing,
        )
    return Images(place.parent, [path for _, path in listed])


def _named(folder: Path, path: str) -> str:
    """Return a path as it is, or where there is no such file, with slashes for Windows' backslashes."""
    turned = path.replace("\\", "/")
    return (
        turned
        if turned != path and not (folder / path).exists() and (folder / turned).exists()
        else path
    )


def _ids(images: Images, identifier: Identifier | None) -> Sequence[str]:
    """Return what stands in column ``id``.

    Raises:
        UserError: Names were asked for, and some stand for several images.
    """
    paths = images.paths
    match identifier:
        case "path":
            return [str(images.folder / path) for path in paths]
        case "stem":
            ids = [Path(path).stem for path in paths]
        case "name" | None:
            ids = [Path(path).name for path in paths]
    first: dict[str, str] = {}
    repeated: dict[str, str] = {}
    for name, path in zip(ids, paths, strict=True):
        if first.setdefault(name, path) != path:
            repeated.setdefault(name, path)
    if not repeated:
        return ids
    name, other = next(iter(repeated.items()))
    told = (
        f"{name!r} stands for {first[name]} and {other}"
        + f", and {len(repeated) - 1} more for several images" * (len(repeated) > 1)
    )
    if identifier:
        raise UserError(
            f"predict.id: {identifier} given, and {told}; predict.id path tells them apart"
        )
    say(f"{told}: the column id has paths")
    return paths


def _write_rows(
    file: Path,
    images: Images,
    ids: Sequence[str],
    model: Classifier,
    probabilities: bool,
    digest: hashlib._Hash,
    progress: Callable[[str, int, int], None],
) -> dict[int, str]:
    """Write the table, part after part so that memory does not grow; return the reasons of the rows whose image cannot be read."""
    unreadable: dict[int, str] = {}
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = _writer(opened)
        writer.writerow(
            ["id", "label", *([f"p_{name}" for name in model.classes] if probabilities else [])]
        )
        for start in range(0, len(ids), CHUNK):
            numbers = range(start, min(start + CHUNK, len(ids)))
            pixels = dict(_pixels(images, numbers, model.preprocessing, digest, unreadable))
            shares = dict(zip(pixels, model.classify(list(pixels.values())), strict=True))
            empty: list[Any] = [""] * (1 + probabilities * len(model.classes))
            for number in numbers:
                row = shares.get(number)
                found = (
                    empty
                    if row is None
                    else [
                        model.classes[int(row.argmax())],
                        *(row.tolist() if probabilities else []),
                    ]
                )
                writer.writerow([ids[number], *found])
            progress("classifying", numbers.stop, len(ids))
    return unreadable


def _pixels(
    images: Images,
    numbers: range,
    preprocessing: Preprocessing,
    digest: hashlib._Hash,
    unreadable: dict[int, str],
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield what the network sees of some images, with their numbers; the reasons of those that cannot be read are put down."""
    for number in numbers:
        try:
            content = read_regular(images.folder / images.paths[number], MOST_BYTES)
            digest.update(hashlib.sha256(content).digest())
            yield number, preprocessing.pixels(content)
        except UNREADABLE as error:
            unreadable[number] = explain_unreadable(error)


def _add_errors(file: Path, unreadable: dict[int, str]) -> None:
    """Add the column ``error`` to a table."""
    with (
        new_file(file) as partial,
        file.open(encoding="utf-8", newline="") as before,
        partial.open("w", encoding="utf-8", newline="") as after,
    ):
        writer = _writer(after)
        for number, row in enumerate(csv.reader(before), -1):
            writer.writerow([*row, "error" if number < 0 else unreadable.get(number, "")])


def _writer(file: TextIO) -> Any:
    return csv.writer(file, lineterminator="\n")
