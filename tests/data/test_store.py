"""The decoded store: what is written is read, whole or not at all."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.store import Store, in_threads, is_complete, write_store

SIZES = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=10)


def images_of(sizes: list[tuple[int, int]]) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (3, *size), dtype=np.uint8) for size in sizes]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(SIZES)
def test_the_store_reads_back_exactly_the_pixels(sizes: list[tuple[int, int]]) -> None:
    with TemporaryDirectory() as folder:
        images = images_of(sizes)
        write_store(Path(folder) / "images", images)
        store = Store(Path(folder) / "images")
        assert len(store) == len(images)
        for position in reversed(range(len(images))):
            assert np.array_equal(store[position], images[position])
        assert is_complete(Path(folder) / "images")


def test_a_name_with_a_dot_keeps_it(tmp_path: Path) -> None:
    write_store(tmp_path / "images-32-bilinear", images_of([(2, 2)]))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["images-32-bilinear.bin", "images-32-bilinear.npy"]


def test_images_cannot_be_written_to(tmp_path: Path) -> None:
    write_store(tmp_path / "images", images_of([(2, 2)]))
    with pytest.raises(ValueError, match="read-only"):
        Store(tmp_path / "images")[0][0, 0, 0] = 1


def test_pickling_copies_no_pixels(tmp_path: Path) -> None:
    images = images_of([(400, 400)] * 4)
    write_store(tmp_path / "images", images)
    store = Store(tmp_path / "images")
    assert np.array_equal(store[0], images[0])
    content = pickle.dumps(store)
    assert len(content) < 2_000
    assert np.array_equal(pickle.loads(content)[3], images[3])


def sums(store: Store) -> list[int]:
    return [int(store[position].sum()) for position in range(len(store))]


def test_a_spawned_process_reads_the_same(tmp_path: Path) -> None:
    images = images_of([(4, 5), (6, 7)])
    write_store(tmp_path / "images", images)
    store = Store(tmp_path / "images")
    assert sums(store) == [int(image.sum()) for image in images]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(sums, (store,)) == sums(store)


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    def failing() -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
        yield from images_of([(2, 2)])
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_store(tmp_path / "images", failing())
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_older_store_as_it_was(tmp_path: Path) -> None:
    images = images_of([(3, 3), (4, 4)])
    write_store(tmp_path / "images", images)
    with pytest.raises(ZeroDivisionError):
        write_store(tmp_path / "images", (image // (1 // 0) for image in images))
    assert np.array_equal(Store(tmp_path / "images")[1], images[1])


@pytest.mark.parametrize("damage", ["no index", "no pixels", "truncated"])
def test_a_store_with_a_part_missing_is_not_complete(tmp_path: Path, damage: str) -> None:
    write_store(tmp_path / "images", images_of([(3, 3), (4, 4)]))
    pixels = tmp_path / "images.bin"
    if damage == "no index":
        (tmp_path / "images.npy").unlink()
    elif damage == "no pixels":
        pixels.unlink()
    else:
        pixels.write_bytes(pixels.read_bytes()[:-1])
    assert not is_complete(tmp_path / "images")


def test_threads_keep_the_order() -> None:
    assert list(in_threads(lambda number: number * 2, range(500))) == list(range(0, 1000, 2))


def test_threads_of_nothing_yield_nothing() -> None:
    assert list(in_threads(str, [])) == []


def test_threads_pass_an_exception_on() -> None:
    results = in_threads(lambda number: 1 // number, [1, 0])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_threads_run_a_bounded_number_of_items_ahead() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(100_000):
            taken += 1
            yield number

    results = in_threads(str, items())
    assert next(results) == "0"
    assert taken < 10_000
    results.close()  # type: ignore[attr-defined]
