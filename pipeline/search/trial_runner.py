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
from pipeline.config import Configuration
from pipeline.data.prepared import Prepared
from pipeline.errors import InUse, StoreAway, UserError, first_line, may_pass
from pipeline.experiment import Experiment
from pipeline.files import out_of_room
from pipeline.jobs.prepare import check, prepare_variant
from pipeline.jobs.resume import lock_run
from pipeline.jobs.train import Placement, find_same_training, train
from pipeline.jobs.training_job import Job
from pipeline.report.console import say
from pipeline.report.tables import best_value_text, describe_settings
from pipeline.search.pruning import PruningCallback
from pipeline.search.space import build_configuration, decode_point, suggest
from pipeline.search.study_storage import fail_at_once
from pipeline.search.trials import (
    ENTRY,
    KEY,
    MAY_PASS,
    REASON,
    RUN_ID,
    Repeated,
    enqueue_missing,
    finished_trials,
    is_point,
    place_of,
    put_back,
    waiting_trials,
)
from pipeline.tracking import find_runs, names
from pipeline.tracking.run import Pruned, TrackedRun, adopt_training
from pipeline.tracking.workspace import STORE_ERRORS, Workspace
from pipeline.training.distributed import join_group


def _progress(done: Sequence[FrozenTrial], total: int, again: Repeated) -> str:
    """Say how many trainings are there, and how many are done once more."""
    failed = sum(trial.state == TrialState.FAIL for trial in done)
    listed = (
        f"{sum(KEY in trial.user_attrs for trial in done)} of the list"
        + f", {failed} failed for good" * (failed > 0)
    )
    tried = f"; {again.failed} that failed {_is(again.failed)} tried again" * (again.failed > 0)
    anew = f"; {again.deleted} whose {'run was' if again.deleted == 1 else 'runs were'} deleted {_is(again.deleted)} trained again"
    return f"{len(done)} of {total} trainings are there ({listed}){tried}" + anew * (
        again.deleted > 0
    )


def _is(number: int) -> str:
    return "is" if number == 1 else "are"


