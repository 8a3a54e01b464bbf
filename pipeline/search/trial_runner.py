"""Work through the trials of a study, one training each."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from pipeline import ranking
from pipeline.config import FILE, Configuration
from pipeline.data.prepared import Prepared
from pipeline.errors import InUse, StoreAway, UserError, first_line, may_pass
from pipeline.experiment import Experiment
from pipeline.files import out_of_room
from pipeline.jobs.check import check
from pipeline.jobs.prepare import prepare_variant
from pipeline.jobs.resume import lock_run
from pipeline.jobs.same_training import find_same_training, find_unfinished_training
from pipeline.jobs.train import Placement, TrackedTraining
from pipeline.jobs.training_job import Job
from pipeline.report.console import say
from pipeline.report.people_table import best_value_text
from pipeline.report.settings_text import (
    describe_settings,
    describe_some,
    settings_with_effect,
)
from pipeline.search.pruning import PruningCallback
from pipeline.search.space import build_configuration, decode_point, suggest
from pipeline.search.study_storage import fail_at_once
from pipeline.search.trials import (
    ENTRY,
    KEY,
    MAY_PASS,
    REASON,
    RUN_ID,
    UID,
    Repeated,
    enqueue_missing,
    enqueue_repeats,
    finished_trials,
    is_point,
    next_place,
    place_of,
    put_back,
    waiting_trials,
)
from pipeline.tracking import find_runs
from pipeline.tracking.tracked_run import Pruned, TrackedRun, adopt_training
from pipeline.tracking.workspace import STORE_ERRORS, Workspace
from pipeline.training.callback import Callback
from pipeline.training.distributed import join_group

_LONGEST_NAME = 80
"""Length of a run's name, of which a legend of the MLflow UI shows about the half."""


