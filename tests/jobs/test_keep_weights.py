"""Weights that `tracking.keep_weights` removes, and those that it keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.tracking import artifacts, names
from pipeline.tracking.workspace import open_workspace
from tests.conftest import Cli
from tests.search.test_study import runs, study_file

pytestmark = pytest.mark.slow

LIST = [{"optimizer": {"lr": lr}} for lr in (3e-3, 2e-3, 1e-3, 1e-5)]
KEEP = {"tracking": {"keep_weights": 1}}
ALL = {"evaluate": "all"}


def file_of(quick: Path, keep: int = 1, **parts: object) -> Path:
    import yaml

    base = {**yaml.safe_load(quick.read_text())["base"], "tracking": {"keep_weights": keep}}
    return study_file(quick, base=base, **parts)


def with_weights() -> list[bool]:
    """Whether each training has its weights, in the order in which they were trained."""
    workspace = open_workspace("quick")
    found = []
    for run in runs("train"):
        has = artifacts.has_artifact(workspace, run.info.run_id, names.CHECKPOINT)
        assert has == (run.data.tags.get(names.WEIGHTS) != names.REMOVED)
        found.append(has)
    return found


def test_the_best_keep_their_weights_and_the_others_their_results(cli: Cli, quick: Path) -> None:
    done = cli("tune", "--config", file_of(quick, 2, configs=LIST, study=ALL))
    assert done.code == 0, done.err
    print(done.out)
    print(with_weights())
