"""Which worker trains which trial: a claim holds while its worker gives signs of life.

Workers are processes, on this machine or on others, that share a study. A trial is claimed by one
statement of the database, which changes its state and sets the moment of the claim as its start.
That moment is the claim's mark: a worker that takes the trial over sets another one, so whoever has
claimed a trial can tell whether it is still his.

A worker notes every `study.heartbeat` seconds that it lives. If it has not done so for twice as
long, by the database's clock, another worker takes its trial over. Who asks must have seen the
silence for a while: after the database itself has been away, all of its workers seem silent. A
worker that was stopped for so long, and wakes up, finds its claim gone before it writes anything.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from types import TracebackType
from typing import NamedTuple

import optuna
import psutil
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from pipeline.errors import StoreAway, TakenOver
from pipeline.search.study_storage import Database
from pipeline.search.trials import KEY, RUN_ID, waiting_trials
from pipeline.tracking.heartbeat import process_space
from pipeline.training.callback import Callback

OWNER = "owner"
"""User attribute of a trial: the process that has claimed it, and the claim's mark."""
LOST = "lost"
"""User attribute of a trial: how often it was taken over from a silent worker."""
SILENT = 2.0
"""Intervals without a sign of life after which a worker counts as dead."""
_SEEN = 1.5
"""Intervals for which a worker must have been seen silent."""
_SURE = 1.5
"""Intervals after its last sign of life for which a worker need not ask whether its claim holds."""


_held_here: set[str] = set()
"""Marks of the claims that this process holds."""


class Owner(NamedTuple):
    """The process that has claimed a trial.

    Attributes:
        where: The machine, or the container in it, whose process ids these are.
        process_id: Id of the process.
        started: When the process started, in seconds since 1970: ids are used again.
        mark: The claim's mark.
    """

    where: str
    process_id: int
    started: float
    mark: str

    @classmethod
    def of(cls, trial: FrozenTrial) -> Owner | None:
        """Return who has claimed a trial; None if nobody has, or no worker of this release."""
        try:
            where, process_id, started, mark = str(trial.user_attrs.get(OWNER, "")).split(" ")
            owner = cls(where, int(process_id), float(started), mark)
            start = _as_local_time(datetime.fromisoformat(mark))
        except ValueError:
            return None
        return owner if start == trial.datetime_start else None

    @classmethod
    def here(cls, mark: datetime) -> Owner:
        """Return this process as the owner of a claim."""
        return cls(_this_place(), os.getpid(), psutil.Process().create_time(), mark.isoformat())

    def __str__(self) -> str:
        return f"{self.where} {self.process_id} {self.started:.2f} {self.mark}"

    @property
    def described(self) -> str:
        """The process, for people."""
        return f"process {self.process_id} on {self.where.partition('/')[0]}"

    @property
    def is_known_dead(self) -> bool:
        """Whether the process has been one of this machine, and is no more.

        This process itself counts as dead if it has let the claim go: the database was away then.
        """
        if self.where != _this_place():
            return False
        if self.process_id == os.getpid():
            return self.mark not in _held_here
        try:
            process = psutil.Process(self.process_id)
            is_same = abs(process.create_time() - self.started) < 1
            return not is_same or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True


def _this_place() -> str:
    """Return what process ids of this machine, or of this container, count in."""
    return f"{socket.gethostname()}/{process_space()}".rstrip("/")