@dataclass
class TrialRunner:
    """Trains what is still to do of one study.

    Attributes:
        workspace: The open store.
        experiment: List, space and number of trials.
        study: Optuna's study; nothing else works on it.
        parent: The study's run.
        prepared: Images of the experiment's base.
        jobs: The checked trainings of the list. Equal entries have different seeds.
        telling: Dotted names of the settings that tell the study's configurations apart.
    """

    workspace: Workspace
    experiment: Experiment
    study: optuna.Study
    parent: TrackedRun
    prepared: Prepared
    jobs: list[Job]
    telling: Sequence[str] = ()

    def __post_init__(self) -> None:
        self._by_key: dict[str, Job] = {}
        # Repeats that are asked for come beside the trials that the study is to have.
        self._are_repeats = bool(self.experiment.study.only)
        self._total = len(self.jobs) if self._are_repeats else self.experiment.trials
        for job in self.jobs[: self._total]:
            self._by_key[f"{job.config_hash}:{job.seed}"] = job

    def run(self) -> None:
        """Train until the study has its number of trials."""
        if not self._are_repeats:
            self._say_what_is_left_out()
        self._enqueue()
        while self._is_more_to_do():
            trial = self.study.ask()
            try:
                self._run_trial(trial)
            except BaseException:
                # What ends the study here says nothing about the configuration: the trial goes on
                # when the study does.
                self._put_back(trial)
                raise

    def _say_what_is_left_out(self) -> None:
        total = self.experiment.trials
        asked = self.experiment.study.trials
        if not self.experiment.space and asked > total:
            say(
                f"study.trials {asked}: there is no space to search, "
                f"so that the {total} of the list are all"
            )
        if len(self.jobs) > total:
            say(
                f"the list has {len(self.jobs)} entries; "
                f"study.trials {total} trains the first {total}"
            )

    def _enqueue(self) -> None:
        """Enqueue what is still to do, and say how far the study is."""
        name = self.study.study_name
        entries = {key: job.configuration for key, job in self._by_key.items()}
        if self._are_repeats:
            enqueue_repeats(self.study, self.experiment, entries)
            self._total = next_place(self.study)
            number = "1 training" if len(entries) == 1 else f"{len(entries)} trainings"
            say(f"study {name} goes on: {number} with further seeds")
            return
        rows = find_runs.find_trainings(self.workspace, name)
        run_ids = {row["run_id"] for row in rows}
        repeated = enqueue_missing(self.study, self.experiment, entries, run_ids)
        done = finished_trials(self.study, self._by_key)
        if done or any(repeated):
            say(f"study {name} goes on: {_describe(done, self.experiment.trials, repeated)}")

    def _is_more_to_do(self) -> bool:
        if waiting_trials(self.study) or self._are_repeats:
            return bool(waiting_trials(self.study))
        return len(finished_trials(self.study, self._by_key)) < self.experiment.trials

    def _put_back(self, trial: optuna.Trial) -> None:
        # A trial that cannot even be put back still says RUNNING, which comes to the same.
        with contextlib.suppress(StoreAway, UpdateFinishedTrialError), fail_at_once(self.study):
            put_back(self.study, trial._trial_id)

    def _run_trial(self, trial: optuna.Trial) -> None:
        """Train one trial, and tell the study its score, the higher the better, or how it ended."""
        try:
            place = place_of(trial)
            configuration = self._choose_configuration(trial, place)
            settings = describe_settings(configuration.flat())
            say(f"trial {place + 1} of {self._total}: {settings}")
            job = self._prepare_job(trial, configuration, place)
            score = self._train_folds(trial, job, place)
        except Pruned as pruned:
            say(f"  {pruned}")
            self.study.tell(trial, state=TrialState.PRUNED)
        except (StoreAway, InUse, *STORE_ERRORS):
            raise
        except Exception as error:
            if join_group().is_broken or out_of_room(error):
                # The next training would wait for processes that are still in this one, or find the
                # same full disk.
                raise
            self._tell_failed(trial, error)
        else:
            self.study.tell(trial, score)

    def _tell_failed(self, trial: optuna.Trial, error: Exception) -> None:
        reason = first_line(error)
        again = "; the study tries it again when it is started again" if may_pass(error) else ""
        say(f"  failed: {reason}{again}")
        trial.set_user_attr(REASON, reason[:1000])
        trial.set_user_attr(MAY_PASS, may_pass(error))
        self.study.tell(trial, state=TrialState.FAIL)

    def _train_folds(self, trial: optuna.Trial, job: Job, place: int) -> float:
        """Train a job, or one for each fold if all folds are wanted; return the mean score."""
        scores = []
        # By an earlier process: without its server it cannot go on.
        is_begun = not {RUN_ID, UID}.isdisjoint(trial.user_attrs)
        for number, fold_job in enumerate(job.per_fold()):
            unfinished = self._find_unfinished(fold_job, is_begun)
            # A person may be going on with that run by hand.
            with lock_run(self.workspace, unfinished) if unfinished else contextlib.nullcontext():
                same = find_same_training(self.workspace, fold_job)
                if same is not None:
                    scores.append(self._adopt(trial, same))
                    continue
                placement = self._placement(trial, fold_job, place, unfinished)
                callbacks = self._callbacks(trial, fold_job, number)
                done = TrackedTraining(self.workspace, fold_job, placement, callbacks).run()
                scores.append(ranking.score(done.value, done.metric))
        return fmean(scores)

    def _find_unfinished(self, job: Job, is_begun: bool) -> str:
        """Return the run id of a job's training in this study that can go on, or an empty text."""
        begun: set[str] = set()
        for trial in self.study.get_trials(deepcopy=False):
            begun |= {trial.user_attrs.get(RUN_ID, ""), trial.user_attrs.get(UID, "")}
        return find_unfinished_training(self.workspace, self.study.study_name, job, begun, is_begun)

    def _adopt(self, trial: optuna.Trial, same: find_runs.Row) -> float:
        """Take a training that is complete already for this trial; return its score."""
        called = same["run_id"] or "that the server does not know yet"
        say(f"  trained before as run {called}: {best_value_text(same)}")
        if same["run_id"]:
            trial.set_user_attr(RUN_ID, same["run_id"])
        if self.study.study_name not in same["study"].split(","):
            adopt_training(self.workspace, same["run_id"], self.study.study_name)
        return float(same["score"])

    def _placement(self, trial: optuna.Trial, job: Job, place: int, run_id: str) -> Placement:
        fold = f" fold {job.prepared.fold}" if job.configuration.data.folds else ""
        return Placement(
            self._run_name(job.configuration.flat(), place) + fold,
            parent=self.parent.id,
            study=self.study.study_name,
            place=place,
            run_id=run_id,
            on_uid=lambda uid: trial.set_user_attr(UID, uid),
            on_run=lambda run_id: _note_run(trial, run_id),
            is_searched=ENTRY not in trial.user_attrs,
        )

    def _callbacks(self, trial: optuna.Trial, job: Job, fold_number: int) -> list[Callback]:
        # A trial is given up on its first fold or not at all, since Optuna takes one value per
        # trial and epoch.
        if fold_number:
            return []
        metric = job.configuration.training.best_metric
        return [PruningCallback(trial, metric, prunable=ENTRY not in trial.user_attrs)]

    def _choose_configuration(self, trial: optuna.Trial, place: int) -> Configuration:
        entry = trial.user_attrs.get(ENTRY)
        space = self.experiment.space
        if entry is not None:
            if is_point(trial):
                # The values are fixed already; suggesting them lets the sampler learn from them.
                suggest(trial, space)
            return Configuration.model_validate(entry)
        point = suggest(trial, space)
        try:
            return build_configuration(point, self.experiment)
        except UserError as error:
            params = {**self.experiment.base.flat(), **decode_point(point, space)}
            raise self._log_failed(error, params, place) from None

    def _prepare_job(self, trial: optuna.Trial, configuration: Configuration, place: int) -> Job:
        listed = self._by_key.get(trial.user_attrs.get(KEY, ""))
        if listed is not None:
            return listed
        try:
            origin = check(configuration, self.prepared, "")
        except UserError as error:
            raise self._log_failed(error, configuration.flat(), place) from None
        images = prepare_variant(self.workspace, configuration.data, self.prepared)
        return Job(configuration, origin, images)

    def _log_failed(self, error: UserError, params: Mapping[str, Any], place: int) -> UserError:
        """Log choices that are right alone but do not fit together, as a failed run like others.

        Returns:
            The error, to be raised.
        """
        name = self._run_name(params, place)
        placement = Placement(name, self.parent.id, self.study.study_name, place)
        tags = placement.tags(self.prepared.digest)
        run = TrackedRun(self.workspace, "train", name, tags=tags)
        with contextlib.suppress(UserError), run:
            run.params(params)
            raise error
        return error

    def _run_name(self, settings: Mapping[str, Any], place: int) -> str:
        """Return the name of a run: its place, its network, and what tells it from others."""
        model = str(settings["model.name"]).removeprefix(FILE).partition(":")[0]
        name = f"{place:02d} {Path(model).name}"
        texts = {field: find_runs.as_param(value) for field, value in settings.items()}
        further = describe_some(settings_with_effect(texts), self.telling)
        if further:
            name = f"{name}, {further}"
        return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _note_run(trial: optuna.Trial, run_id: str) -> None:
    # A tracking server that was away may have made the run when the trial has ended already.
    with contextlib.suppress(UpdateFinishedTrialError):
        trial.set_user_attr(RUN_ID, run_id)


def _describe(done: Sequence[FrozenTrial], total: int, repeated: Repeated) -> str:
    """Say how many trainings are there, and how many are done once more."""
    failed = sum(trial.state == TrialState.FAIL for trial in done)
    text = f"{sum(KEY in trial.user_attrs for trial in done)} of the list"
    if failed:
        text += f", {failed} failed for good"
    text = f"{len(done)} of {total} trainings are there ({text})"
    if repeated.failed:
        text += f"; {repeated.failed} that failed {_is(repeated.failed)} tried again"
    if repeated.deleted:
        runs = "run was" if repeated.deleted == 1 else "runs were"
        text += f"; {repeated.deleted} whose {runs} deleted {_is(repeated.deleted)} trained again"
    return text


def _is(number: int) -> str:
    return "is" if number == 1 else "are"
