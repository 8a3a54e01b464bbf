"""What is known of every image that was ever examined, so that none is read twice.

The catalogue is one SQLite file, ``prepared/catalogue.sqlite``. For a file with a certain size and
time of change it holds which content the file had. For each content and recipe it holds what was
found, and where the pixels are stored.

The file may be deleted by hand while nothing prepares or trains. The next prepare writes it anew;
a day later the pixels that the old one named are removed.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

CATALOGUE = "catalogue.sqlite"

_WAIT = 60.0
"""Seconds to wait for another process that writes."""

_FIRST_VERSION = 1
_VERSION = 2
"""Version of the tables.

Tables of an unknown version are dropped, since all that they hold can be found again.
"""

_SCHEMA = (
    "DROP TABLE IF EXISTS files",
    "DROP TABLE IF EXISTS images",
    (
        "CREATE TABLE files "
        "(key BLOB PRIMARY KEY, fingerprint TEXT NOT NULL, content BLOB NOT NULL) WITHOUT ROWID"
    ),
    """CREATE TABLE images (
        recipe TEXT, content BLOB, height INTEGER, width INTEGER, pixels BLOB, phash INTEGER,
        shard TEXT, offset INTEGER, stored_height INTEGER, stored_width INTEGER,
        PRIMARY KEY (recipe, content)
    ) WITHOUT ROWID""",
)
_ADDED = (
    "ALTER TABLE images ADD COLUMN bits INTEGER NOT NULL DEFAULT 8",
    "ALTER TABLE images ADD COLUMN brightest REAL NOT NULL DEFAULT 0",
    "ALTER TABLE images ADD COLUMN is_changed INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE images ADD COLUMN note TEXT NOT NULL DEFAULT ''",
)
"""Statements that add what release 0.1.0 did not keep.

