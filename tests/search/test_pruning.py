"""What the pruner is told, also of a training that is taken up again."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from mlflow import MlflowClient
from optuna.pruners import NopPruner
from optuna.trial import TrialState

from pipeline.config import Study
from pipeline.search.pruning import PruningCallback, build_pruner, first_rung
from pipeline.search.trials import put_back
from pipeline.tracking import names
from pipeline.tracking.tracked_run import Pruned
from tests.conftest import Cli, interrupt
from tests.search.test_study import runs, study_file

METRIC = "val/accuracy"
GOOD, BAD = (
    [0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.96, 0.97],
    [0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9],
)


def history(scores: list[float]) -> list[dict[str, float]]:
    return [{METRIC: score} for score in scores]


def reported(trial: optuna.Trial, scores: list[float], resumed_after: int = 0) -> int:
    """Report a training, which is taken up after some epochs.

    Return the epoch after which it is given up, or 0.
    """
    report = PruningCallback(trial, METRIC, prunable=True)
    report.on_start(len(scores), 1)
    report.on_resume(resumed_after, history(scores[:resumed_after]))
    for epoch, values in enumerate(history(scores)[resumed_after:], resumed_after + 1):
        try:
            report.on_epoch(epoch, values, True)
        except Pruned:
            return epoch
    return 0


def study_with(pruner: str) -> optuna.Study:
    # The first four trials of a study of this name are in the bracket that judges after the second
    # epoch, and after the sixth.
    return optuna.create_study(
        study_name="21", direction="maximize", pruner=build_pruner(Study(pruner=pruner), 9)
    )


def rungs(study: optuna.Study) -> list[dict[str, float]]:
    return [
        {
            name.removeprefix("completed_rung_"): value
            for name, value in trial.system_attrs.items()
            if name.startswith("completed_rung_")
        }
        for trial in study.trials
    ]


@pytest.mark.parametrize("resumed_after", range(9))
def test_a_resumed_training_has_the_rungs_of_one_that_was_never_interrupted(
    resumed_after: int,
) -> None:
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
    report = PruningCallback(trial, METRIC, prunable=True)
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
    study = optuna.load_study(
        study_name=parent.data.tags[names.STUDY], storage=f"sqlite:///{quick.parent / 'optuna.db'}"
    )
    first, second = study.trials
    assert [
        trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in (first, second)
    ] == [True, True]
    assert sorted(first.intermediate_values) == list(range(1, 10))
    trained = runs("train")
    assert first.user_attrs["run_id"] == trained[0].info.run_id
    for name, score in rungs(study)[0].items():
        assert score in (first.intermediate_values[2], first.intermediate_values[6]), name


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 7, 8, 9, 20])
def test_hyperband_judges_trainings_of_any_length(epochs: int) -> None:
    study = optuna.create_study(
        study_name="21",
        direction="maximize",
        pruner=build_pruner(Study(pruner="hyperband"), epochs),
    )
    for score in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4):
        assert reported(study.ask(), [score] * epochs) <= epochs
    first = min(
        (
            trial.last_step
            for trial in study.trials
            if any("rung" in name for name in trial.system_attrs)
        ),
        default=0,
    )
    assert first_rung(epochs) == {1: 1, 2: 1, 3: 1, 4: 1, 7: 1, 8: 2, 9: 2, 20: 5}[epochs]
    assert first >= first_rung(epochs) or epochs == 1


def test_median_judges_from_the_first_epoch_on() -> None:
    study = study_with("median")
    for _ in range(5):
        trial = study.ask()
        assert reported(trial, GOOD) == 0
        study.tell(trial, GOOD[-1])
    assert reported(study.ask(), BAD) == 1


def test_by_default_trials_race_and_no_pruner_of_optuna_gives_one_up() -> None:
    assert Study().pruner == "one_epoch"
    assert isinstance(build_pruner(Study(), 9), NopPruner)


@pytest.mark.thorough
def test_a_study_goes_on_with_the_pruner_and_the_rungs_that_it_was_begun_with(
    cli: Cli, quick: Path
) -> None:
    file = study_file(quick, space={"optimizer.lr": {"low": 1e-3, "high": 4e-3}})
    tune = ("tune", "--config", file, "--training.epochs", "9", "--study.trials")
    assert cli(*tune, "1", "--study.pruner", "hyperband").code == 0
    (name,) = [
        study.study_name
        for study in optuna.get_all_study_summaries(f"sqlite:///{quick.parent / 'optuna.db'}")
    ]
    with closing(sqlite3.connect(quick.parent / "optuna.db")) as database, database:
        # Release 0.1.0 did not note it.
        assert (
            database.execute("DELETE FROM study_user_attributes WHERE key = 'first_rung'").rowcount
            == 1
        )
    done = cli(*tune, "3")
    assert done.code == 0, done.err
    assert (
        f"study {name} goes on with study.pruner hyperband, with which it was begun; "
        "--study.pruner one_epoch changes that"
    ) in done.out
    study = optuna.load_study(study_name=name, storage=f"sqlite:///{quick.parent / 'optuna.db'}")
    client = MlflowClient()
    for trial in study.trials[1:]:
        scores = {
            one.step: one.value
            for one in client.get_metric_history(trial.user_attrs["run_id"], METRIC)
        }
        # Brackets of 1, 3 and 9 epochs; now the first would be 2.
        assert trial.system_attrs["completed_rung_0"] in (scores[1], scores.get(3))
    done = cli(*tune, "4", "--study.pruner", "none")
    assert f"study {name} was begun with study.pruner hyperband, and goes on with none" in done.out
    assert [
        trial for trial in study.trials[3:] if any("rung" in key for key in trial.system_attrs)
    ] == []