def clock() -> float:
    """Return seconds that also pass while this process, or this machine, sleeps."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.time()


class Claims:
    """The claims of one worker on the trials of a study.

    Args:
        database: The database.
        study: The study in it.
        interval: Seconds between two signs of life of each of the study's workers.
    """

    def __init__(self, database: Database, study: optuna.Study, interval: float) -> None:
        self._database = database
        self._study = study
        self._interval = interval
        self._waiting: list[FrozenTrial] = []
        self._listed = -math.inf
        self._silent_since: dict[tuple[int, datetime | None], float] = {}

    def take(self, is_wanted: Callable[[FrozenTrial], bool]) -> Claim | None:
        """Claim a trial whose worker has died, or else the next one that waits.

        Entries of the list come before searched trials, since they are what the sampler learns from
        first; and what has begun comes before what has not.

        Args:
            is_wanted: Whether a trial may be trained now.

        Returns:
            The claim; None if there is no such trial at this moment.
        """
        for trial in self._find_dead():
            if is_wanted(trial):
                claim = self._claim(trial, _find_marks(trial))
                if claim is not None:
                    return claim
        for is_fresh in (False, True):
            # Trials that others have begun meanwhile cannot be claimed, so that the list of a
            # moment ago does: to read 1,000 trials takes longer than to claim one.
            for trial in list(filter(is_wanted, self._list_waiting(is_fresh))):
                # Whoever gets it, it waits no more.
                self._waiting.remove(trial)
                # Another worker may have trained it for an epoch, and have it wait for others.
                now = trial if is_fresh else self._study._storage.get_trial(trial._trial_id)
                if now.state != TrialState.WAITING or not is_wanted(now):
                    continue
                claim = self._claim(now, [])
                if claim is not None:
                    return claim
        return None

    def _list_waiting(self, is_fresh: bool) -> list[FrozenTrial]:
        """Return the trials that wait, or that waited a moment ago, in the order of `take`."""
        now = clock()
        if is_fresh or now - self._listed > self._interval / 4:
            self._waiting = sorted(waiting_trials(self._study), key=_order)
            self._listed = now
        return self._waiting

    def _claim(self, trial: FrozenTrial, before: Collection[datetime]) -> Claim | None:
        dead = Owner.of(trial) if before else None
        began = clock()
        mark = datetime.now(UTC).replace(tzinfo=None)
        # The sign of life comes first: a trial that runs without any is never taken over.
        with contextlib.suppress(SQLAlchemyError, StorageInternalError):
            self._database.record_heartbeat(trial._trial_id)
        if not self._database.mark_running(trial._trial_id, before, mark):
            return None
        claim = Claim(self._database, self._study, trial, mark, self._interval, began)
        if before:
            claim.taken_from = dead.described if dead else "its worker"
        return claim

    def busy(self) -> list[FrozenTrial]:
        """Return the running trials whose workers may live.

        It is for a worker that has claimed none itself.
        """
        dead = {trial._trial_id for trial in self._find_dead()}
        return [trial for trial in self._running() if trial._trial_id not in dead]

    def _running(self) -> list[FrozenTrial]:
        found = []
        for trial_id in self._database.find_running(self._study._study_id):
            trial = self._study._storage.get_trial(trial_id)
            if trial.state == TrialState.RUNNING:
                found.append(trial)
        return found

    def _find_dead(self) -> list[FrozenTrial]:
        """Return the running trials whose workers have died."""
        running = self._running()
        if not running:
            self._silent_since.clear()
            return []
        silent = self._database.find_silent(self._study._study_id, SILENT * self._interval)
        now = clock()
        since: dict[tuple[int, datetime | None], float] = {}
        dead = []
        for trial in running:
            owner = Owner.of(trial)
            if owner is not None and owner.is_known_dead:
                dead.append(trial)
            elif trial._trial_id in silent:
                key = (trial._trial_id, trial.datetime_start)
                since[key] = self._silent_since.get(key, now)
                if now - since[key] >= _SEEN * self._interval:
                    dead.append(trial)
        self._silent_since = since
        return dead


def is_held(trial: FrozenTrial) -> bool:
    """Whether a running trial may still have a worker.

    Nobody knows from here whether a worker on another machine lives. If it stays silent, others
    take its trial over.
    """
    owner = Owner.of(trial)
    return owner is not None and not owner.is_known_dead


def _as_local_time(mark: datetime) -> datetime:
    """Return a mark as Optuna gives it as a trial's start: in the local time of who reads it."""
    return mark.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)


