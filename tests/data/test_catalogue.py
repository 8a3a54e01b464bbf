"""What is known of images, in one SQLite file."""

from __future__ import annotations

import resource
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.data.catalogue import Catalogue, Found, Names

RECIPE, ANOTHER = Names("recipe", "recipe"), Names("another", "another")
FOUND = Found(bytes(32), 5, 6, bytes(16), 7, "a.bin", 8, 9, 10)


def test_the_catalogue_keeps_every_value(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)
    rows = [
        Found(bytes([number]) * 32, 5, 6, bytes(16), phash, "a.bin", 2**40, 7, 8)
        for number, phash in enumerate([None, 0, 1, 2**63, 2**64 - 1])
    ]
    by_path = {f"{number}.png": found for number, found in enumerate(rows)}
    catalogue.add("source", RECIPE, [(path, "1-2-3", found) for path, found in by_path.items()])
    assert (
        catalogue.of_files("source", {f"{number}.png": "1-2-3" for number in range(5)}, RECIPE)
        == by_path
    )
    assert [catalogue.of_content(found.content, RECIPE) for found in rows] == rows
    changed = {**dict.fromkeys(by_path, "1-2-3"), "0.png": "1-2-4", "none.png": "1-2-3"}
    del by_path["0.png"]
    assert catalogue.of_files("source", changed, RECIPE) == by_path
    assert (
        catalogue.of_files("source", {}, RECIPE)
        == catalogue.of_files("another", {"0.png": "1-2-3"}, RECIPE)
        == {}
    )
    assert catalogue.of_content(rows[0].content, ANOTHER) is None
    assert catalogue.shards(RECIPE) == {"a.bin"}
    assert catalogue.shards(ANOTHER) == set()
    catalogue.forget_shards(RECIPE, ["a.bin"])
    assert catalogue.of_content(rows[0].content, RECIPE) is None


METHODS: list[Callable[[Catalogue], object]] = [
    lambda catalogue: catalogue.of_files("source", {"a.png": "1"}, RECIPE),
    lambda catalogue: catalogue.of_content(bytes(32), RECIPE),
    lambda catalogue: catalogue.add("source", RECIPE, [("a.png", "1", FOUND)]),
    lambda catalogue: catalogue.shards(RECIPE),
    lambda catalogue: catalogue.forget_shards(RECIPE, ["a.bin"]),
]


@pytest.mark.parametrize("method", METHODS)
def test_a_file_damaged_while_it_is_open_is_told(
    tmp_path: Path, method: Callable[[Catalogue], object]
) -> None:
    catalogue = Catalogue(tmp_path)
    (tmp_path / "catalogue.sqlite").write_bytes(b"garbage" * 4000)
    with pytest.raises(
        OSError, match=r"^catalogue\.sqlite: .*; delete that file, the next prepare writes it anew$"
    ):
        method(catalogue)


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "catalogue.sqlite").write_bytes(b"garbage" * 1000)
    with pytest.raises(
        OSError,
        match=(
            r"^catalogue\.sqlite: file is not a database; delete that file, the next prepare "
            "writes it anew$"
        ),
    ):
        Catalogue(tmp_path)


def test_a_place_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    (tmp_path / "catalogue.sqlite").mkdir()
    with pytest.raises(OSError, match=r"^catalogue\.sqlite: unable to open database file$"):
        Catalogue(tmp_path)


def test_a_full_disk_is_told_when_the_file_is_made(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A limit on the size of files ends a write as a full disk does; SIGXFSZ is ignored by Python.
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(OSError, match=r"^catalogue\.sqlite: "):
            Catalogue(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    Catalogue(tmp_path).add("source", RECIPE, [("a.png", "1", FOUND)])


@pytest.mark.parametrize(
    "statement",
    ["CREATE TABLE files (a)", "CREATE TABLE images (a)", "PRAGMA user_version = 99", ""],
)
def test_tables_of_another_version_are_made_anew(tmp_path: Path, statement: str) -> None:
    connection = sqlite3.connect(tmp_path / "catalogue.sqlite")
    connection.execute(statement)
    connection.commit()
    connection.close()
    catalogue = Catalogue(tmp_path)
    catalogue.add("source", RECIPE, [("a.png", "1", FOUND)])
    # Nothing of this version is dropped.
    assert Catalogue(tmp_path).of_files("source", {"a.png": "1"}, RECIPE) == {"a.png": FOUND}
