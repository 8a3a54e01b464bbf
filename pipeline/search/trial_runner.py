"""A worker: it works through the trials of a study, one training each."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
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
from pipeline.errors import (
    InUse,
    Paused,
    StoreAway,
    TakenOver,
    UserError,
    WorkersDied,
    first_line,
    may_pass,
)
from pipeline.experiment import Experiment
from pipeline.files import out_of_room
from pipeline.jobs.check import check
from pipeline.jobs.prepare import prepare_variant
from pipeline.jobs.resume import lock_run
from pipeline.jobs.same_training import find_same_training, find_unfinished_training
from pipeline.jobs.train import Placement, TrackedTraining
from pipeline.jobs.training_job import Job
from pipeline.report.console import say, say_once
from pipeline.report.people_table import best_value_text
from pipeline.report.settings_text import (
    describe_settings,
    describe_some,
    settings_with_effect,
)
from pipeline.search.claims import LOST, Claim, ClaimCallback, Claims, Owner
from pipeline.search.one_epoch import Race, RaceCallback, Standing, is_late, waits_for_others
from pipeline.search.pruning import PruningCallback
from pipeline.search.shared_state import LONGEST_AWAY, wait_for_agenda, why_stop
from pipeline.search.space import build_configuration, decode_point, suggest
from pipeline.search.study_storage import Database, fail_at_once
from pipeline.search.trials import (
    ENTRY,
    FOLD_UIDS,
    KEY,
    MAY_PASS,
    PLACE,
    REASON,
    RUN_ID,
    UID,
    UNUSED,
    is_point,
    put_back,
    waiting_trials,
)
from pipeline.tracking import find_runs, names
from pipeline.tracking.abandoned_runs import end_silent
from pipeline.tracking.journalled import need_not_being_sent
from pipeline.tracking.patience import few_retries
from pipeline.tracking.sender import answers
from pipeline.tracking.sending import sender_of, settle
from pipeline.tracking.tracked_run import Pruned, TrackedRun, adopt_training
from pipeline.tracking.workspace import STORE_ERRORS, Workspace, explain_store_error, is_away
from pipeline.training.callback import Callback
from pipeline.training.distributed import join_group

MOST_LOST = 2
"""How often a trial whose worker has died is taken up by another."""
_LONGEST_PAUSE = 5.0
"""Seconds between two looks for a trial, while others still train."""
_SETTLES = 30.0
"""Seconds in which a tracking server takes what a training has logged that waits from then on."""
_LONGEST_NAME = 80
"""Length of a run's name, of which a legend of the MLflow UI shows about the half."""


