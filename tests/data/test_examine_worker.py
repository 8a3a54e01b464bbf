"""A process of the pool that examines images."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from pipeline.data.decode import Decoding
from pipeline.data.examine_worker import Recipe, examine_chunk, start_worker
from pipeline.data.sources.source import Files
from tests.data.conftest import WriteImages


def test_a_worker_process_tells_why_it_cannot_start(photos: WriteImages, tmp_path: Path) -> None:
    (tmp_path / "catalogue.sqlite").mkdir()
    reader, recipe = Files(photos({"cat": 2})), Recipe(tmp_path, Decoding(8, max_pixels=1000))
    with ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), start_worker, (reader, recipe)
    ) as pool:
        for _ in range(2):
            with pytest.raises(OSError, match=r"^catalogue\.sqlite: unable to open database file$"):
                pool.submit(examine_chunk, ["cat/000.png"]).result()
        (tmp_path / "catalogue.sqlite").rmdir()
    with ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), start_worker, (reader, recipe)
    ) as pool:
        assert len(pool.submit(examine_chunk, ["cat/000.png", "cat/001.png"]).result()) == 2
