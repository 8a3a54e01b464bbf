"""Optuna's database: opened, waited for while it is busy or away, and locked for one study.

It is made when it is opened for the first time. Beside Optuna's operations it has those by which
several workers share a study: see `pipeline.search.claims`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar, cast

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage, get_storage
from optuna.storages._rdb.models import TrialModel
from optuna.trial import TrialState
from sqlalchemy import exc, select, update
from sqlalchemy.engine import URL, make_url

from pipeline.errors import StoreAway, UserError, first_line, nearest
from pipeline.files import lock
from pipeline.report.console import say
from pipeline.tracking.address import check_address

STUDIES = "optuna.db"
_KINDS = ("sqlite", "postgresql")
"""Databases that keep times of claims to the microsecond, which claims are told apart by."""
_ALLOWED = "sqlite:///FILE, postgresql://USER@HOST/DATABASE"
PATIENCE = 60.0
"""Seconds that an operation waits in all for a database that is busy or away."""
_PAUSE = 0.5
"""Seconds between two tries of an operation."""
_BUSY_SECONDS = 2
"""Seconds that SQLite waits itself: a signal cannot break that, so it is short, and repeated."""
_CONNECT_SECONDS = 10
_SQLITE_BUSY = 5
_SQLITE_LOCKED = 6

_TRIALS: Any = TrialModel.__table__.c
"""Columns of Optuna's table of trials."""

Returned = TypeVar("Returned")
_DatabaseError = (exc.SQLAlchemyError, StorageInternalError)


