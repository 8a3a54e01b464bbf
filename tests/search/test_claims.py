"""Workers claim trials: each trial is one worker's, until that one gives no sign of life."""

from __future__ import annotations

import os
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path

import optuna
import pytest
from optuna.storages._rdb.models import TrialModel
from optuna.trial import FrozenTrial, TrialState

from pipeline.errors import TakenOver
from pipeline.search.claims import OWNER, Claims, Owner, _find_marks, is_held
from pipeline.search.study_storage import Database
from pipeline.search.trials import put_back
from tests.conftest import thorough_of

NUM_TRIALS = 24


def any_trial(trial: FrozenTrial) -> bool:
    return bool(trial.number >= 0)


def open_study(database: Database, num_trials: int, name: str = "claims") -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(storage=database.storage, study_name=name)
    for _ in range(num_trials):
        study.enqueue_trial({})
    return study


@pytest.mark.parametrize("kind", thorough_of(["sqlite", "postgresql"], ["sqlite"]))
def test_of_many_workers_one_gets_each_trial(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    url = f"sqlite:///{tmp_path / 'optuna.db'}"
    if kind == "postgresql":
        url = request.getfixturevalue("postgres").url("claims")
    open_study(Database(url, tmp_path), NUM_TRIALS)
    claimed: list[int] = []

    def work() -> None:
        database = Database(url, tmp_path)
        study = optuna.load_study(storage=database.storage, study_name="claims")
        claims = Claims(database, study, interval=60)
        while claim := claims.take(any_trial):
            with claim as trial:
                claimed.append(trial.number)
                study.tell(trial, 1.0)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == list(range(NUM_TRIALS))


def test_what_another_worker_has_put_back_since_it_was_listed_is_asked_for_anew(
    tmp_path: Path,
) -> None:
    database = Database("", tmp_path)
    study = open_study(database, 3)
    first, second = (Claims(database, study, interval=60) for _ in range(2))

    def is_fresh(trial: FrozenTrial) -> bool:
        return not trial.intermediate_values

    taken = first.take(is_fresh)
    assert taken is not None
    with taken as trial:
        assert trial.number == 0
        study.tell(trial, 1.0)
    # It is listed by the first one as waiting; the second one trains it, and has it wait.
    taken = second.take(is_fresh)
    assert taken is not None
    with taken as trial:
        assert trial.number == 1
        trial.report(0.5, 1)
        put_back(study, trial._trial_id)
    taken = first.take(is_fresh)
    assert taken is not None
    with taken as trial:
        assert trial.number == 2


def test_a_silent_worker_loses_its_trial_and_is_told(tmp_path: Path) -> None:
    database = Database("", tmp_path)
    study = open_study(database, 1)
    silent = Claims(database, study, interval=1).take(any_trial)
    assert silent is not None
    others = Claims(database, study, interval=1)
    assert others.take(any_trial) is None and len(others.busy()) == 1
    deadline = time.monotonic() + 30
    while (taken := others.take(any_trial)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert taken.taken_from
    with pytest.raises(TakenOver, match="trial 0 was taken over"):
        silent.check()
    with taken as trial:
        taken.check()
        study.tell(trial, 1.0)


def test_a_worker_that_gives_signs_of_life_keeps_its_trial(tmp_path: Path) -> None:
    database = Database("", tmp_path)
    study = open_study(database, 1)
    claim = Claims(database, study, interval=1).take(any_trial)
    assert claim is not None
    others = Claims(database, study, interval=1)
    with claim:
        ends = time.monotonic() + 6
        while time.monotonic() < ends:
            assert others.take(any_trial) is None and len(others.busy()) == 1
            time.sleep(0.2)
        claim.check()


def test_a_worker_of_this_machine_that_has_died_is_known_at_once(tmp_path: Path) -> None:
    database = Database("", tmp_path)
    study = open_study(database, 1)
    claim = Claims(database, study, interval=600).take(any_trial)
    assert claim is not None
    with claim as trial:
        recorded = study.get_trials()[0]
        assert is_held(recorded)
        owner = Owner.of(recorded)
        assert owner is not None and owner.process_id == os.getpid()
        trial.set_user_attr(OWNER, str(owner._replace(process_id=2**22 + 1)))
    assert not is_held(study.get_trials()[0])
    taken = Claims(database, study, interval=600).take(any_trial)
    assert taken is not None and taken.taken_from.startswith(f"process {2**22 + 1} on ")


def test_a_worker_elsewhere_holds_its_trial_as_long_as_nobody_knows_better(tmp_path: Path) -> None:
    database = Database("", tmp_path)
    study = open_study(database, 1)
    claim = Claims(database, study, interval=600).take(any_trial)
    assert claim is not None
    with claim as trial:
        owner = Owner.of(study.get_trials()[0])
        assert owner is not None
        trial.set_user_attr(OWNER, str(owner._replace(where="elsewhere/1", process_id=2**22 + 1)))
    assert is_held(study.get_trials()[0])
    assert Claims(database, study, interval=600).take(any_trial) is None


def test_what_an_earlier_claim_has_noted_says_nothing_of_a_later_one(tmp_path: Path) -> None:
    database = Database("", tmp_path)
    study = open_study(database, 1)
    claim = Claims(database, study, interval=600).take(any_trial)
    assert claim is not None
    with claim as trial:
        owner = Owner.of(study.get_trials()[0])
        assert owner is not None
        before = datetime.fromisoformat(owner.mark)
        assert database.mark_running(trial._trial_id, [before], datetime.now())
        assert Owner.of(study.get_trials()[0]) is None
        # A second worker that has seen the same does not get it.
        assert not database.mark_running(trial._trial_id, [before], datetime.now())


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="this system has one time zone")
def test_the_hour_that_comes_twice_in_autumn_tells_claims_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "EST5EDT,M3.2.0,M11.1.0")
        time.tzset()
        for minutes in range(0, 180, 30):
            mark = datetime(2026, 11, 1, 4) + timedelta(minutes=minutes)
            read = TrialModel(_datetime_start_utc=mark).datetime_start
            trial = optuna.trial.create_trial(value=0.0)
            trial.datetime_start = read
            trial.set_user_attr(OWNER, str(Owner.here(mark)))
            assert Owner.of(trial) is not None and mark in _find_marks(trial)
    time.tzset()


