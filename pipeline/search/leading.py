"""The roles that a process has in a study: it leads the study, joins others, or is a worker of one.

The process that leads has opened the study's parent run. It enqueues the trials, has workers train
them, and concludes. A process of another machine that joins it has workers of its own, and leaves
the conclusion to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple, Protocol

import optuna
from optuna.trial import TrialState

from pipeline.data.prepared import Prepared
from pipeline.errors import InUse, UserError
from pipeline.experiment import Experiment
from pipeline.files import child_path, lock, remove_child
from pipeline.jobs.keep_weights import remove_other_weights
from pipeline.jobs.summary import Summary
from pipeline.jobs.training_job import Job
from pipeline.report.console import say
from pipeline.report.settings_text import SETTING_LABELS, differing_names, settings_with_effect
from pipeline.search.claims import is_held
from pipeline.search.enqueue import enqueue_trials
from pipeline.search.own_study import IDENTITY, PARENT, load_study, make_study
from pipeline.search.ray_workers import RayWorkers, count_places
from pipeline.search.shared_state import (
    DATA_DIGEST,
    LONGEST_START,
    forget_agenda,
    no_agenda,
    read_agenda,
)
from pipeline.search.study_record import conclude_study, log_study
from pipeline.search.study_storage import Database
from pipeline.search.trial_runner import TrialRunner
from pipeline.search.trials import RUN_ID, uids_of
from pipeline.search.worker_count import count_workers
from pipeline.search.worker_processes import WorkerProcesses
from pipeline.tracking import find_runs
from pipeline.tracking.abandoned_runs import end_abandoned
from pipeline.tracking.leftover import send_left
from pipeline.tracking.sending import longest_wait, wait_until_sent
from pipeline.tracking.study_parent import (
    find_leaders,
    joining_run,
    parent_run,
    refuse_if_tuned,
)
from pipeline.tracking.tracked_run import TrackedRun
from pipeline.tracking.workspace import Workspace

_CLOCKS = 60.0
"""Seconds by which clocks of machines may differ."""
_SHOWS_ITSELF = 10.0
"""Seconds after which a process that leads a study has its parent run, which says so."""


@dataclass(frozen=True)
class Tuned:
    """A finished study.

    Attributes:
        name: Name of the study.
        parent: Run id of its parent.
        compared: The comparison of its trainings.
    """

    name: str
    parent: str
    compared: Summary


class LedElsewhere(InUse):
    """Another process leads the study."""


class FoundStudy(NamedTuple):
    """The study that this store works on.

    Attributes:
        name: Name of the study.
        identity: The name that follows from experiment, base, space and images.
        parent: Run id of its parent, or empty if it has none yet.
        is_new: Whether Optuna's database does not hold it yet.
    """

    name: str
    identity: str
    parent: str
    is_new: bool


@dataclass(frozen=True)
class OpenStudy:
    """A study with all that working on it needs.

    Attributes:
        workspace: The open store.
        experiment: List, space and settings; with `study.only` the list holds these repeats.
        begun: The experiment as its file has it.
        database: Optuna's database.
        prepared: Images of the experiment's base.
        jobs: The checked trainings of the list.
        found: Name and parent of the study.
    """

    workspace: Workspace
    experiment: Experiment
    begun: Experiment
    database: Database
    prepared: Prepared
    jobs: list[Job]
    found: FoundStudy

    def load(self, is_alone: bool = True) -> optuna.Study:
        """Load Optuna's study."""
        return load_study(self.database.storage, self.experiment, self.found.name, is_alone)


class Trainer(Protocol):
    """Whoever trains what is to do of a study: this process, or several."""

    def run(self) -> None:
        """Train until nothing is left that could be trained here."""


