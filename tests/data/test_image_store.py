"""The decoded store: what is appended is read."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.image_store import ShardWriter, Store, find_lost_shards, remove_unnamed
from tests.data.conftest import write_store

SIZES = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=10)


def images_of(sizes: list[tuple[int, int]]) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (3, *size), dtype=np.uint8) for size in sizes]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(SIZES, st.integers(1, 3))
def test_the_store_reads_back_exactly_the_pixels(
    sizes: list[tuple[int, int]], num_shards: int
) -> None:
    with TemporaryDirectory() as folder:
        images = images_of(sizes)
        store = write_store(Path(folder) / "images", images, num_shards)
        assert len(store) == len(images)
        for position in reversed(range(len(images))):
            assert np.array_equal(store[position], images[position])


def test_images_cannot_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        write_store(tmp_path, images_of([(2, 2)]))[0][0, 0, 0] = 1


def test_pickling_copies_no_pixels(tmp_path: Path) -> None:
    images = images_of([(400, 400)] * 4)
    store = write_store(tmp_path, images)
    assert np.array_equal(store[0], images[0])
    content = pickle.dumps(store)
    assert len(content) < 2_000
    assert np.array_equal(pickle.loads(content)[3], images[3])


def sums(store: Store) -> list[int]:
    return [int(store[position].sum()) for position in range(len(store))]


def test_a_spawned_process_reads_the_same(tmp_path: Path) -> None:
    images = images_of([(4, 5), (6, 7)])
    store = write_store(tmp_path, images)
    assert sums(store) == [int(image.sum()) for image in images]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(sums, (store,)) == sums(store)


def test_a_writer_without_images_leaves_no_file(tmp_path: Path) -> None:
    ShardWriter(tmp_path / "images").flush()
    assert list(tmp_path.iterdir()) == []


def test_two_writers_have_two_files(tmp_path: Path) -> None:
    first, second = ShardWriter(tmp_path), ShardWriter(tmp_path)
    for writer in (first, second):
        writer.append(np.zeros((3, 2, 2), np.uint8))
        writer.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([first.name, second.name])


@pytest.mark.parametrize(
    ("damage", "lost"), [("none", 0), ("removed", 1), ("truncated", 1), ("longer", 0)]
)
def test_a_shard_that_has_lost_pixels_is_noticed(tmp_path: Path, damage: str, lost: int) -> None:
    store = write_store(tmp_path, images_of([(3, 3), (4, 4), (5, 5)]), 2)
    file = tmp_path / store._shards[1]
    if damage == "removed":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "longer":
        file.write_bytes(file.read_bytes() + b"of a process that was killed")
    assert find_lost_shards(tmp_path, store._shards, store._index) == store._shards[1:][:lost]


def test_shards_without_a_name_are_removed_after_a_day(tmp_path: Path) -> None:
    hour = 3600
    for name, age in (
        ("named.bin", 48 * hour),
        ("old.bin", 25 * hour),
        ("young.bin", 23 * hour),
        ("notes.txt", 48 * hour),
    ):
        (tmp_path / name).write_bytes(b"pixels")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    remove_unnamed(tmp_path, {"named.bin"})
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "named.bin",
        "notes.txt",
        "young.bin",
    ]
    remove_unnamed(tmp_path / "missing", set())
