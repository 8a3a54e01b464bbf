"""What the pruner is told, also of a training that is taken up again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from pipeline.config import Study
from pipeline.search.pruning import Report, build_pruner
from pipeline.search.trials import put_back
from pipeline.tracking import names
from pipeline.tracking.run import Pruned
from tests.conftest import Cli, interrupt
from tests.search.test_study import runs, study_file

METRIC = "val/accuracy"
GOOD, BAD = [0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.96, 0.97], [0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9]


def history(scores: list[float]) -> list[dict[str, float]]:
    return [{METRIC: score} for score in scores]


def reported(trial: optuna.Trial, scores: list[float], resumed_after: int = 0) -> int:
    """Report a training, which is taken up after some epochs; return the epoch after which it is given up, or 0."""
    report = Report(trial, METRIC, prunable=True)
    report.on_start(len(scores), 1)
    report.on_resume(resumed_after, history(scores[:resumed_after]))
    for epoch, values in enumerate(history(scores)[resumed_after:], resumed_after + 1):
        try:
            report.on_epoch(epoch, values, True)
        except Pruned:
            return epoch
    return 0


def study_with(pruner: str) -> optuna.Study:
    # The first four trials of a study of this name are in the bracket that judges after the second epoch, and after the sixth.
    return optuna.create_study(study_name="21", direction="maximize", pruner=build_pruner(Study(pruner=pruner), 9))


def rungs(study: optuna.Study) -> list[dict[str, float]]:
    return [
        {name.removeprefix("completed_rung_"): value for name, value in trial.system_attrs.items() if name.startswith("completed_rung_")}
        for trial in study.trials
    ]


@pytest.mark.parametrize("resumed_after", range(9))
def test_a_resumed_training_has_the_rungs_of_one_that_was_never_interrupted(resumed_after: int) -> None:
    whole, resumed = study_with("hyperband"), study_with("hyperband")
    for _ in range(4):
        assert reported(whole.ask(), GOOD) == reported(resumed.ask(), GOOD, resumed_after)
    assert rungs(resumed) == rungs(whole)
    assert [found["0"] for found in rungs(whole)] == [GOOD[1]] * 4


def test_a_later_training_is_not_given_up_against_the_score_of_a_later_epoch() -> None:
    study = study_with("hyperband")
    first = study.ask()
    assert reported(first, BAD, resumed_after=5) == 0
    assert first.study.trials[0].system_attrs["completed_rung_0"] == BAD[1]
    # Better in every epoch, but worse in its second than the other in its sixth.
    assert reported(study.ask(), GOOD) == 0


@pytest.mark.parametrize("pruner", ["hyperband", "median", "none"])
@pytest.mark.filterwarnings("error::UserWarning")
def test_a_trial_that_waited_reports_each_epoch_once(pruner: str) -> None:
    study = study_with(pruner)
    trial = study.ask()
    report = Report(trial, METRIC, prunable=True)
    report.on_start(9, 1)
    for epoch, values in enumerate(history(GOOD[:6]), 1):
        report.on_epoch(epoch, values, True)
    before = rungs(study)
    put_back(study, trial._trial_id)
    again = study.ask()
    assert again.number == trial.number
    # Its last checkpoint is older than its last epoch.
    assert reported(again, GOOD, resumed_after=4) == 0
    study.tell(again, max(GOOD))
    (done,) = study.trials
    assert done.intermediate_values == dict(enumerate(GOOD, 1))
    assert before[0].items() <= rungs(study)[0].items()


def test_an_interrupted_searched_training_goes_on_as_the_same_trial(cli: Cli, quick: Path) -> None:
    raw: dict[str, Any] = yaml.safe_load(quick.read_text())["base"]
    base = {**raw, "training": {**raw["training"], "epochs": 9, "checkpoint_seconds": 0}}
    space = {"optimizer.lr": {"low": 1e-3, "high": 3e-3, "log": True}}
    file = study_file(quick, base=base, space=space, study={"trials": 2, "pruner": "hyperband"})
    interrupt(cli, "tune", "--config", str(file), training="00", epoch=6)
    done = cli("tune", "--config", file)
    assert done.code == 0, done.err
    (parent,) = runs("tune")
    study = optuna.load_study(study_name=parent.data.tags[names.STUDY], storage=f"sqlite:///{quick.parent / 'optuna.db'}")
    first, second = study.trials
    assert [trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in (first, second)] == [True, True]
    assert sorted(first.intermediate_values) == list(range(1, 10))
    trained = runs("train")
    assert first.user_attrs["run_id"] == trained[0].info.run_id
    for name, score in rungs(study)[0].items():
        assert score in (first.intermediate_values[2], first.intermediate_values[6]), name
