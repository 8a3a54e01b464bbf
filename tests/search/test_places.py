"""Which trainings a study makes, whatever interrupts it.

It meets any sequence of kills, failures and edits of its list.
"""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from optuna.trial import TrialState

from pipeline.config import Configuration
from pipeline.experiment import Experiment, Range
from pipeline.search.claims import Claims
from pipeline.search.space import suggest
from pipeline.search.study_storage import Database
from pipeline.search.trials import (
    ENTRY,
    KEY,
    MAY_PASS,
    PLACE,
    RUN_ID,
    enqueue_missing,
    finished_trials,
    is_point,
    put_back,
    waiting_trials,
)

LR = {"optimizer.lr": Range(low=1e-4, high=1e-2, log=True)}
NO_SPACE: dict[str, Any] = {}
KEYS = [f"key {number}" for number in range(5)]
INSIDE, OUTSIDE = 1e-3, 1.0


@lru_cache
def open_database() -> Database:
    """Return one database for all examples: making its tables takes longer than an example."""
    return Database("sqlite://", Path(tempfile.gettempdir()))


class Places(RuleBasedStateMachine):
    """A study as `pipeline.search.trial_runner` works on it, its process ending at any moment.

    What is trained is left out: a training is the number of its run.
    """

    space: dict[str, Any]

    def __init__(self) -> None:
        super().__init__()
        database = open_database()
        self.study = optuna.create_study(
            storage=database.storage, sampler=optuna.samplers.RandomSampler(seed=0)
        )
        self.claims = Claims(database, self.study, interval=60.0)
        self.total = 4
        self.keys: list[str] = KEYS[:2]
        self.runs: set[str] = set()
        self.num_runs = 0
        self.is_started = False
        self.most = self.total

    def entries(self) -> dict[str, Configuration]:
        found = {}
        for key in self.keys[: self.total]:
            # Every second one lies outside the space.
            lr = INSIDE if KEYS.index(key) % 2 == 0 else OUTSIDE
            found[key] = Configuration().change("optimizer", lr=lr)
        return found

    def experiment(self) -> Experiment:
        entries = list(self.entries().values())
        study = Configuration().change("optimizer", lr=2e-3)
        return Experiment(
            path=Path("study.yaml"),
            name="places",
            base=study,
            entries=entries,
            space=self.space,
            study=self.study_settings(),
            overrides={},
            raw_base={},
            fast=False,
        )

    def study_settings(self) -> Any:
        from pipeline.config import Study

        return Study(trials=self.total)

    @property
    def wanted(self) -> int:
        return self.total if self.space else len(self.entries())

    @rule()
    def start(self) -> None:
        """Start the study, after whatever has ended it."""
        entries = self.entries()
        enqueue_missing(self.study, self.experiment(), entries, self.runs)
        self.is_started = True
        # The whole list is trained, and what the search has begun is ended, also if the study has
        # its number by one of them.
        begun = {
            trial.user_attrs[PLACE]
            for trial in self.study.get_trials(deepcopy=False)
            if PLACE in trial.user_attrs and KEY not in trial.user_attrs and trial.params
        }
        self.most = max(self.wanted, len(begun) + len(entries))
        self.what_is_to_do_is_what_is_missing()

    def what_is_to_do_is_what_is_missing(self) -> None:
        entries = self.entries()
        trials = self.study.get_trials(deepcopy=False)
        assert not [trial for trial in trials if trial.state == TrialState.RUNNING]
        waiting = waiting_trials(self.study)
        places = [trial.user_attrs[PLACE] for trial in waiting]
        assert len(set(places)) == len(places)
        listed = {trial.user_attrs[KEY] for trial in waiting if KEY in trial.user_attrs}
        assert listed <= set(entries)
        done = {
            trial.user_attrs[KEY]
            for trial in finished_trials(self.study, entries)
            if KEY in trial.user_attrs
        }
        assert listed | done == set(entries) and not listed & done

    def ask(self) -> optuna.Trial | None:
        claim = self.claims.take(lambda trial: PLACE in trial.user_attrs)
        if claim is None:
            return None
        with claim as trial:
            return trial

    def begin(self, trial: optuna.Trial) -> None:
        if ENTRY not in trial.user_attrs or is_point(trial):
            suggest(trial, self.space)
        if RUN_ID not in trial.user_attrs:
            self.num_runs += 1
            trial.set_user_attr(RUN_ID, f"run {self.num_runs}")
        self.runs.add(trial.user_attrs[RUN_ID])

    @precondition(lambda self: self.is_started)
    @rule(how=st.sampled_from(["complete", "complete", "pruned", "failed", "failed for good"]))
    def train_one(self, how: str) -> None:
        trial = self.ask()
        if trial is None:
            return
        self.begin(trial)
        if how == "complete" or (how == "pruned" and ENTRY in trial.user_attrs):
            self.study.tell(trial, 1.0)
        elif how == "pruned":
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            trial.set_user_attr(MAY_PASS, how == "failed")
            self.study.tell(trial, state=TrialState.FAIL)

    @precondition(lambda self: self.is_started)
    @rule(after=st.sampled_from(["ask", "run"]))
    def is_killed(self, after: str) -> None:
        trial = self.ask()
        if trial is not None and after == "run":
            self.begin(trial)
        self.is_started = False

    @precondition(lambda self: self.is_started)
    @rule()
    def is_interrupted(self) -> None:
        trial = self.ask()
        if trial is not None:
            self.begin(trial)
            put_back(self.study, trial._trial_id)
        self.is_started = False

    @rule(key=st.sampled_from(KEYS))
    def edit_the_list(self, key: str) -> None:
        self.is_started = False
        if key in self.keys:
            self.keys.remove(key)
        else:
            self.keys.append(key)

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def delete_a_run(self, data: st.DataObject) -> None:
        self.is_started = False
        self.runs.remove(data.draw(st.sampled_from(sorted(self.runs))))

    @rule()
    def train_to_the_end(self) -> None:
        self.start()
        entries = self.entries()
        for _ in range(30):
            trial = self.ask()
            if trial is None:
                break
            self.begin(trial)
            self.study.tell(trial, 1.0)
        else:
            raise AssertionError("it never ends")
        done = finished_trials(self.study, entries)
        assert self.wanted <= len(done) <= self.most
        assert sorted(entries) == sorted(
            trial.user_attrs[KEY] for trial in done if KEY in trial.user_attrs
        )
        assert all(trial.user_attrs[RUN_ID] in self.runs for trial in done)

    @invariant()
    def every_place_is_taken_once_and_there_are_not_more_than_wanted(self) -> None:
        done = finished_trials(self.study, self.entries())
        places = [trial.user_attrs[PLACE] for trial in done]
        assert len(set(places)) == len(places)
        listed = [trial.user_attrs[KEY] for trial in done if KEY in trial.user_attrs]
        assert len(set(listed)) == len(listed)
        if self.is_started:
            assert len(done) <= self.most


class PlacesOfASearch(Places):
    space = LR


class PlacesOfAList(Places):
    space = NO_SPACE


@pytest.mark.parametrize("machine", [PlacesOfASearch, PlacesOfAList])
@pytest.mark.parametrize("examples", [10, pytest.param(40, marks=pytest.mark.thorough)])
def test_every_place_once_and_never_more_than_wanted(machine: type[Places], examples: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