@dataclass(frozen=True)
class Leader:
    """The process that leads a study.

    Attributes:
        opened: The study.
        study: Optuna's study, whose trials are enqueued.
        parent: The study's run.
    """

    opened: OpenStudy
    study: optuna.Study
    parent: TrackedRun

    def trainer(self) -> Trainer:
        """Return who trains the study's trials on this machine."""
        return _choose_trainer(self.opened, self.study, self.parent.id)

    def conclude(self, then: Callable[[Summary], None]) -> Tuned:
        """Evaluate and compare the trainings, and log that to the study's run.

        Args:
            then: Called with the comparison.

        Raises:
            PipelineError: No training is complete.
        """
        opened = self.opened
        wait_until_sent(opened.workspace)
        # Journals of workers that were killed.
        send_left(opened.workspace, opened.experiment.name)
        _remove_ended_checkpoints(opened, self.study)
        _wait_for_runs(opened, self.study)
        compared = conclude_study(
            opened.workspace, opened.experiment, self.study, self.parent, opened.prepared
        )
        then(compared)
        remove_other_weights(opened.workspace, opened.experiment, opened.found.name)
        return Tuned(opened.found.name, self.parent.id, compared)


@contextmanager
def lead(opened: OpenStudy, step: str) -> Iterator[Leader]:
    """Lead a study: its run is open, and its trials are enqueued.

    Args:
        opened: The study.
        step: ``tune`` or ``main``, which becomes the parent's ``pipeline.step``.

    Raises:
        LedElsewhere: Another process leads it.
    """
    found = opened.found
    with _leadership(opened, step) as run:
        study = opened.load()
        forget_agenda(study)
        study.set_user_attr(PARENT, run.id)
        study.set_user_attr(IDENTITY, found.identity)
        study.set_user_attr(DATA_DIGEST, opened.prepared.digest)
        log_study(run, opened.begun, opened.prepared, found.identity)
        _end_abandoned_trials(opened.workspace, study)
        trainings = find_runs.find_trainings(opened.workspace, found.name)
        run_ids = {row["run_id"] for row in trainings}
        enqueue_trials(study, opened.experiment, opened.jobs, run_ids)
        yield Leader(opened, study, run)


@contextmanager
def _leadership(opened: OpenStudy, step: str) -> Iterator[TrackedRun]:
    """Take the study's lock on this machine, and its parent run; make the study if it is new.

    Raises:
        LedElsewhere: Another process leads it.
    """
    found = opened.found
    in_use = (
        f"study {found.name!r} is being tuned by another process on this machine; wait for it, "
        "or give another study.name; study.workers has one command use more processes"
    )
    with ExitStack() as taken:
        try:
            refuse_if_tuned(opened.workspace, found.name)
            taken.enter_context(opened.database.lock_study(found.name, in_use))
            run = taken.enter_context(parent_run(opened.workspace, step, found.name, found.parent))
            if found.is_new:
                make_study(opened.database.storage, opened.experiment, found.name)
        except InUse as error:
            raise LedElsewhere(error.message) from None
        yield run


def _wait_for_runs(opened: OpenStudy, study: optuna.Study) -> None:
    """Wait until the server has all of what other workers have logged, or has had time for it."""
    if not opened.workspace.is_server:
        return
    uids = _uids_of_this_life(study)
    ends = time.monotonic() + longest_wait()
    is_told = False
    while True:
        missing = uids - find_runs.find_ended(opened.workspace, opened.found.name)
        if not missing or time.monotonic() >= ends:
            break
        if not is_told:
            say(f"waiting until other workers have sent all of {len(missing)} runs")
        is_told = True
        time.sleep(1)
    if missing:
        say(
            f"{len(missing)} runs of other workers are not in the store yet; "
            "summary compares them when they are"
        )


def _uids_of_this_life(study: optuna.Study) -> set[str]:
    """Return the uids of the runs that have ended since the study was started.

    Those of earlier starts may have been deleted.
    """
    agenda = read_agenda(study)
    began = datetime.fromtimestamp(agenda.began - _CLOCKS) if agenda else datetime.max
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    uids: set[str] = set()
    for trial in study.get_trials(deepcopy=False, states=states):
        is_new = trial.datetime_complete is not None and trial.datetime_complete >= began
        if is_new:
            uids |= uids_of(trial)
    return uids