class Database:
    """The database in which Optuna keeps studies.

    Args:
        url: Address of the database as SQLAlchemy reads it. Empty means ``optuna.db`` in `home`.
        home: Folder of local results.

    Attributes:
        storage: Optuna's storage. Its operations wait while the database is busy or away, and then
            raise `StoreAway`.

    Raises:
        UserError: SQLAlchemy does not understand the URL, its driver is missing, or the database
            cannot be opened.
        StoreAway: Another program keeps the database locked.
    """

    def __init__(self, url: str, home: Path) -> None:
        check_address("study.storage", url)
        try:
            parsed = make_url(url) if url else URL.create("sqlite", database=str(home / STUDIES))
        except (exc.ArgumentError, ValueError) as error:
            raise UserError(
                f"study.storage: {url!r} cannot be used: {first_line(error)}; allowed: {_ALLOWED}"
            ) from None
        kind = parsed.get_backend_name()
        if kind not in _KINDS:
            raise UserError(
                f"study.storage: {str(parsed)!r} cannot be used: unknown scheme {kind!r}"
                f"{nearest(kind, _KINDS)}; allowed: {_ALLOWED}"
            )
        file = _file_of(parsed)
        self._beside = file or home / "optuna"
        name = f"database {str(parsed)!r}" if file is None else f"database {file}"
        try:
            if file is not None and not file.parent.is_dir():
                raise FileNotFoundError(f"there is no folder {file.parent}")
            # If several processes meet a fresh database at once, all but one fail in making its
            # tables.
            with lock(self._beside):
                opened = _retry(lambda: _open(parsed), _may_pass_while_opened, name, PATIENCE)
        except (*_DatabaseError, ImportError, OSError, RuntimeError) as error:
            if _is_locked(error):
                raise _away_error(name, error) from error
            raise UserError(
                f"study.storage: {str(parsed)!r} cannot be used: {_reason(error)}"
            ) from error
        self.storage: BaseStorage = _PatientStorage(opened, name)
        self._backend: RDBStorage = opened._backend  # type: ignore[attr-defined]
        self.file = file

    @property
    def is_on_server(self) -> bool:
        """Whether a server has the database, so that other machines can share it."""
        return self.file is None

    def record_heartbeat(self, trial_id: int) -> None:
        """Note that the worker of a trial lives, by the database's clock.

        Raises:
            SQLAlchemyError, StorageInternalError: The database is busy or away.
        """
        self._backend.record_heartbeat(trial_id)

    def find_silent(self, study_id: int, seconds: float) -> set[int]:
        """Return the ids of running trials whose workers have been silent for so long.

        Those that have never given a sign of life are not among them.

        Raises:
            StoreAway: The database is busy or away, and stays so.
        """
        self._backend.heartbeat_interval = max(1, round(seconds))
        self._backend.grace_period = max(1, round(seconds))
        return set(self._patiently(lambda: self._backend._get_stale_trial_ids(study_id)))

    def find_running(self, study_id: int) -> list[int]:
        """Return the ids of the running trials of a study.

        Raises:
            StoreAway: The database is busy or away, and stays so.
        """
        ids = select(_TRIALS.trial_id).where(
            _TRIALS.study_id == study_id, _TRIALS.state == TrialState.RUNNING
        )

        def operation() -> list[int]:
            with self._backend.engine.connect() as connection:
                return [
                    int(found) for found in connection.execute(ids.order_by("trial_id")).scalars()
                ]

        return self._patiently(operation)

    def mark_running(self, trial_id: int, before: Collection[datetime], mark: datetime) -> bool:
        """Begin a trial that waits, or take over one that runs; return whether that was done.

        It is one statement of the database, so that of several workers one succeeds.

        Args:
            trial_id: Optuna's id of the trial.
            before: Empty if the trial waits; if it runs, the marks of which it has one, in UTC.
            mark: The time that becomes the trial's start, in UTC.

        Raises:
            StoreAway: The database is busy or away, and stays so.
        """
        state = TrialState.RUNNING if before else TrialState.WAITING
        conditions = [_TRIALS.trial_id == trial_id, _TRIALS.state == state]
        if before:
            conditions.append(_TRIALS.datetime_start.in_(before))
        change = update(TrialModel).where(*conditions)
        change = change.values(state=TrialState.RUNNING, datetime_start=mark)
        now = select(_TRIALS.datetime_start).where(
            _TRIALS.trial_id == trial_id, _TRIALS.state == TrialState.RUNNING
        )

        def operation() -> bool:
            with self._backend.engine.begin() as connection:
                connection.execute(change)
            # The answer to an earlier try may have been lost: the mark tells whose the trial is.
            with self._backend.engine.connect() as connection:
                return bool(connection.execute(now).scalar() == mark)

        return self._patiently(operation)

    def has_mark(self, trial_id: int, mark: datetime, is_patient: bool = True) -> bool:
        """Whether a trial runs, and has that mark.

        Args:
            trial_id: Optuna's id of the trial.
            mark: The mark, in UTC.
            is_patient: Whether to wait while the database is away.

        Raises:
            StoreAway: The database is busy or away, and stays so.
        """
        condition = (_TRIALS.trial_id == trial_id, _TRIALS.state == TrialState.RUNNING)

        def operation() -> bool:
            with self._backend.engine.connect() as connection:
                found = connection.execute(select(_TRIALS.datetime_start).where(*condition))
                return bool(found.scalar() == mark)

        return self._patiently(operation, None if is_patient else 0.0)

    def _patiently(
        self, operation: Callable[[], Returned], seconds: float | None = None
    ) -> Returned:
        storage = cast(_Delegating, self.storage)
        return storage.patiently(operation, storage.patience if seconds is None else seconds)

    @property
    def is_given_up(self) -> bool:
        """Whether the database was away for so long, when it was asked last, that work ends."""
        return cast(_Delegating, self.storage).is_given_up

    @contextmanager
    def lock_study(self, study: str, refusal: str) -> Iterator[None]:
        """Take the lock of one study on this machine.

        The lock stands beside the database's file, or in the home folder if a server has the
        database.

        Args:
            study: Name of the study.
            refusal: Message of the error if another process has the lock.

        Raises:
            InUse: Another process has the lock.
        """
        with lock(self._beside.with_name(f"{self._beside.name}-{study}"), refusal):
            yield


def _file_of(url: URL) -> Path | None:
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        return None
    return Path(str(url.database)).absolute()


def _open(url: URL) -> BaseStorage:
    # Optuna takes braces in the address for a template.
    text = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    settings = {"connect_args": _connection_settings(url), "pool_pre_ping": True}
    return get_storage(RDBStorage(text, settings))


