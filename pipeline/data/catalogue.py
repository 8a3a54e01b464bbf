"""What is known of every image that was ever examined, so that none is read twice.

One SQLite file, ``prepared/catalogue.sqlite``: which content a file held when it had a certain size and time of change,
and for each content and recipe what was found and where its pixels are stored. It may be deleted by hand while
nothing prepares or trains: the next prepare writes it anew, and a day later the pixels that the old one named are removed.
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

_VERSION, _FIRST_VERSION = 2, 1
"""Of the tables; those of an unknown one are dropped, since all that they hold can be found again."""

_SCHEMA = (
    "DROP TABLE IF EXISTS files",
    "DROP TABLE IF EXISTS images",
    "CREATE TABLE files (key BLOB PRIMARY KEY, fingerprint TEXT NOT NULL, content BLOB NOT NULL) WITHOUT ROWID",
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
"""What release 0.1.0 did not keep; its images are of a recipe of their own."""

_COLUMNS = "height, width, pixels, phash, shard, offset, stored_height, stored_width, bits, brightest, is_changed, note"
_OF_RECIPE = "recipe IN (:plain, :grey) AND (bits = 8 OR recipe = :grey)"


class Names(NamedTuple):
    """What a recipe is called in the catalogue.

    Attributes:
        plain: For images of 8 bits.
        grey: For those of more, whose pixels depend on which level is white.
    """

    plain: str
    grey: str


class Found(NamedTuple):
    """What was found in one image.

    Attributes:
        content: SHA-256 of the encoded image.
        height: Of the decoded image, in pixels.
        width: Of the decoded image, in pixels.
        pixels: Hash of the decoded pixels, 16 bytes: equal for equal pictures.
        phash: Perceptual hash of 64 bits, or None where the image is too small for one.
        shard: File that holds the resized pixels; empty where none are stored.
        offset: Where in it they begin, in bytes.
        stored_height: Of the resized image.
        stored_width: Of the resized image.
        bits: Of its grey levels, where they had more than 8 and the file does not say which is white; else 8.
        brightest: The highest of them; 0 for 8 bits.
        is_changed: Whether release 0.1.0 made other pixels of it.
        note: What was passed over when it was decoded.
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
    """Access to the catalogue below one ``prepared`` folder; of one process and thread.

    Raises:
        OSError: From every method: the file cannot be read or written, or is damaged.
    """

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        with _told():
            self._connection = sqlite3.connect(root / CATALOGUE, timeout=_WAIT)
            if self._version() != _VERSION:
                self._connection.execute("BEGIN IMMEDIATE")
                with self._connection:
                    # Unless another process was first.
                    for statement in self._missing():
                        self._connection.execute(statement)

    def _missing(self) -> Sequence[str]:
        version = self._version()
        if version == _VERSION:
            return ()
        return (
            *(() if version == _FIRST_VERSION else _SCHEMA),
            *_ADDED,
            f"PRAGMA user_version = {_VERSION}",
        )

    def _version(self) -> int:
        return int(self._connection.execute("PRAGMA user_version").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def is_new(self, recipe: Names) -> bool:
        """Return whether nothing is known of any image by a recipe."""
        with _told():
            found = self._connection.execute(
                "SELECT 1 FROM images WHERE recipe IN (:plain, :grey) LIMIT 1", recipe._asdict()
            )
            return found.fetchone() is None

    def of_files(
        self, source: str, fingerprints: Mapping[str, str], recipe: Names
    ) -> dict[str, Found]:
        """Return what was found in those files, some thousands at most, that have not changed since; by path."""
        paths = {_key(source, path): path for path in fingerprints}
        with _told():
            # Asked for one by one, they take twice as long.
            rows = self._connection.execute(
                f"SELECT key, fingerprint, content, {_COLUMNS} FROM files JOIN images USING (content) "
                f"WHERE key IN ({', '.join('?' * len(paths))}) AND recipe IN (?, ?) AND (bits = 8 OR recipe = ?)",
                (*paths, recipe.plain, recipe.grey, recipe.grey),
            )
            return {
                paths[key]: _found(found)
                for key, as_then, *found in rows
                if fingerprints[paths[key]] == as_then
            }

    def of_content(self, content: bytes, recipe: Names) -> Found | None:
        """Return what was found in an image of that content, whatever its name was."""
        with _told():
            row = self._connection.execute(
                f"SELECT content, {_COLUMNS} FROM images WHERE content = :content AND {_OF_RECIPE}",
                {"content": content, **recipe._asdict()},
            ).fetchone()
        return _found(row) if row else None

    def add(self, source: str, recipe: Names, rows: Iterable[tuple[str, str, Found]]) -> None:
        """Keep what was found, all of it or nothing; rows are (path, fingerprint, found)."""
        listed = list(rows)
        with _told(), self._connection:
            self._connection.executemany(
                f"INSERT OR REPLACE INTO images (recipe, content, {_COLUMNS}) VALUES ({', '.join('?' * (len(Found._fields) + 1))})",
                [
                    (
                        recipe.plain if found.bits == 8 else recipe.grey,
                        found.content,
                        *_signed(found)[1:],
                    )
                    for _, _, found in listed
                ],
            )
            self._connection.executemany(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?)",
                [
                    (_key(source, path), fingerprint, found.content)
                    for path, fingerprint, found in listed
                ],
            )

    def shards(self, recipe: Names) -> set[str]:
        """Return the names of the shards that hold pixels of known images, whichever level is white in them."""
        of_all_whites = "SELECT DISTINCT shard FROM images WHERE recipe = ? OR recipe BETWEEN ? || '-white' AND ? || '-white~'"
        with _told():
            return {
                shard for (shard,) in self._connection.execute(of_all_whites, (recipe.plain,) * 3)
            }

    def forget_shards(self, recipe: Names, shards: Sequence[str]) -> None:
        """Drop what was found in images whose stored pixels are lost."""
        with _told(), self._connection:
            self._connection.executemany(
                "DELETE FROM images WHERE recipe IN (?, ?) AND shard = ?",
                [(*recipe, shard) for shard in shards],
            )


@contextmanager
def _told() -> Iterator[None]:
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


def _signed(found: Found) -> Found:
    # SQLite's integers are signed.
    return found._replace(phash=None if found.phash is None else found.phash - (1 << 63))


def _found(row: Sequence[object]) -> Found:
    found = Found(*row)  # type: ignore[arg-type]
    return found._replace(
        phash=None if found.phash is None else found.phash + (1 << 63),
        is_changed=bool(found.is_changed),
    )