@dataclass
class TrialRunner:
    """Trains what is still to do of one study.

    Attributes:
        workspace: The open store.
        experiment: List, space and number of trials.
        study: Optuna's; nothing else works on it.
        parent: The study's run.
        prepared: Images of the experiment's base.
        jobs: The list, checked, seeds of repeats given.
    """

    workspace: Workspace
    experiment: Experiment
    study: optuna.Study
    parent: TrackedRun
    prepared: Prepared
    jobs: list[Job]

    def work(self) -> None:
        """Train until the study has its number of trials."""
        total = self.experiment.trials
        if not self.experiment.space and self.experiment.study.trials > total:
            say(
                f"study.trials {self.experiment.study.trials}: there is no space to search, so that the {total} of the list are all"
            )
        if len(self.jobs) > total:
            say(
                f"the list has {len(self.jobs)} entries; study.trials {total} trains the first {total}"
            )
        self._by_key = {f"{job.config_hash}:{job.seed}": job for job in self.jobs[:total]}
        there_are = {
            row["run_id"] for row in find_runs.find_trainings(self.workspace, self.study.study_name)
        }
        again = enqueue_missing(
            self.study,
            self.experiment,
            {key: job.configuration for key, job in self._by_key.items()},
            there_are,
        )
        if (done := finished_trials(self.study, self._by_key)) or any(again):
            say(f"study {self.study.study_name} goes on: {_progress(done, total, again)}")
        while waiting_trials(self.study) or len(finished_trials(self.study, self._by_key)) < total:
            self._try(self.study.ask())

    def _try(self, trial: optuna.Trial) -> None:
        """Train one trial; what ends the study here says nothing about the configuration, which is gone on with when the study is."""
        try:
            self._train_and_tell(trial)
        except BaseException:
            # A trial that cannot even be put back still says RUNNING, which comes to the same.
            with (
                contextlib.suppress(StoreAway, UpdateFinishedTrialError),
                fail_at_once(self.study),
            ):
                put_back(self.study, trial._trial_id)
            raise

    def _train_and_tell(self, trial: optuna.Trial) -> None:
        """Train one trial, and tell the study its score, the higher the better, or that it was pruned or failed."""
        try:
            place = place_of(trial)
            configuration = self._configuration(trial, place)
            say(
                f"trial {place + 1} of {self.experiment.trials}: {describe_settings(configuration.flat())}"
            )
            score = self._train(trial, self._job(trial, configuration, place), place)
        except Pruned as pruned:
            say(f"  {pruned}")
            self.study.tell(trial, state=TrialState.PRUNED)
        except (StoreAway, InUse, *STORE_ERRORS):
            raise
        except Exception as error:
            if join_group().is_broken or out_of_room(error):
                # The next training would wait for processes that are still in this one, or find the same full disk.
                raise
            say(
                f"  failed: {first_line(error)}"
                + "; the study tries it again when it is started again" * may_pass(error)
            )
            trial.set_user_attr(REASON, first_line(error)[:1000])
            trial.set_user_attr(MAY_PASS, may_pass(error))
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            self.study.tell(trial, score)

    def _configuration(self, trial: optuna.Trial, place: int) -> Configuration:
        entry, space = trial.user_attrs.get(ENTRY), self.experiment.space
        if entry is not None:
            if is_point(trial):
                # Its values are fixed already; suggesting them tells the sampler.
                suggest(trial, space)
            return Configuration.model_validate(entry)
        point = suggest(trial, space)
        try:
            return build_configuration(point, self.experiment)
        except UserError as error:
            raise self._as_failed_run(
                error, {**self.experiment.base.flat(), **decode_point(point, space)}, place
            ) from None

    def _job(self, trial: optuna.Trial, configuration: Configuration, place: int) -> Job:
        if (listed := self._by_key.get(trial.user_attrs.get(KEY, ""))) is not None:
            return listed
        try:
            origin = check(configuration, self.prepared, "")
        except UserError as error:
            raise self._as_failed_run(error, configuration.flat(), place) from None
        return Job(
            configuration,
            origin,
            prepare_variant(self.workspace, configuration.data, self.prepared),
        )

    def _as_failed_run(self, error: UserError, params: Mapping[str, Any], place: int) -> UserError:
        """Log choices that are right alone but do not fit together: one failed run like others."""
        name = self._name(str(params["model.name"]), place)
        with (
            contextlib.suppress(UserError),
            TrackedRun(
                self.workspace, "train", name, parent=self.parent.id, tags=self._tags(place)
            ) as run,
        ):
            run.params(params)
            raise error
        return error

    def _name(self, model: str, place: int) -> str:
        return f"{place:02d} {Path(model.removeprefix('file:').partition(':')[0]).name}"

    def _tags(self, place: int) -> dict[str, str]:
        return {
            names.STUDY: self.study.study_name,
            names.TRIAL: str(place),
            names.DATA_DIGEST: self.prepared.digest,
        }

    def _train(self, trial: optuna.Trial, job: Job, place: int) -> float:
        """Return the score, its mean over the folds where all are trained."""
        return fmean(
            self._train_fold(trial, one, place, number) for number, one in enumerate(job.per_fold())
        )

    def _train_fold(self, trial: optuna.Trial, job: Job, place: int, number: int) -> float:
        identity = (job.config_hash, job.seed, job.prepared.fold, job.prepared.digest)
        begun = {one.user_attrs.get(RUN_ID, "") for one in self.study.get_trials(deepcopy=False)}
        unfinished = find_runs.find_unfinished_training(
            self.workspace, self.study.study_name, *identity, begun
        )
        # A person may be going on with it by hand.
        with lock_run(self.workspace, unfinished) if unfinished else contextlib.nullcontext():
            same = find_same_training(self.workspace, job)
            if same is not None:
                say(f"  trained before as run {same['run_id']}: {best_value_text(same)}")
                trial.set_user_attr(RUN_ID, same["run_id"])
                adopt_training(self.workspace, same["run_id"], self.study.study_name)
                return float(same["score"])
            return self._go_on(trial, job, place, number, unfinished)

    def _go_on(
        self, trial: optuna.Trial, job: Job, place: int, number: int, unfinished: str
    ) -> float:
        """Train from the beginning, or where an unfinished run was interrupted."""
        fold = f" fold {job.prepared.fold}" if job.configuration.data.folds else ""
        placement = Placement(
            self._name(job.configuration.model.name, place) + fold,
            parent=self.parent.id,
            tags=self._tags(place),
            run_id=unfinished,
            on_run=lambda run_id: trial.set_user_attr(RUN_ID, run_id),
        )
        # A trial is given up on its first fold or not at all: Optuna takes one value per trial and epoch.
        metric = job.configuration.training.best_metric
        report = (
            [PruningCallback(trial, metric, prunable=ENTRY not in trial.user_attrs)]
            if number == 0
            else []
        )
        done = train(self.workspace, job, placement, report)
        return ranking.score(done.value, done.metric)