def _find_marks(trial: FrozenTrial) -> list[datetime]:
    """Return the marks that a running trial may have.

    There are two in the hour that comes twice when summer time ends.
    """
    start = trial.datetime_start
    if start is None:
        return []
    moments = [start.replace(fold=fold).astimezone(UTC) for fold in (0, 1)]
    return [moment.replace(tzinfo=None) for moment in moments]


def _order(trial: FrozenTrial) -> tuple[bool, bool, float, int]:
    """Return the place of a waiting trial: what waits after one epoch comes by its score."""
    has_begun = KEY in trial.user_attrs or RUN_ID in trial.user_attrs or bool(trial.params)
    scores = list(trial.intermediate_values.values())
    is_paused = len(scores) == 1
    return not has_begun, is_paused, -scores[0] if is_paused else 0.0, trial.number


class Claim:
    """One claimed trial. As a context manager it gives signs of life until its block ends.

    Attributes:
        trial: The trial.
        number: Its number.
        taken_from: The worker that the trial was taken over from, for people; or empty.
    """

    taken_from = ""

    def __init__(
        self,
        database: Database,
        study: optuna.Study,
        trial: FrozenTrial,
        mark: datetime,
        interval: float,
        began: float,
    ) -> None:
        # Optuna's sampler keeps what it read of the study for the trial before.
        study._thread_local.cached_all_trials = None
        self._study = study
        self._database = database
        self._trial_id = trial._trial_id
        self._mark = mark
        self._interval = interval
        self._confirmed = began
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="claim", daemon=True)
        self.number = trial.number
        self._is_lost = False
        self._is_over = False

    def __enter__(self) -> optuna.Trial:
        self._thread.start()
        try:
            self.check()
            _held_here.add(self._mark.isoformat())
            self.trial = optuna.Trial(self._study, self._trial_id)
            self.trial.set_user_attr(OWNER, str(Owner.here(self._mark)))
        except BaseException:
            self._let_go()
            raise
        return self.trial

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # What the run has logged may be sent later than its trial ends.
        self._is_over = not self._is_lost
        self._let_go()

    def _let_go(self) -> None:
        _held_here.discard(self._mark.isoformat())
        self.fall_silent()

    def fall_silent(self) -> None:
        """Give no further sign of life: the trial is about to be put back."""
        self._stopped.set()
        self._thread.join()

    def check(self) -> None:
        """Check that the trial is still this worker's, before something is written.

        The database is asked only if this worker's last sign of life is too long ago. If it was
        waited for in vain before, nobody can have taken the trial over, and the run is being ended.

        Raises:
            TakenOver: Another worker has it.
            StoreAway: The database is away, so that nobody can tell.
        """
        if self._is_over or self._database.is_given_up:
            return
        if clock() - self._confirmed > _SURE * self._interval:
            self.confirm()

    def confirm(self, is_patient: bool = True) -> None:
        """Ask the database whether the trial is still this worker's; see `check`."""
        now = clock()
        if not self._database.has_mark(self._trial_id, self._mark, is_patient):
            self._is_lost = True
            raise TakenOver(
                f"trial {self.number} was taken over by another worker, "
                "since this one gave no sign of life"
            )
        with contextlib.suppress(SQLAlchemyError, StorageInternalError):
            self._database.record_heartbeat(self._trial_id)
            self._confirmed = now

    def _beat(self) -> None:
        while not self._stopped.wait(self._interval):
            # A database that is away is asked again at the next beat. Whose the trial is, is for
            # the thread that trains to find out.
            with contextlib.suppress(StoreAway, TakenOver):
                self.confirm(is_patient=False)


class ClaimCallback(Callback):
    """Ends a training whose trial was taken over by another worker.

    Args:
        claim: The claim on the trial.
    """

    def __init__(self, claim: Claim) -> None:
        self._claim = claim

    def on_step(self, epoch: int, loss: float, accuracy: float, lr: float) -> None:
        self._claim.check()

    def on_epoch(self, epoch: int, values: dict[str, float], is_best: bool) -> None:
        self._claim.check()
