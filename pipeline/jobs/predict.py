"""Classify unlabelled images with an exported model, and record what made the file."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
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
    """Images that are classified.

    Attributes:
        folder: The folder that the paths start from.
        paths: Paths of the images, relative to the folder if they lie below it.
    """

    folder: Path
    paths: list[str]


class Predicted(NamedTuple):
    """Counts of what was written.

    Attributes:
        rows: Number of rows, one for each image.
        bad: Number of rows whose image could not be read.
    """

    rows: int
    bad: int


class Output(NamedTuple):
    """What is written.

    Attributes:
        file: The CSV file, which is written whole or not at all.
        identifier: What becomes ``id``. None: the name, or the path relative to folder or list if
            names repeat.
        probabilities: Whether there is a column for each class.
        bad: What is done about images that cannot be read. ``row``: they have a row without a
            label. ``error``: they are wrong input, and nothing is written.
    """

    file: Path
    identifier: Identifier | None
    probabilities: bool
    bad: Literal["row", "error"]


def predict(
    model_uri: str, images: str, output: Output, progress: Callable[[str, int, int], None]
) -> Predicted:
    """Write ``id,label`` (and ``p_CLASS``) for a folder or a list of images, and ``OUT.json``.

    Rows of images that cannot be read have no label, and the reason in a last column ``error``,
    which is there only then. ``OUT.json`` stands beside the CSV and records what made it.

    Args:
        model_uri: URI of the model, ``models:/NAME@champion`` or ``runs:/ID/model``.
        images: A folder, or a text file with one path per line, relative to that file.
        output: What is written, and where.
        progress: Called with what is being done, the number of finished images, and that of all.

    Raises:
        UserError: There is no such model, or there are no such images; or images cannot be read,
            which are all listed; or names repeat that were asked for.
    """
    found = list_images(images)
    out = output.file
    ids = _choose_ids(found, output.identifier)
    _need_writable(out)
    model, came_from = load_model(model_uri)
    reader = _Reader(found, model.preprocessing)
    try:
        with new_file(out) as partial:
            _write_rows(partial, ids, model, output.probabilities, reader, progress)
            if reader.unreadable and output.bad == "error":
                raise _build_refusal(reader)
            if reader.unreadable:
                _add_errors(partial, reader.unreadable)
        chosen = output.identifier or ("relative path" if ids is found.paths else "name")
        _write_record(out, came_from, images, chosen, model, reader)
    except OSError as error:
        raise Unwritable(
            f"out: {str(out)!r} cannot be written: {error.strerror or error}"
        ) from None
    _say_unreadable(reader, out)
    return Predicted(len(ids), len(reader.unreadable))


def _need_writable(out: Path) -> None:
    if out.is_dir():
        raise UserError(
            f"out: {str(out)!r} is a folder; "
            f"a file such as {str(out / 'predictions.csv')!r} is needed"
        )
    if not out.parent.is_dir():
        raise UserError(f"out: folder {str(out.parent)!r} does not exist")
    problem = unwritable(out.parent)
    if problem:
        raise Unwritable(f"out: {str(out)!r} cannot be written: {problem}")


def _build_refusal(reader: _Reader) -> UserError:
    paths = reader.images.paths
    count = f"{len(reader.unreadable)} of {len(paths)} cannot be read"
    findings = [f"{paths[number]}: {why}" for number, why in reader.unreadable.items()]
    return UserError(f"images: {count}; nothing is written", findings)


def _write_record(
    out: Path,
    came_from: Mapping[str, Any],
    images: str,
    identifier: str,
    model: Classifier,
    reader: _Reader,
) -> None:
    record = {
        **came_from,
        "images": str(Path(images).resolve()),
        "num_images": len(reader.images.paths),
        "num_unreadable": len(reader.unreadable),
        "images_digest": reader.digest.hexdigest()[:32],
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "id": identifier,
        "classes": model.classes,
        "preprocessing": model.preprocessing.to_dict(),
    }
    text = json.dumps(record, ensure_ascii=False, indent=1) + "\n"
    write_whole(out.with_name(out.name + ".json"), text)


def _say_unreadable(reader: _Reader, out: Path) -> None:
    for number, why in list(reader.unreadable.items())[:MOST_LISTED]:
        say(f"cannot be read: {reader.images.paths[number]}: {why}")
    if len(reader.unreadable) > MOST_LISTED:
        say(f"and {len(reader.unreadable) - MOST_LISTED} more; all stand in {out}, column error")


def list_images(images: str) -> Images:
    """Return the images of a folder (and its subfolders), or of a list, in order.

    The images of a folder are found as `prepare` finds them.

    Raises:
        UserError: It is neither a folder nor a text file, has nothing in it, or a listed file is
            missing.
    """
    place = Path(images).expanduser()
    if place.is_dir():
        return _list_folder(place, images)
    if not place.exists():
        siblings = [str(other) for other in place.parent.glob("*")] if place.parent.is_dir() else []
        raise UserError(
            f"images: {images!r} is neither a folder nor a file{nearest(images, siblings)}"
        )
    if place.suffix.lower() in EXTENSIONS:
        return Images(place.parent, [place.name])
    return _read_list(place, images)


def _list_folder(folder: Path, given: str) -> Images:
    listing = Listing(folder)
    try:
        files = listing.below("")
    except OSError as error:
        raise UserError(
            f"images: {given!r} cannot be listed: {error.filename}: {error.strerror or error}"
        ) from None
    unnameable = [repr(file) for file in files if not is_utf8(file)]
    if unnameable:
        raise UserError(
            f"images: {len(unnameable)} file names are not UTF-8; rename them", unnameable
        )
    unread = unread_warnings(("", file) for file in files)
    found = listing.only_images(files)
    if not found:
        raise UserError(
            f"images: folder {given!r} has no images ({', '.join(sorted(EXTENSIONS))})", unread
        )
    for line in [*unread, *listing.warnings]:
        say(f"warning: {line}")
    return Images(folder, found)


def _read_list(file: Path, given: str) -> Images:
    try:
        lines = read_regular(file, MOST_BYTES).decode("utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"images: {given!r} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UserError(f"images: {given!r} is no text file of paths") from None
    folder = file.parent
    paths: list[str] = []
    missing: list[str] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            path = _turn_slashes(folder, str(Path(line.strip()).expanduser()))
            paths.append(path)
            if not (folder / path).is_file():
                missing.append(f"line {number}: {path}")
    if not paths:
        raise UserError(f"images: {given!r} lists no images")
    if missing:
        raise UserError(f"images: {len(missing)} files listed in {given!r} do not exist", missing)
    return Images(folder, paths)


def _turn_slashes(folder: Path, path: str) -> str:
    """Return a path with slashes for Windows' backslashes, if only that names a file."""
    turned = path.replace("\\", "/")
    if turned != path and not (folder / path).exists() and (folder / turned).exists():
        return turned
    return path


