"""The race of all searched trials for one epoch, and of the best of them to the end."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml
from optuna.trial import TrialState

from pipeline.config import Study
from pipeline.errors import Interrupted, Paused, StoreAway
from pipeline.experiment import load_experiment
from pipeline.jobs.helper_processes import train_in_group
from pipeline.search.one_epoch import (
    Race,
    RaceCallback,
    Standing,
    is_late,
    waits_for_others,
)
from pipeline.search.trials import KEY, PLACE, num_drawn, put_back
from pipeline.tracking import names
from pipeline.tracking.tracked_run import Pruned
from tests.conftest import Cli, start, wait_for
from tests.search.test_study import runs, study_file
from tests.search.test_workers import TUNE, rest_of

METRIC = "val/accuracy"
EPOCHS = 4


def study_of(scores: list[float], listed: int = 0) -> optuna.Study:
    study = optuna.create_study(direction="maximize")
    for place in range(listed):
        study.enqueue_trial({}, {PLACE: place, KEY: "of the list"})
    for place in range(len(scores)):
        study.enqueue_trial({}, {PLACE: listed + place})
    return study


def begin(study: optuna.Study, number: int) -> optuna.Trial:
    """Begin a waiting trial, as a worker does."""
    trial_id = study.trials[number]._trial_id
    assert study._storage.set_trial_state_values(trial_id, TrialState.RUNNING)
    trial = optuna.Trial(study, trial_id)
    # No two trials have the same values, but those that are to.
    trial.suggest_float("x", 0, 1)
    return trial


def train(study: optuna.Study, number: int, score: float, settings: Study) -> str:
    """Train a trial for an epoch, or on from there; return how that ended."""
    trial = begin(study, number)
    callback = RaceCallback(trial, METRIC, settings)
    callback.on_start(EPOCHS, 1)
    first = {METRIC: score}
    try:
        if study.trials[trial.number].intermediate_values:
            callback.on_resume(1, [first])
        else:
            callback.on_resume(0, [])
            callback.on_epoch(1, first, True)
        for epoch in range(2, EPOCHS + 1):
            callback.on_epoch(epoch, first, True)
    except Paused:
        put_back(study, trial._trial_id)
        return "waits"
    except Pruned:
        study.tell(trial, state=TrialState.PRUNED)
        return "pruned"
    study.tell(trial, score)
    return "complete"


def due(study: optuna.Study, settings: Study) -> list[int]:
    """Return the numbers of waiting trials that a worker may train now."""
    race = Race.of(study, settings)
    numbers = []
    for trial in study.get_trials(states=(TrialState.WAITING,)):
        if not waits_for_others(trial) or race.standing(trial.number) != Standing.OPEN:
            numbers.append(trial.number)
    return numbers


def run_race(scores: list[float], settings: Study, order: random.Random) -> set[int]:
    """Train a study of these first scores, in any order; return what was trained to its end."""
    study = study_of(scores)
    complete = set()
    while numbers := due(study, settings):
        number = order.choice(numbers)
        if train(study, number, scores[number], settings) == "complete":
            complete.add(number)
    assert all(trial.state.is_finished() for trial in study.trials)
    return complete


@pytest.mark.parametrize("number", [1, 3, 4, 9])
@pytest.mark.parametrize("finalists", [0, 1, 2, 20])
def test_in_any_order_the_best_after_one_epoch_are_trained_to_their_end(
    number: int, finalists: int
) -> None:
    settings = Study(finalists=finalists)
    for seed in range(6):
        draws = np.random.default_rng(seed)
        scores = [float(score) for score in draws.permutation(number)]
        best = sorted(range(number), key=lambda one: -scores[one])
        expected = set(best[: settings.num_finalists(number)])
        assert run_race(scores, settings, random.Random(seed)) == expected


def test_equal_scores_go_on_in_the_order_of_their_trials() -> None:
    assert run_race([0.5] * 5, Study(), random.Random(1)) == {0, 1}


def test_a_trial_that_is_certain_to_go_on_does_not_wait() -> None:
    study, settings = study_of([0.1, 0.9]), Study(finalists=1)
    assert train(study, 0, 0.1, settings) == "waits"
    race = Race.of(study, settings)
    assert race == Race([0], num_open=1, num_finalists=1, num_hurried=0, total=2)
    assert train(study, 1, 0.9, settings) == "complete"
    assert train(study, 0, 0.1, settings) == "pruned"


def test_only_searched_trials_take_part() -> None:
    study = study_of([0.1, 0.2], listed=3)
    race = Race.of(study, Study())
    assert (race.total, race.num_open, race.num_finalists) == (2, 2, 1)


def test_a_failed_trial_is_not_waited_for() -> None:
    study, settings = study_of([0.5, 0.5]), Study(finalists=1)
    study.tell(begin(study, 0), state=TrialState.FAIL)
    assert train(study, 1, 0.5, settings) == "complete"


def test_what_was_trained_before_the_study_is_not_waited_for() -> None:
    study, settings = study_of([0.5, 0.5]), Study(finalists=1)
    study.tell(begin(study, 0), 0.9)
    assert train(study, 1, 0.5, settings) == "complete"


def test_of_equal_configurations_one_goes_on() -> None:
    study, settings = study_of([0.5] * 4), Study(finalists=2)
    for trial in study.trials[:2]:
        study._storage.set_trial_param(
            trial._trial_id, "x", 0.5, optuna.distributions.FloatDistribution(0, 1)
        )
    assert train(study, 0, 0.5, settings) == "waits"
    assert train(study, 1, 0.5, settings) == "pruned"
    assert train(study, 2, 0.4, settings) == "waits"


def test_a_study_that_grows_after_its_race_has_places_for_more() -> None:
    study, settings = study_of([0.5] * 4), Study()
    for number in range(4):
        train(study, number, 1 - number / 10, settings)
    ended = [train(study, number, 1.0, settings) for number in due(study, settings)]
    assert ended == ["complete"] * 2
    for place in range(4, 10):
        study.enqueue_trial({}, {PLACE: place})
    # Three of ten are to be trained to the end, and two are.
    ended = [train(study, number, number / 100, settings) for number in range(4, 10)]
    assert ended == [*["waits"] * 5, "complete"]
    ended = [train(study, number, number / 100, settings) for number in range(4, 9)]
    assert ended == ["pruned"] * 5


def test_trainings_of_one_epoch_take_no_place_of_others() -> None:
    study, settings = study_of([0.5] * 3), Study(finalists=1)
    trial = begin(study, 0)
    trial.report(0.9, 1)
    study.tell(trial, 0.9)
    assert train(study, 1, 0.5, settings) == "waits"
    assert train(study, 2, 0.4, settings) == "pruned"
    assert train(study, 1, 0.5, settings) == "complete"


def test_a_trial_that_another_worker_has_ended_waits_for_nobody() -> None:
    study, settings = study_of([0.5] * 3), Study(finalists=1)
    assert train(study, 0, 0.5, settings) == "waits"
    study.tell(begin(study, 0), state=TrialState.FAIL)
    assert Race.of(study, settings).standing(0) == Standing.BEHIND


def test_what_waits_does_not_let_a_study_draw_the_same_again() -> None:
    study, settings = study_of([0.5] * 3), Study(finalists=2)
    assert num_drawn(study) == 0
    assert train(study, 0, 0.5, settings) == "waits"
    assert num_drawn(study) == 1


def test_a_training_of_one_epoch_is_complete_after_it() -> None:
    study = study_of([0.5, 0.5])
    callback = RaceCallback(begin(study, 0), METRIC, Study(finalists=1))
    callback.on_start(1, 1)
    # It is neither pruned nor has to wait: either would be raised.
    callback.on_epoch(1, {METRIC: 0.1}, True)
    assert study.trials[0].intermediate_values == {1: 0.1}


def test_what_goes_on_is_not_judged_again() -> None:
    study, settings = study_of([0.5] * 3), Study(finalists=1)
    trial = begin(study, 0)
    trial.report(0.1, 1)
    trial.report(0.1, 2)
    callback = RaceCallback(trial, METRIC, settings)
    callback.on_start(EPOCHS, 1)
    callback.on_resume(2, [{METRIC: 0.1}, {METRIC: 0.1}])
    # Its checkpoint is gone, so that it begins anew, or it is that of its pause.
    callback.on_epoch(1, {METRIC: 0.1}, True)
    callback.on_resume(1, [{METRIC: 0.1}])
    assert Race.of(study, settings).standing(0) == Standing.OPEN


def test_when_it_is_late_the_best_so_far_wait_for_nobody() -> None:
    study, settings = study_of([0.5] * 10), Study()
    for number in range(5):
        assert train(study, number, number / 10, settings).startswith(("waits", "pruned"))
    # Half of them have trained for an epoch, so that half of the three places are given away.
    race = Race.of(study, settings, late=True)
    assert race.num_hurried == 2
    standings = [race.standing(number) for number in range(5)]
    assert standings == [*[Standing.BEHIND] * 2, Standing.OPEN, *[Standing.AHEAD] * 2]
    assert Race.of(study, settings).standing(4) == Standing.OPEN

    trial = begin(study, 4)
    callback = RaceCallback(trial, METRIC, settings, is_late=lambda: True)
    callback.on_start(EPOCHS, 1)
    # It would be raised that it has to wait.
    callback.on_resume(1, [{METRIC: 0.4}])


@pytest.mark.parametrize(
    ("listed", "trials", "epochs", "share"),
    [(0, 10, 11, 0.25), (2, 12, 11, 0.5161), (4, 4, 3, 1.0), (6, 4, 3, 1.0), (0, 10, 1, 1.0)],
)
def test_it_is_late_when_the_time_of_list_and_first_epochs_is_over(
    tmp_path: Path, listed: int, trials: int, epochs: int, share: float
) -> None:
    content: dict[str, Any] = {
        "base": {"data": {"source": "digits"}, "training": {"epochs": epochs}},
        "configs": [{}] * listed,
        "space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2}},
        "study": {"trials": trials},
    }
    file = tmp_path / "race.yaml"
    file.write_text(yaml.safe_dump(content))
    began = time.time() - 2 * 3600 * share
    experiment = load_experiment(str(file), {"study": {"hours": 2}})
    assert is_late(experiment, began - 30) and not is_late(experiment, began + 30)
    assert not is_late(load_experiment(str(file), {}), 0.0)


@pytest.mark.thorough
def test_trials_that_are_pruned_after_an_epoch_do_not_try_the_patience(
    cli: Cli, quick: Path
) -> None:
    done = cli("tune", "--config", race_file(quick, trials=7, finalists=1, patience=2))
    assert done.code == 0, done.err
    assert "no further trial begins" not in done.out
    assert all(trial.state.is_finished() for trial in load_trials())


def race_file(quick: Path, **study: Any) -> str:
    base = yaml.safe_load(quick.read_text())["base"]
    base["training"] |= {"epochs": 4}
    space = {"optimizer.lr": {"low": 1e-6, "high": 0.01, "log": True}}
    configs = [{"optimizer": {"lr": 0.002}}]
    return str(study_file(quick, base=base, configs=configs, space=space, study=study))


def epochs_of_trials() -> dict[int, list[int]]:
    epochs = {}
    for trial in load_trials():
        epochs[trial.user_attrs[PLACE]] = sorted(trial.intermediate_values)
    return epochs


def load_trials() -> list[optuna.trial.FrozenTrial]:
    (study,) = optuna.get_all_study_names("sqlite:///optuna.db")
    return optuna.load_study(study_name=study, storage="sqlite:///optuna.db").trials


def test_a_study_trains_all_for_an_epoch_and_the_best_to_the_end(cli: Cli, quick: Path) -> None:
    file = race_file(quick, trials=7, finalists=2)
    done = cli("tune", "--config", file)
    assert done.code == 0, done.err
    assert "waits after epoch 1 of 4" in done.out and "pruned after epoch 1 of 4" in done.out
    epochs = epochs_of_trials()
    assert epochs[0] == [1, 2, 3, 4]
    searched = [epochs[place] for place in range(1, 7)]
    assert sorted(searched) == sorted([[1]] * 4 + [[1, 2, 3, 4]] * 2)
    # The best two after the first epoch are those that went on.
    first = {}
    for trial in load_trials()[1:]:
        first[trial.user_attrs[PLACE]] = trial.intermediate_values[1]
    went_on = {place for place in range(1, 7) if len(epochs[place]) > 1}
    assert min(first[place] for place in went_on) >= max(
        first[place] for place in first.keys() - went_on
    )
    # Those that waited went on in their own runs, with no epoch twice.
    states = sorted(run.data.tags[names.STATE] for run in runs("train"))
    assert states == [names.COMPLETE] * 3 + [names.PRUNED] * 4
    assert not list((quick.parent / "checkpoints" / "quick").glob("*/resume-*.pt"))


@pytest.mark.thorough
def test_workers_race_as_one_does(cli: Cli, quick: Path) -> None:
    done = cli("tune", "--config", race_file(quick, trials=9, finalists=3, workers=2))
    assert done.code == 0, done.err
    trials = load_trials()
    assert all(trial.state.is_finished() for trial in trials)
    searched = sorted(trials[1:], key=lambda trial: -trial.intermediate_values[1])
    states = [trial.state for trial in searched]
    assert states == [TrialState.COMPLETE] * 3 + [TrialState.PRUNED] * 5


@pytest.mark.thorough
def test_processes_that_train_together_race_as_one_does(quick: Path) -> None:
    file = race_file(quick, trials=6, finalists=1)
    # The last of those that wait is given up when it goes on: its helpers are to know that.
    tuned = start([*TUNE, file, "--training.processes", "2"], quick.parent, OMP_NUM_THREADS="1")
    said = rest_of(tuned)
    assert tuned.returncode == 0, said
    assert "pruned after epoch 1" in said
    states = sorted(trial.state.name for trial in load_trials())
    assert states == ["COMPLETE"] * 2 + ["PRUNED"] * 4


@pytest.mark.thorough
def test_a_trial_whose_run_was_given_up_before_its_worker_died_is_not_trained_again(
    cli: Cli, quick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = race_file(quick, trials=5, finalists=1)
    tell = optuna.Study.tell

    def die_once(study: optuna.Study, *arguments: Any, **options: Any) -> Any:
        if options.get("state") == TrialState.PRUNED:
            monkeypatch.setattr(optuna.Study, "tell", tell)
            raise StoreAway("the database does not answer")
        return tell(study, *arguments, **options)

    monkeypatch.setattr(optuna.Study, "tell", die_once)
    assert cli("tune", "--config", file).code == 1
    done = cli("tune", "--config", file)
    assert done.code == 0 and "pruned before" in done.out
    trials = [run.data.tags[names.TRIAL] for run in runs("train")]
    assert sorted(trials) == list("01234")
    assert all(trial.state.is_finished() for trial in load_trials())


@pytest.mark.thorough
def test_a_race_goes_on_after_an_interruption(cli: Cli, quick: Path) -> None:
    file = race_file(quick, trials=7, finalists=2)
    tuned = start([*TUNE, file], quick.parent)
    wait_for(tuned, "waits after epoch 1")
    tuned.send_signal(signal.SIGINT)
    rest_of(tuned)
    done = cli("tune", "--config", file)
    assert done.code == 0, done.err
    states = sorted(trial.state.name for trial in load_trials())
    assert states == ["COMPLETE"] * 3 + ["PRUNED"] * 4
    # With more trials a new race begins, against what was complete before.
    more = cli("tune", "--config", file, "--study.trials", "9")
    assert more.code == 0, more.err
    assert len(load_trials()) == 9
    assert all(trial.state.is_finished() for trial in load_trials())


@pytest.mark.thorough
def test_a_trial_leaves_the_failed_run_that_another_one_has_gone_on_with(
    cli: Cli, quick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = {"optimizer.lr": [3e-3, 1e-3]}
    study = {"trials": 4, "sampler": "random", "finalists": 2}
    file = str(study_file(quick, space=space, study=study))
    trainings = []

    def train_or_fail(*given: Any) -> Any:
        trainings.append(given)
        if len(trainings) == 1:
            raise OSError(5, "Input/output error")
        if len(trainings) == 4:
            raise Interrupted("stopped by SIGINT")
        return train_in_group(*given)

    with monkeypatch.context() as patched:
        patched.setattr("pipeline.jobs.train.train_in_group", train_or_fail)
        assert cli("tune", "--config", file).code == 1
    done = cli("tune", "--config", file)
    assert done.code == 0, done.err
    complete = [run for run in runs("train") if run.data.tags[names.STATE] == names.COMPLETE]
    assert {run.data.params["optimizer.lr"] for run in complete} == {"0.003", "0.001"}
