"""How many workers ``study.workers auto`` takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.search.worker_count import FILE
from pipeline.search.worker_processes import num_cores
from pipeline.training.throughput import Load, measure_throughput
from tests.conftest import Cli
from tests.search.test_study import LIST, runs, study_file


@pytest.mark.thorough
def test_workers_are_measured_beside_one_another() -> None:
    load = Load(["small_cnn"], 3, 32, 16, seconds=0.5)
    two = measure_throughput(load, 2, 1)
    assert two is not None and two.rates["small_cnn"] > 0 and two.num_bytes > 2**20
    assert measure_throughput(load._replace(networks=["no such network"]), 2, 1) is None


@pytest.mark.thorough
@pytest.mark.skipif(num_cores() < 2, reason="needs two cores")
def test_auto_is_measured_once_for_a_study(cli: Cli, quick: Path) -> None:
    file = study_file(quick, configs=LIST, study={"workers": "auto"})
    done = cli("tune", "--config", file)
    assert done.code == 0, done.err
    assert "how many workers get most done with small_cnn is measured" in done.out
    [kept] = (quick.parent / "checkpoints").rglob(FILE)
    (count,) = json.loads(kept.read_text()).values()
    assert 1 <= count <= num_cores() and (f"{count} workers" in done.out) == (count > 1)
    assert len(runs("train")) == len(LIST)
    again = cli("tune", "--config", file)
    assert again.code == 0 and "is measured" not in again.out
