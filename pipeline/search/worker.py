"""Work through the trials of a study, one training each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import optuna

from pipeline.config import Configuration
from pipeline.data.prepared import Prepared
from pipeline.experiment import Experiment
from pipeline.jobs.prepare import check, images_for
from pipeline.jobs.train import Job, Placement, reusable, train
from pipeline.report.console import say
from pipeline.report.tables import describe, percent
from pipeline.search.pruning import Report
from pipeline.search.space import as_point, suggest
from pipeline.search.trials import ENTRY, INTERRUPTED, KEY, RUN_ID, counted, place_of, plan
from pipeline.tracking import names
from pipeline.tracking.run import Pruned, TrackedRun, adopt_training
from pipeline.tracking.store import StoreError, Workspace


@dataclass
class Worker:
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
        self._by_key = {f"{job.config_hash}:{job.seed}": job for job in self.jobs}
        total = self.experiment.trials
        done_of_list = plan(self.study, self.experiment, list(self._by_key), [job.configuration for job in self._by_key.values()])
        done = len(counted(self.study))
        if len(self.jobs) > total:
            say(f"the list has {len(self.jobs)} entries; study.trials {total} trains the first {total}")
        if done:
            say(f"study {self.study.study_name} goes on: {done} of {total} trainings are there ({done_of_list} of the list)")
        while len(counted(self.study)) < total:
            self.study.optimize(self._objective, n_trials=1)

    def _objective(self, trial: optuna.Trial) -> float:
        """Return the best validation accuracy; NaN, which Optuna counts as failed, where the training fails."""
        try:
            place = place_of(trial)
            return self._train(trial, self._job(trial), place)
        except Pruned as pruned:
            say(f"  {pruned}")
            raise optuna.TrialPruned(str(pruned)) from None
        except (KeyboardInterrupt, StoreError):
            # Neither says anything about the configuration: it is tried again when the study goes on.
            trial.set_user_attr(INTERRUPTED, True)
            raise
        except Exception as error:
            reason = str(error).strip() or type(error).__name__
            say(f"  failed: {reason.splitlines()[0]}")
            trial.set_user_attr("reason", reason[:1000])
            return math.nan

    def _job(self, trial: optuna.Trial) -> Job:
        entry = trial.user_attrs.get(ENTRY)
        base, space = self.experiment.base, self.experiment.space
        if entry is None:
            configuration = self.experiment.sampled(suggest(trial, space))
        else:
            configuration = Configuration.model_validate(entry)
            if as_point(configuration, base, space) is not None:
                # Its values are fixed already; suggesting them tells the sampler.
                suggest(trial, space)
        if (listed := self._by_key.get(trial.user_attrs.get(KEY, ""))) is not None:
            return listed
        images = images_for(self.workspace, configuration.data, base.data, self.prepared)
        return Job(configuration, check(configuration, self.prepared, "space"), images)

    def _train(self, trial: optuna.Trial, job: Job, place: int) -> float:
        model = job.configuration.model.name
        say(f"trial {place + 1} of {self.experiment.trials}: {describe(job.configuration.flat())}")
        same = reusable(self.workspace, job)
        if same is not None:
            say(f"  trained before as run {same['run_id']}: {percent(same['val_accuracy'])}")
            trial.set_user_attr(RUN_ID, same["run_id"])
            adopt_training(self.workspace, same["run_id"], self.study.study_name)
            return float(same["val_accuracy"])
        name = f"{place:02d} {Path(model.removeprefix('file:').partition(':')[0]).name}"
        tags = {names.STUDY: self.study.study_name, names.TRIAL: str(place)}
        placement = Placement(name, parent=self.parent.id, tags=tags, on_run=lambda run_id: trial.set_user_attr(RUN_ID, run_id))
        _, accuracy = train(self.workspace, job, placement, [Report(trial, prunable=ENTRY not in trial.user_attrs)])
        return accuracy