The images of that release belong to a recipe of their own.
"""

_COLUMNS = (
    "height, width, pixels, phash, shard, offset, stored_height, stored_width, "
    "bits, brightest, is_changed, note"
)
_OF_RECIPE = "recipe IN (:plain, :grey) AND (bits = 8 OR recipe = :grey)"


class Names(NamedTuple):
    """The names of a recipe in the catalogue.

    Attributes:
        plain: Name for images of 8 bits.
        grey: Name for images of more bits, whose pixels depend on which level is white.
    """

    plain: str
    grey: str


class Found(NamedTuple):
    """What was found in one image.

    Attributes:
        content: SHA-256 of the encoded image.
        height: Height of the decoded image, in pixels.
        width: Width of the decoded image, in pixels.
        pixels: Hash of the decoded pixels, 16 bytes: equal for equal pictures.
        phash: Perceptual hash of 64 bits, or None if the image is too small for one, or of one
            colour.
        shard: File that holds the resized pixels; empty if none are stored.
        offset: Place in that file at which the pixels begin, in bytes.
        stored_height: Height of the resized image, in pixels.
        stored_width: Width of the resized image, in pixels.
        bits: Bits of the grey levels if they are more than 8 and the file does not say which level
            is white; else 8.
        brightest: The highest grey level; 0 for 8 bits.
        is_changed: Whether release 0.1.0 made other pixels of the image.
        note: What was passed over when the image was decoded.
    """

    content: bytes
    height: int
    width: int
    pixels: bytes
    phash: int | None
    shard: str
    offset: int
    stored_height: int
    stored_width: int
    bits: int = 8
    brightest: float = 0.0
    is_changed: bool = False
    note: str = ""


class Catalogue:
    """Access to the catalogue below one ``prepared`` folder, for one process and one thread.

    Raises:
        OSError: Every method raises it if the file cannot be read or written, or is damaged.
    """

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        with _explain_errors():
            self._connection = sqlite3.connect(root / CATALOGUE, timeout=_WAIT)
            if self._read_version() != _VERSION:
                self._connection.execute("BEGIN IMMEDIATE")
                with self._connection:
                    for statement in self._list_missing_statements():
                        self._connection.execute(statement)

    def _list_missing_statements(self) -> Sequence[str]:
        """Return the statements that bring the tables to `_VERSION`.

        There are none if another process has executed them in the meantime.
        """
        version = self._read_version()
        if version == _VERSION:
            return []
        statements = [*_ADDED, f"PRAGMA user_version = {_VERSION}"]
        if version != _FIRST_VERSION:
            return [*_SCHEMA, *statements]
        return statements

    def _read_version(self) -> int:
        return int(self._connection.execute("PRAGMA user_version").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def is_new(self, recipe: Names) -> bool:
        """Whether the catalogue knows no image of a recipe."""
        with _explain_errors():
            found = self._connection.execute(
                "SELECT 1 FROM images WHERE recipe IN (:plain, :grey) LIMIT 1", recipe._asdict()
            )
            return found.fetchone() is None

    def of_files(
        self, source: str, fingerprints: Mapping[str, str], recipe: Names
    ) -> dict[str, Found]:
        """Return what was found in files that have not changed since, by path.

        Args:
            source: Description of the source of the files.
            fingerprints: The present fingerprint of each file by path; some thousands at most.
            recipe: Names of the recipe.
        """
        paths = {_key(source, path): path for path in fingerprints}
        with _explain_errors():
            # One query for each file would take twice as long.
            rows = self._connection.execute(
                f"SELECT key, fingerprint, content, {_COLUMNS} "
                "FROM files JOIN images USING (content) "
                f"WHERE key IN ({_placeholders(len(paths))}) "
                "AND recipe IN (?, ?) AND (bits = 8 OR recipe = ?)",
                (*paths, recipe.plain, recipe.grey, recipe.grey),
            )
            return {
                paths[key]: _from_row(found)
                for key, as_then, *found in rows
                if fingerprints[paths[key]] == as_then
            }

    def of_content(self, content: bytes, recipe: Names) -> Found | None:
        """Return what was found in an image of that content, whatever its name was."""
        with _explain_errors():
            row = self._connection.execute(
                f"SELECT content, {_COLUMNS} FROM images WHERE content = :content AND {_OF_RECIPE}",
                {"content": content, **recipe._asdict()},
            ).fetchone()
        return _from_row(row) if row else None

    def add(self, source: str, recipe: Names, rows: Iterable[tuple[str, str, Found]]) -> None:
        """Keep what was found, all of it or nothing; rows are (path, fingerprint, found)."""
        listed = list(rows)
        images = [_to_row(found, recipe) for _, _, found in listed]
        files = [
            (_key(source, path), fingerprint, found.content) for path, fingerprint, found in listed
        ]
        with _explain_errors(), self._connection:
            self._connection.executemany(
                f"INSERT OR REPLACE INTO images (recipe, content, {_COLUMNS}) "
                f"VALUES ({_placeholders(len(Found._fields) + 1)})",
                images,
            )
            self._connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", files)

    def shards(self, recipe: Names) -> set[str]:
        """Return the names of the shards that hold pixels of known images.

        They are the shards of the recipe for every level that may be white.
        """
        query = (
            "SELECT DISTINCT shard FROM images "
            "WHERE recipe = ? OR recipe BETWEEN ? || '-white' AND ? || '-white~'"
        )
        with _explain_errors():
            rows = self._connection.execute(query, (recipe.plain,) * 3)
            return {shard for (shard,) in rows}

    def forget_shards(self, recipe: Names, shards: Sequence[str]) -> None:
        """Drop what was found in images whose stored pixels are lost."""
        with _explain_errors(), self._connection:
            self._connection.executemany(
                "DELETE FROM images WHERE recipe IN (?, ?) AND shard = ?",
                [(*recipe, shard) for shard in shards],
            )


@contextmanager
def _explain_errors() -> Iterator[None]:
    """Raise an OSError that names the catalogue for each error of SQLite."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OSError(f"{CATALOGUE}: {error}") from error
    except sqlite3.DatabaseError as error:
        raise OSError(
            f"{CATALOGUE}: {error}; delete that file, the next prepare writes it anew"
        ) from error


def _key(source: str, path: str) -> bytes:
    return hashlib.blake2b(f"{source}\0{path}".encode(), digest_size=16).digest()


def _placeholders(count: int) -> str:
    return ", ".join("?" * count)


def _to_row(found: Found, recipe: Names) -> tuple[object, ...]:
    name = recipe.plain if found.bits == 8 else recipe.grey
    # SQLite's integers are signed.
    phash = None if found.phash is None else found.phash - (1 << 63)
    return (name, *found._replace(phash=phash))


def _from_row(row: Sequence[object]) -> Found:
    found = Found(*row)  # type: ignore[arg-type]
    phash = None if found.phash is None else found.phash + (1 << 63)
    return found._replace(phash=phash, is_changed=bool(found.is_changed))
