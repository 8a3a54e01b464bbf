"""The disk space that a study says it needs, and what it then uses."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.tracking.workspace import Workspace
from tests.conftest import Cli
from tests.search.test_study import LIST, SPACE, runs, study_file

pytestmark = pytest.mark.slow

NEEDED = re.compile(r"this \w+ needs about (\d+) MB in (.*) \(of [\d,.]+ GB free\)")


def base_of(quick: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    base = yaml.safe_load(quick.read_text())["base"]
    return {**base, **{name: {**base.get(name, {}), **more} for name, more in sections.items()}}


def size_of(*folders: Path) -> int:
    total = 0
    for folder in folders:
        for file in folder.rglob("*"):
            try:
                total += file.stat().st_size if file.is_file() else 0
            except FileNotFoundError:
                continue
    return total


class Peak:
    """Measures how large some folders become while a block runs."""

    def __init__(self, *folders: Path) -> None:
        self._folders, self._ended, self.largest = folders, threading.Event(), 0
        self._thread = threading.Thread(target=self._measure)

    def _measure(self) -> None:
        while not self._ended.wait(0.05):
            self.largest = max(self.largest, size_of(*self._folders))

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()


@pytest.mark.parametrize(
    "network", [pytest.param("resnet18", marks=pytest.mark.thorough), "small_cnn"]
)
def test_a_study_uses_about_as_much_as_it_has_said(
    cli: Cli, quick: Path, workspace: Workspace, network: str
) -> None:
    base = base_of(quick, model={"name": network}, training={"checkpoint_seconds": 0.0})
    file = study_file(quick, base=base, configs=LIST, study={"evaluate": "all"})
    parts = [workspace.checkpoints, workspace.artifacts[0], workspace.outputs]
    with Peak(*parts) as peak:
        done = cli("tune", "--config", file)
    assert done.code == 0, done.err
    ((megabytes, place),) = NEEDED.findall(done.out)
    needed = 1e6 * float(megabytes)
    assert place == str(workspace.home)
    assert needed / 1.5 < peak.largest < needed * 1.5
    # Nothing is left to do, and nothing is said.
    assert not NEEDED.search(cli("tune", "--config", file).out)


def test_a_study_that_has_too_little_space_is_refused_before_anything_is_trained(
    cli: Cli, quick: Path, store: Path
) -> None:
    space = {**SPACE, "model.name": ["resnet18", "vit_b_16"]}
    file = study_file(quick, base=base_of(quick, data={"image_size": 32}), space=space)
    done = cli("tune", "--config", file, "--study.trials", "100000000")
    assert done.code == 2
    assert re.fullmatch(
        r"error: this study needs about [\d,.]+ GB in .*my work, where [\d,.]+ GB are free; .*"
        r"study.trials.*MLFLOW_TRACKING_URI.*keep_weights.*\n",
        done.err,
    ), done.err
    assert runs() == []
    assert not (store / "checkpoints").exists()


def test_only_what_is_still_to_do_needs_space(cli: Cli, quick: Path) -> None:
    base = base_of(quick, data={"folds": 2, "fold": "all"}, training={"epochs": 1})
    tune = ["tune", "--config", study_file(quick, base=base, configs=LIST[:1], space=SPACE)]
    needed = []
    for number in (1, 2, 2):
        done = cli(*tune, "--study.trials", number)
        assert done.code == 0, done.err
        needed.append([int(megabytes) for megabytes, _ in NEEDED.findall(done.out)])
    assert needed[0] == needed[1] != []
    assert needed[2] == []


def test_a_single_training_says_what_it_needs(cli: Cli, quick: Path) -> None:
    done = cli("train", "--config", quick)
    assert done.code == 0, done.err
    assert len(NEEDED.findall(done.out)) == 1
    assert not NEEDED.search(cli("train", "--config", quick).out)
