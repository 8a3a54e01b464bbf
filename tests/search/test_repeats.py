"""Further trainings of some configurations of a study."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState, create_trial

from pipeline.errors import UserError
from pipeline.experiment import load_experiment
from pipeline.search.repeats import find_repeated
from pipeline.search.trials import ENTRY, KEY, MAY_PASS, RUN_ID, UID
from pipeline.steps.options import parse_options, read_experiment
from pipeline.steps.tune import OPTIONS as TUNE
from pipeline.tracking import find_runs, study_runs
from pipeline.tracking.workspace import open_workspace
from tests.conftest import Cli
from tests.search.test_study import study_file

PARTS: dict[str, Any] = {
    "configs": [{}, {}],
    "space": {"optimizer.lr": [1e-3]},
    "study": {"trials": 3},
}


def seeds_of(experiment: str = "quick") -> dict[str, list[int]]:
    """Return the seeds of each configuration of an experiment, by its hash."""
    found = defaultdict(list)
    for row in find_runs.find_trainings(open_workspace(experiment)):
        found[row["config_hash"]].append(row["seed"])
    return {config_hash: sorted(seeds) for config_hash, seeds in found.items()}


def test_only_the_asked_configurations_get_further_seeds(cli: Cli, quick: Path) -> None:
    tune = ("tune", "--config", str(study_file(quick, **PARTS)), "--training.epochs", "1")
    refused = cli(*tune, "--study.only", "ab")
    assert refused.code == 2 and "has no trainings yet; tune it without study.only" in refused.err
    assert cli(*tune).code == 0
    (listed,) = (key for key, seeds in seeds_of().items() if seeds == [0, 1])
    (searched,) = (key for key, seeds in seeds_of().items() if seeds == [0])
    workspace = open_workspace("quick")

    def parents() -> list[Any]:
        found = []
        for study in study_runs.find_studies(workspace):
            for run in study_runs.find_study_parents(workspace, study.name):
                found.append((run.info.run_id, run.info.status, run.info.end_time))
        return found

    before = parents()
    for wrong, said in ((listed[:5] + "zz", f"nearest: {listed}"), ("none", "allowed: ")):
        refused = cli(*tune, "--study.only", wrong)
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert f"unknown configuration in study.only {wrong!r}" in refused.err
        assert said in refused.err
    assert parents() == before

    both = f"{searched[:8]}, {listed}"
    more = cli(*tune, "--study.only", both, "--study.repeats", "3")
    assert more.code == 0, more.err
    assert "3 trainings with further seeds" in more.out
    assert [f"trial {number} of 6" in more.out for number in (4, 5, 6)] == [True] * 3
    assert seeds_of() == {listed: [0, 1, 2], searched: [0, 1, 2]}
    # What is there is not trained again, and the study itself is as finished as before.
    again = cli(*tune, "--study.only", both, "--study.repeats", "3")
    assert again.code == 0 and "each of them has 3 trainings or more already" in again.out
    done = cli(*tune)
    assert done.code == 0 and "trial " not in done.out
    assert seeds_of() == {listed: [0, 1, 2], searched: [0, 1, 2]}
    assert len(parents()) == 1


@pytest.mark.parametrize(
    ("only", "said"),
    [
        ("abc", "'abc' may be any of abc000000001, abc000000002; give more of its digits"),
        (" , ", "' , ' names no configuration"),
    ],
)
def test_what_names_several_configurations_or_none_is_refused(
    quick: Path, only: str, said: str
) -> None:
    experiment = load_experiment(str(quick), {"study": {"only": only}})
    rows = [
        {
            "state": "complete",
            "val_accuracy": 0.5,
            "data_digest": "d",
            "config_hash": f"abc00000000{number}",
            "seed": 0,
        }
        for number in (1, 2)
    ]
    with pytest.raises(UserError, match=re.escape(f"study.only: {said}")):
        find_repeated(experiment, [], rows, "d")


def row_of(seed: int | None) -> dict[str, Any]:
    return {
        "state": "complete",
        "val_accuracy": 0.5,
        "data_digest": "d",
        "config_hash": "abc",
        "seed": seed,
        "run_id": f"run {seed}",
        "uid": f"uid {seed}",
    }


@pytest.mark.parametrize("noted", [{RUN_ID: "run 0"}, {UID: "uid 0"}])
def test_a_seed_that_failed_for_good_is_passed_over(quick: Path, noted: dict[str, str]) -> None:
    wanted = {"study": {"only": "abc", "repeats": 3}}
    experiment = load_experiment(str(quick), wanted)
    entry = experiment.base.model_dump(mode="json")
    trials = [
        create_trial(value=0.5, user_attrs={**noted, ENTRY: entry, KEY: "abc:0"}),
        create_trial(state=TrialState.FAIL, user_attrs={KEY: "abc:1", MAY_PASS: False}),
        create_trial(state=TrialState.FAIL, user_attrs={KEY: "abc:2", MAY_PASS: True}),
    ]
    # What another program has written has no seed, and is no repeat.
    rows = [row_of(0), row_of(None)]
    found = find_repeated(experiment, trials, rows, "d")
    assert [one.training.seed for one in found] == [2, 3]


def test_the_next_command_of_a_named_study_names_it_alone(quick: Path) -> None:
    own = parse_options(TUNE, ["--config", str(quick)])[0]
    overrides = {"training": {"epochs": 1}, "study": {"name": "mine"}}
    command = read_experiment(own, overrides).command
    assert command("summary", "").endswith("quick.yaml' --study.name mine")
    assert "--training.epochs 1 --study.name mine" in command("tune", "")