@dataclass
class TrialRunner:
    """A worker: it trains what is still to do of a study, one trial after another.

    Attributes:
        workspace: The open store.
        experiment: List, space and number of trials.
        database: The database of Optuna's study.
        study: Optuna's study, whose trials are enqueued. Other workers may work on it too.
        parent: Run id of the study's run.
        prepared: Images of the experiment's base.
        jobs: Checked trainings of the list, if there are any: others are checked when they begin.
        telling: Dotted names of the settings that tell the study's configurations apart.
        is_one_of_several: Whether other workers train trials of the study at the same time.
    """

    workspace: Workspace
    experiment: Experiment
    database: Database
    study: optuna.Study
    parent: str
    prepared: Prepared
    jobs: Sequence[Job] = ()
    telling: Sequence[str] = ()
    is_one_of_several: bool = False

    def __post_init__(self) -> None:
        self._by_key = {f"{job.config_hash}:{job.seed}": job for job in self.jobs}
        self._failed: dict[str, int] = {}
        self._away_since = 0.0
        # When to look again at trials whose runs other processes have, by number.
        self._left: dict[int, float] = {}
        # How the searched trials stand at this look for a trial, if that was asked for.
        self._race: Race | None = None

    def run(self) -> None:
        """Train what is to do, until nothing is left that this worker could train.

        What others train is waited for, since it is taken over if they die.
        """
        self._agenda = wait_for_agenda(self.study)
        claims = Claims(self.database, self.study, self._agenda.heartbeat)
        waits = False
        while True:
            goes_on = self._goes_on()
            self._race = None
            claim = claims.take(self._is_wanted) if goes_on else None
            if claim is not None:
                waits = False
                try:
                    with self._hold(claim) as trial:
                        self._run_trial(trial, claim)
                    self._note_server()
                except (TakenOver, InUse, StoreAway, *STORE_ERRORS) as error:
                    if join_group().is_broken:
                        # The next training would wait for processes that are still in this one.
                        raise
                    self._leave(claim, error)
                continue
            busy = claims.busy()
            if not busy and not (goes_on and self._waits_for_some()):
                return
            if not waits:
                self._say_what_is_waited_for(busy)
            waits = True
            time.sleep(min(_LONGEST_PAUSE, self._agenda.heartbeat / 4))

    def _say_what_is_waited_for(self, busy: Sequence[FrozenTrial]) -> None:
        if busy:
            say(_describe_busy(busy))
        elif self._is_server_away():
            say("what is left has begun, and goes on when the tracking server answers again")

    def _leave(self, claim: Claim, error: Exception) -> None:
        """Leave a trial that cannot go on here now, and go on with others.

        Raises:
            Exception: The error, if the others could not go on either.
        """
        if isinstance(error, TakenOver):
            say(f"  {error}; it goes on there")
        elif isinstance(error, InUse):
            self._leave_for_now(claim, error)
        else:
            self._leave_to_server(claim, error)

    def _leave_for_now(self, claim: Claim, error: InUse) -> None:
        """Look at a trial again later whose run another process has.

        Raises:
            InUse: Nobody else works on the study: a person trains that run by hand.
        """
        if not (self.is_one_of_several or self.database.is_on_server):
            raise error
        # What a person would do about it is of no use here: it may well wait for others.
        held = first_line(error).partition("; ")[0]
        say_once(f"  {held}; the trial goes on when that one has ended")
        self._leave_for_a_while(claim)

    def _leave_for_a_while(self, claim: Claim) -> None:
        self._left[claim.number] = time.monotonic() + _LONGEST_PAUSE

    def _leave_to_server(self, claim: Claim, error: Exception) -> None:
        """Begin only trainings that need no tracking server from now on, until it answers again.

        A training that has begun needs it to go on: the server knows how far it is.

        Raises:
            Exception: The error, if it is not the tracking server that is away, or if it has been
                away for an hour.
        """
        means_away = isinstance(error, StoreAway) or is_away(error)
        if not self.workspace.is_server or self.database.is_given_up or not means_away:
            raise error
        if self._has_been_away_too_long():
            raise error
        if not self._away_since:
            told = error if isinstance(error, StoreAway) else explain_store_error(error)
            say(f"  {first_line(told)}; the trial goes on when it answers again")
        self._away_since = self._away_since or time.monotonic()
        self._leave_for_a_while(claim)

    def _is_server_away(self) -> bool:
        if not self.workspace.is_server:
            return False
        # Two ways to see it: what sends notices first that it has gone, and last that it is back.
        is_gone = sender_of(self.workspace).is_away
        is_gone = is_gone or (self._away_since > 0 and not answers(self.workspace.uri))
        if is_gone:
            self._away_since = self._away_since or time.monotonic()
        return is_gone

    def _note_server(self) -> None:
        """Forget that the server was away, now that a trial has been trained and it answers."""
        if not self._is_server_away():
            self._away_since = 0.0

    def _has_been_away_too_long(self) -> bool:
        return self._away_since > 0 and time.monotonic() - self._away_since > LONGEST_AWAY

    def _is_unsent(self, trial: FrozenTrial) -> bool:
        """Whether the server does not know yet how far a trial is that this process has trained."""
        uid = trial.user_attrs.get(UID, "")
        return self.workspace.is_server and sender_of(self.workspace).is_sending(uid)

    def _waits_for_some(self) -> bool:
        """Whether trials wait that can go on later, as when the tracking server answers again.

        Raises:
            StoreAway: It has been away for an hour.
        """
        if not self._find_wanted():
            return False
        if self._is_server_away() and self._has_been_away_too_long():
            raise StoreAway(f"the tracking server {self.workspace.uri} does not answer")
        return True

    def _waits_for_others(self, trial: FrozenTrial) -> bool:
        """Whether it depends on others, which have not trained for an epoch, if a trial goes on."""
        settings = self.experiment.study
        if settings.pruner != "one_epoch" or KEY in trial.user_attrs:
            return False
        if not waits_for_others(trial):
            return False
        self._race = self._race or Race.of(self.study, settings, self._is_late())
        return self._race.standing(trial.number) == Standing.OPEN

    def _is_late(self) -> bool:
        return is_late(self.experiment, self._agenda.began)

    def num_left(self) -> int:
        """Return how many trials are still to begin although nothing speaks against it."""
        self._agenda = wait_for_agenda(self.study)
        if not self._goes_on():
            return 0
        return len(self._find_wanted())

    def _goes_on(self) -> bool:
        """Whether further trials are to begin; say why if not."""
        why = why_stop(self.study, self.experiment, self._agenda.began)
        if why:
            say_once(f"no further trial begins: {why}")
        return not why

    def _find_wanted(self) -> list[FrozenTrial]:
        """Return the waiting trials that may be trained, now or later.

        Other processes may have their runs, or the tracking server may be away.
        """
        self._race = None
        return list(filter(self._may_go_on, waiting_trials(self.study)))

    def _is_wanted(self, trial: FrozenTrial) -> bool:
        is_left = self._left.get(trial.number, 0.0) > time.monotonic()
        if is_left or self._is_unsent(trial) or not self._may_go_on(trial):
            return False
        has_begun = not {RUN_ID, UID}.isdisjoint(trial.user_attrs)
        return not (has_begun and self._is_server_away())

    def _may_go_on(self, trial: FrozenTrial) -> bool:
        if PLACE not in trial.user_attrs or self._waits_for_others(trial):
            return False
        keys = self._agenda.keys
        is_alone = bool(self.experiment.study.only) or bool(keys)
        return not is_alone or trial.user_attrs.get(KEY) in keys

    @contextmanager
    def _hold(self, claim: Claim) -> Iterator[optuna.Trial]:
        """Hold a claim while its trial is trained, and put the trial back if that breaks off."""
        with claim as trial:
            try:
                yield trial
            except TakenOver:
                raise
            except BaseException:
                # What ends this worker here says nothing about the configuration: the trial goes on
                # when the study does.
                self._put_back(trial, claim)
                raise

    def _take_over(self, trial: optuna.Trial, claim: Claim) -> None:
        """End the run of a worker that has died, before its trial goes on here.

        Raises:
            WorkersDied: Too many have died in this trial.
        """
        lost = 1 + trial.user_attrs.get(LOST, 0)
        trial.set_user_attr(LOST, lost)
        place = trial.user_attrs[PLACE]
        say(
            f"trial {place + 1} of {self._agenda.total} is taken over from {claim.taken_from}, "
            "which gives no sign of life"
        )
        if RUN_ID in trial.user_attrs:
            end_silent(self.workspace, trial.user_attrs[RUN_ID], claim.taken_from)
        if lost > MOST_LOST:
            raise WorkersDied(f"{lost} workers have died while they trained it")

    def _put_back(self, trial: optuna.Trial, claim: Claim) -> None:
        # A trial that cannot even be put back still says RUNNING, which comes to the same.
        with (
            contextlib.suppress(StoreAway, TakenOver, UpdateFinishedTrialError),
            fail_at_once(self.study),
        ):
            claim.check()
            put_back(self.study, trial._trial_id)

    def _run_trial(self, trial: optuna.Trial, claim: Claim) -> None:
        """Train one trial, and tell the study its score, the higher the better, or how it ended."""
        try:
            if claim.taken_from:
                self._take_over(trial, claim)
            place = int(trial.user_attrs[PLACE])
            configuration = self._choose_configuration(trial, place)
            settings = describe_settings(configuration.flat())
            say(f"trial {place + 1} of {self._agenda.total}: {settings}")
            self._need_not_pruned(trial)
            job = self._prepare_job(trial, configuration, place)
            score = self._train_folds(trial, job, claim)
        except Pruned as pruned:
            say(f"  {pruned}")
            claim.confirm()
            self.study.tell(trial, state=TrialState.PRUNED)
        except Paused as paused:
            say(f"  {paused}")
            # Whoever goes on with it asks the server, which is to know that this run has ended.
            settle(self.workspace, _SETTLES)
            claim.confirm()
            claim.fall_silent()
            put_back(self.study, trial._trial_id)
        except (StoreAway, InUse, TakenOver, *STORE_ERRORS):
            raise
        except Exception as error:
            if join_group().is_broken or out_of_room(error):
                # The next training would wait for processes that are still in this one, or find the
                # same full disk.
                raise
            claim.confirm()
            self._tell_failed(trial, error)
        else:
            claim.confirm()
            self.study.tell(trial, score)
            self._say_how_far()

    def _need_not_pruned(self, trial: optuna.Trial) -> None:
        """Check that the trial's run has not been given up already.

        Raises:
            Pruned: It has: its worker died before it could tell the study.
        """
        run_id = trial.user_attrs.get(RUN_ID, "")
        with few_retries():
            if not run_id or find_runs.get_lifecycle(self.workspace, run_id) != "active":
                return
            tags = find_runs.get_run(self.workspace, run_id).data.tags
        if tags.get(names.STATE) == names.PRUNED:
            raise Pruned("pruned before")

    def _say_how_far(self) -> None:
        """Say which trial is the best so far, and how many are to begin, if others train too."""
        if not self.is_one_of_several:
            return
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        best = max(complete, key=lambda trial: float(trial.values[0]))
        metric = self.experiment.base.training.best_metric
        value = ranking.text(ranking.score(float(best.values[0]), metric), metric)
        left = len(self._find_wanted())
        say(
            f"  best so far: {ranking.title(metric)} {value}, "
            f"trial {int(best.user_attrs.get(PLACE, best.number)) + 1}; trials left: {left}"
        )

    def _tell_failed(self, trial: optuna.Trial, error: Exception) -> None:
        reason = first_line(error)
        again = "; the study tries it again when it is started again" if may_pass(error) else ""
        place = int(trial.user_attrs[PLACE])
        first = self._failed.setdefault(reason, place)
        if first != place:
            say(f"  failed for the reason of trial {first + 1}")
        else:
            say(f"  failed: {reason}{again}")
        trial.set_user_attr(REASON, reason[:1000])
        trial.set_user_attr(MAY_PASS, may_pass(error))
        self.study.tell(trial, state=TrialState.FAIL)

    def _train_folds(self, trial: optuna.Trial, job: Job, claim: Claim) -> float:
        """Train a job, or one for each fold if all folds are wanted; return the mean score."""
        scores = []
        adopted, trained = set(), set()
        breaks = bool(claim.taken_from)
        # By an earlier process: without its server it cannot go on.
        own = _runs_of(trial.user_attrs)
        for number, fold_job in enumerate(job.per_fold()):
            unfinished = self._find_unfinished(fold_job, own)
            locked: AbstractContextManager[None] = contextlib.nullcontext()
            if not unfinished and UID in trial.user_attrs:
                need_not_being_sent(self.workspace, trial.user_attrs[UID])
            if unfinished:
                # A person may be going on with that run by hand.
                locked = lock_run(self.workspace, unfinished, breaks)
            with locked:
                same = find_same_training(self.workspace, fold_job)
                if same is not None:
                    scores.append(self._adopt(trial, same))
                    adopted.add(same["uid"])
                    continue
                claim.check()
                placement = self._placement(trial, fold_job, claim, unfinished)
                callbacks = self._callbacks(trial, fold_job, number)
                callbacks.insert(0, ClaimCallback(claim))
                done = TrackedTraining(self.workspace, fold_job, placement, callbacks).run()
                scores.append(ranking.score(done.value, done.metric))
                trained.add(done.run.uid)
        _note_unused(trial, adopted | trained)
        if job.configuration.data.fold == "all":
            trial.set_user_attr(FOLD_UIDS, sorted(trained))
        return fmean(scores)

    def _find_unfinished(self, job: Job, own: set[str]) -> str:
        """Return the run id of a job's training in this study that can go on, or an empty text.

        Args:
            job: The job.
            own: Ids of the trial's own runs. If it has none, those of trials that have ended count:
                one of them may have failed in the same training. The runs of others that are still
                to go on are theirs, even if they train the same.
        """
        begun = set(own)
        if not own:
            others_own = set()
            for other in self.study.get_trials(deepcopy=False):
                runs = _runs_of(other.user_attrs)
                if other.state.is_finished():
                    begun |= runs
                else:
                    others_own |= runs
            # A run that has failed may be gone on with by a later trial already.
            begun -= others_own
        name = self.study.study_name
        return find_unfinished_training(self.workspace, name, job, begun, bool(own))

    def _adopt(self, trial: optuna.Trial, same: find_runs.Row) -> float:
        """Take a training that is complete already for this trial; return its score."""
        called = same["run_id"] or "that the server does not know yet"
        say(f"  trained before as run {called}: {best_value_text(same)}")
        if same["run_id"]:
            trial.set_user_attr(RUN_ID, same["run_id"])
        if self.study.study_name not in same["study"].split(","):
            adopt_training(self.workspace, same["run_id"], self.study.study_name)
        return float(same["score"])

    def _placement(self, trial: optuna.Trial, job: Job, claim: Claim, run_id: str) -> Placement:
        place = int(trial.user_attrs[PLACE])
        fold = f" fold {job.prepared.fold}" if job.configuration.data.folds else ""
        return Placement(
            self._run_name(job.configuration.flat(), place) + fold,
            parent=self.parent,
            study=self.study.study_name,
            place=place,
            run_id=run_id,
            on_uid=lambda uid: trial.set_user_attr(UID, uid),
            on_run=lambda run_id: _note_run(trial, run_id),
            guard=claim.check,
            takes_over=bool(claim.taken_from),
            is_searched=ENTRY not in trial.user_attrs,
            shares_checkpoints=self.database.is_on_server and self.workspace.is_server,
        )

    def _callbacks(self, trial: optuna.Trial, job: Job, fold_number: int) -> list[Callback]:
        # A trial is given up on its first fold or not at all, since Optuna takes one value per
        # trial and epoch.
        if fold_number:
            return []
        metric = job.configuration.training.best_metric
        is_searched = ENTRY not in trial.user_attrs
        settings = self.experiment.study
        if is_searched and settings.pruner == "one_epoch":
            return [RaceCallback(trial, metric, settings, self._is_late)]
        return [PruningCallback(trial, metric, prunable=is_searched)]

    def _choose_configuration(self, trial: optuna.Trial, place: int) -> Configuration:
        entry = trial.user_attrs.get(ENTRY)
        space = self.experiment.space
        others = self.experiment.base.flat()
        if entry is not None:
            if is_point(trial):
                # The values are fixed already; suggesting them lets the sampler learn from them.
                suggest(trial, space, others)
            return Configuration.model_validate(entry)
        point = suggest(trial, space, others)
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
        placement = Placement(name, self.parent, self.study.study_name, place)
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


def _runs_of(attributes: Mapping[str, Any]) -> set[str]:
    """Return id and uid of the run that a trial has noted, as far as it has."""
    return {str(attributes[name]) for name in (RUN_ID, UID) if name in attributes}


def _describe_busy(busy: Sequence[FrozenTrial]) -> str:
    """Say which trials others train, that are waited for."""
    if len(busy) == 1:
        owner = Owner.of(busy[0])
        where = owner.described if owner else "another worker"
        return f"nothing is left to begin now; {where} still trains a trial, which is waited for"
    return (
        f"nothing is left to begin now; others still train {len(busy)} trials, which are waited for"
    )


def _note_unused(trial: optuna.Trial, uids: Collection[str]) -> None:
    """Note the uid that a trial has noted before, if none of its trainings has it."""
    attributes = trial.user_attrs
    noted = attributes.get(UID, "")
    unused = "" if noted in uids else noted
    if unused != attributes.get(UNUSED, ""):
        trial.set_user_attr(UNUSED, unused)


def _note_run(trial: optuna.Trial, run_id: str) -> None:
    # A tracking server that was away may have made the run when the trial has ended already.
    with contextlib.suppress(UpdateFinishedTrialError):
        trial.set_user_attr(RUN_ID, run_id)