def _connection_settings(url: URL) -> dict[str, Any]:
    match url.get_backend_name(), url.get_driver_name():
        case "sqlite", _:
            return {"timeout": _BUSY_SECONDS}
        case "postgresql", "psycopg" | "psycopg2":
            # Without these, a server that has vanished without a word would be waited for until
            # the operating system gives up, after a quarter of an hour.
            return {"connect_timeout": _CONNECT_SECONDS, "tcp_user_timeout": int(1000 * PATIENCE)}
        case _:
            return {}


def _retry(
    operation: Callable[[], Returned],
    may_pass: Callable[[BaseException], bool],
    name: str,
    seconds: float,
) -> Returned:
    """Return what an operation on a database returns; try it again while its error may pass.

    Raises:
        SQLAlchemyError, StorageInternalError: The error may not pass, or the operation has been
            tried for `seconds`.
    """
    started = time.monotonic()
    is_told = False
    while True:
        try:
            return operation()
        except _DatabaseError as error:
            if not may_pass(error) or time.monotonic() - started >= seconds:
                raise
            if not is_told:
                say(
                    f"  {name} is busy or away ({_reason(error)}); "
                    f"it is waited for, {seconds:.0f} seconds at the most"
                )
            is_told = True
        time.sleep(_PAUSE)


class _Delegating:
    def __init__(self, backend: BaseStorage, name: str) -> None:
        self.backend = backend
        self.name = name
        self.patience = PATIENCE
        self.is_given_up = False

    def remove_session(self) -> None:
        self.backend.remove_session()

    def patiently(self, operation: Callable[[], Returned], seconds: float) -> Returned:
        """Do an operation, and wait while the database is away.

        Raises:
            StoreAway: It stays away.
        """
        try:
            result = _retry(operation, _is_away, self.name, seconds)
        except _DatabaseError as error:
            self.is_given_up = self.is_given_up or seconds > 0
            raise _away_error(self.name, error) from error
        self.is_given_up = False
        return result


def _make_patient(method: str) -> Callable[..., Any]:
    """Return a method that calls the backend's of that name, and waits while it is away."""

    def call(self: _Delegating, *given: Any, **named: Any) -> Any:
        tries = 0

        def operation() -> Any:
            nonlocal tries
            tries += 1
            try:
                return getattr(self.backend, method)(*given, **named)
            except UpdateFinishedTrialError:
                if tries == 1:
                    raise
                # The try before has ended the trial: only the database's answer was lost.
                return True

        return self.patiently(operation, self.patience)

    return call


_PatientStorage = type(
    "_PatientStorage",
    (_Delegating, BaseStorage),
    {name: _make_patient(name) for name in BaseStorage.__abstractmethods__},
)


@contextmanager
def fail_at_once(study: optuna.Study) -> Iterator[None]:
    """Let operations on a study's database fail at once.

    What is being ended must not wait for the database.
    """
    storage = cast(_Delegating, study._storage)
    storage.patience = 0.0
    try:
        yield
    finally:
        storage.patience = PATIENCE


def _cause(error: BaseException) -> BaseException:
    """Return what SQLAlchemy has raised: Optuna's own error speaks of invalid data."""
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        return error.__cause__
    return error


def _is_away(error: BaseException) -> bool:
    """Whether a database may answer later: it is locked, full, restarted, or cannot be reached."""
    return isinstance(
        _cause(error),
        exc.OperationalError | exc.InterfaceError | exc.InternalError | exc.TimeoutError,
    )


def _away_error(name: str, error: BaseException) -> StoreAway:
    return StoreAway(
        f"{name} does not answer ({_reason(error)}); started again, the study goes on where it is"
    )


def _is_locked(error: BaseException) -> bool:
    original = getattr(_cause(error), "orig", None)
    # The low byte is the kind of error, the others say more about it.
    code = getattr(original, "sqlite_errorcode", 0) & 0xFF
    return code in (_SQLITE_BUSY, _SQLITE_LOCKED)


def _may_pass_while_opened(error: BaseException) -> bool:
    """Whether to try again to open a database.

    A database that is away is not tried again: its address may as well be wrong.
    """
    if _is_locked(error):
        return True
    # Another machine may be making the same tables at this moment.
    return isinstance(error, exc.IntegrityError) or "already exists" in _reason(error)


def _reason(error: BaseException) -> str:
    cause = _cause(error)
    return first_line(getattr(cause, "orig", None) or cause)