def _choose_trainer(opened: OpenStudy, study: optuna.Study, parent: str) -> Trainer:
    worker = _worker(opened, study, parent)
    name = opened.found.name
    if opened.experiment.study.launcher == "ray":
        workers = opened.experiment.study.workers
        count = count_places(opened.experiment) if workers == "auto" else workers
        return RayWorkers(opened.experiment, opened.workspace, name, count, worker.num_left)
    count = count_workers(opened.experiment, opened.prepared, opened.workspace.checkpoints)
    if count == 1:
        return worker
    return WorkerProcesses(opened.experiment, opened.workspace, name, count, worker.num_left)


def _worker(opened: OpenStudy, study: optuna.Study, parent: str) -> TrialRunner:
    return TrialRunner(
        opened.workspace,
        opened.experiment,
        opened.database,
        study,
        parent,
        opened.prepared,
        opened.jobs,
        _telling_settings(opened.begun),
    )


def be_worker(opened: OpenStudy) -> Trainer:
    """Be one of several processes that `WorkerProcesses` has started."""
    study = opened.load(is_alone=False)
    parent = study.user_attrs[PARENT]
    workspace = replace(opened.workspace, study_run=parent, launched_run="")
    worker = _worker(replace(opened, workspace=workspace), study, parent)
    return replace(worker, is_one_of_several=True)


@contextmanager
def join(opened: OpenStudy, step: str, other: LedElsewhere) -> Iterator[Trainer]:
    """Join a study that another process leads.

    Args:
        opened: The study.
        step: ``tune`` or ``main``.
        other: What says which process leads it.

    Raises:
        UserError: The other process is of another release.
        PipelineError: The other process does not begin.
    """
    say(f"{str(other).partition(';')[0]}; this process joins in")
    study = _wait_for_agenda(opened)
    parent = study.user_attrs[PARENT]
    workspace = replace(opened.workspace, study_run=parent)
    with joining_run(workspace, step, opened.found.name, parent):
        joined = replace(opened, workspace=replace(workspace, launched_run=""), jobs=[])
        yield _choose_trainer(joined, study, parent)
        _remove_ended_checkpoints(joined, study)


def _remove_ended_checkpoints(opened: OpenStudy, study: optuna.Study) -> None:
    """Remove what this machine still has of trainings that another machine has gone on with.

    Only what the study itself has noted counts: anybody may write the tags of runs.
    """
    folder = opened.workspace.checkpoints
    uids: set[str] = set()
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
        uids |= uids_of(trial)
    for uid in uids:
        if child_path(folder, uid).is_dir():
            with suppress(InUse, UserError), lock(folder / uid, "its training is not at its end"):
                remove_child(folder, uid)


def _wait_for_agenda(opened: OpenStudy) -> optuna.Study:
    """Return the study when the process that leads it has enqueued its trials.

    Until then the study has what an earlier process had decided.
    """
    started = time.monotonic()
    while time.monotonic() - started < LONGEST_START:
        known = [study.study_name for study in opened.database.storage.get_all_studies()]
        if opened.found.name in known:
            study = opened.load(is_alone=False)
            agenda = read_agenda(study)
            is_old = time.monotonic() - started > _SHOWS_ITSELF
            leaders = find_leaders(opened.workspace, opened.found.name)
            if agenda is not None and (agenda.leader in leaders or (is_old and not leaders)):
                return study
        time.sleep(1)
    raise no_agenda(opened.found.name)


def _telling_settings(experiment: Experiment) -> list[str]:
    """Return the settings in which the list and the space of a study differ."""
    params = []
    for entry in experiment.entries:
        params.append({name: find_runs.as_param(value) for name, value in entry.flat().items()})
    differing = differing_names([settings_with_effect(some) for some in params])
    telling = dict.fromkeys([*differing, *experiment.space])
    of_one_run = ("model.name", "training.seed", "data.fold")
    return [name for name in SETTING_LABELS if name in telling and name not in of_one_run]


def _end_abandoned_trials(workspace: Workspace, study: optuna.Study) -> None:
    """End the runs of trials whose process was killed."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if not is_held(trial):
            end_abandoned(workspace, trial.user_attrs.get(RUN_ID, ""))