def _choose_ids(images: Images, identifier: Identifier | None) -> Sequence[str]:
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
    told = _describe_repeated(ids, paths)
    if not told:
        return ids
    if identifier:
        raise UserError(
            f"predict.id: {identifier} given, and {told}; predict.id path tells them apart"
        )
    say(f"{told}: the column id has paths")
    return paths


def _describe_repeated(ids: Sequence[str], paths: Sequence[str]) -> str:
    """Say which ids stand for several images; the text is empty if none does."""
    first: dict[str, str] = {}
    repeated: dict[str, str] = {}
    for name, path in zip(ids, paths, strict=True):
        if first.setdefault(name, path) != path:
            repeated.setdefault(name, path)
    if not repeated:
        return ""
    name, other = next(iter(repeated.items()))
    told = f"{name!r} stands for {first[name]} and {other}"
    if len(repeated) > 1:
        told += f", and {len(repeated) - 1} more for several images"
    return told


class _Reader:
    """Reads images for a network, by their numbers.

    Args:
        images: The images.
        preprocessing: The preprocessing of the network.

    Attributes:
        images: The images.
        digest: SHA-256 over the SHA-256 of each file, in the order of reading. A file that cannot
            be opened is left out.
        unreadable: Why an image cannot be read, by its number.
    """

    def __init__(self, images: Images, preprocessing: Preprocessing) -> None:
        self.images = images
        self.digest = hashlib.sha256()
        self.unreadable: dict[int, str] = {}
        self._preprocessing = preprocessing

    def read(self, numbers: range) -> dict[int, NDArray[np.uint8]]:
        """Return what the network sees of those images that can be read."""
        pixels = {}
        for number in numbers:
            try:
                file = self.images.folder / self.images.paths[number]
                content = read_regular(file, MOST_BYTES)
                self.digest.update(hashlib.sha256(content).digest())
                pixels[number] = self._preprocessing.pixels(content)
            except UNREADABLE as error:
                self.unreadable[number] = explain_unreadable(error)
        return pixels


def _write_rows(
    file: Path,
    ids: Sequence[str],
    model: Classifier,
    probabilities: bool,
    reader: _Reader,
    progress: Callable[[str, int, int], None],
) -> None:
    """Write the table, part after part so that memory does not grow."""
    header = ["id", "label"]
    if probabilities:
        header += [f"p_{name}" for name in model.classes]
    empty = [""] * (len(header) - 1)
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = _writer(opened)
        writer.writerow(header)
        for start in range(0, len(ids), CHUNK):
            numbers = range(start, min(start + CHUNK, len(ids)))
            pixels = reader.read(numbers)
            shares = dict(zip(pixels, model.classify(list(pixels.values())), strict=True))
            for number in numbers:
                row: list[Any] = [ids[number]]
                if number not in shares:
                    row += empty
                else:
                    row.append(model.classes[int(shares[number].argmax())])
                    if probabilities:
                        row += shares[number].tolist()
                writer.writerow(row)
            progress("classifying", numbers.stop, len(ids))


def _add_errors(file: Path, unreadable: dict[int, str]) -> None:
    """Add the column ``error`` to a table."""
    with (
        new_file(file) as partial,
        file.open(encoding="utf-8", newline="") as before,
        partial.open("w", encoding="utf-8", newline="") as after,
    ):
        writer = _writer(after)
        for number, row in enumerate(csv.reader(before), -1):
            # The header is row -1.
            writer.writerow([*row, "error" if number < 0 else unreadable.get(number, "")])


def _writer(file: TextIO) -> Any:
    return csv.writer(file, lineterminator="\n")