def test_a_finished_trial_is_no_claim(tmp_path: Path) -> None:
    database = Database("", tmp_path)
    study = open_study(database, 1)
    claim = Claims(database, study, interval=1).take(any_trial)
    assert claim is not None
    with claim as trial:
        study.tell(trial, state=TrialState.FAIL)
        with pytest.raises(TakenOver):
            claim.confirm()


def test_what_is_not_wanted_is_left(tmp_path: Path) -> None:
    database = Database("", tmp_path)
    study = open_study(database, 2)
    claim = Claims(database, study, interval=60).take(lambda trial: trial.number == 1)
    assert claim is not None
    with claim as trial:
        assert trial.number == 1
    states = [trial.state for trial in study.get_trials()]
    assert states == [TrialState.WAITING, TrialState.RUNNING]


def test_what_a_finished_trial_has_logged_may_be_sent_later(tmp_path: Path) -> None:
    database = Database("", tmp_path)
    study = open_study(database, 1)
    claim = Claims(database, study, interval=1).take(any_trial)
    assert claim is not None
    with claim as trial:
        study.tell(trial, 1.0)
    time.sleep(2)
    claim.check()


def test_a_silence_must_be_seen_for_a_while_as_after_the_database_was_away(tmp_path: Path) -> None:
    database = Database("", tmp_path)
    study = open_study(database, 1)
    silent = Claims(database, study, interval=1).take(any_trial)
    assert silent is not None
    # Its last sign of life is older than two intervals, but nobody was looking.
    time.sleep(4)
    others = Claims(database, study, interval=1)
    assert others.take(any_trial) is None and len(others.busy()) == 1
    time.sleep(2)
    assert others.take(any_trial) is not None


def test_a_claim_that_this_process_has_let_go_is_free_at_once(tmp_path: Path) -> None:
    # As where the database was away when the trial should have been put back.
    database = Database("", tmp_path)
    study = open_study(database, 1)
    claim = Claims(database, study, interval=600).take(any_trial)
    assert claim is not None
    with claim:
        assert is_held(study.get_trials()[0])
    assert study.get_trials()[0].state == TrialState.RUNNING
    assert not is_held(study.get_trials()[0])
    assert Claims(database, study, interval=600).take(any_trial) is not None
