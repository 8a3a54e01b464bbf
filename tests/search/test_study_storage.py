"""The database of the studies: made by many at once, locked by another program, away."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import optuna
import pytest

from pipeline.errors import InUse, StoreAway, UserError
from pipeline.report.console import TrainingProgress
from pipeline.search import study_storage
from pipeline.search.study_storage import Database, fail_at_once
from pipeline.tracking import names
from tests.conftest import Cli, let_a_checkpoint_be_written
from tests.search.test_study import LIST, SPACE, runs, study_file
from tests.servers import PostgreSQL

pytestmark = pytest.mark.slow


def make_study(url: str, home: Path) -> str:
    study = optuna.create_study(
        storage=Database(url, home).storage,
        study_name="one",
        direction="maximize",
        load_if_exists=True,
    )
    return str(study.study_name)


@contextmanager
def lock(file: Path) -> Iterator[None]:
    """Keep a database locked, as a program that writes to it for long."""
    with closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


def lock_for(file: Path, seconds: float) -> threading.Thread:
    """Keep a database locked for so long, from now on, by a thread that is returned."""
    is_locked = threading.Event()

    def keep() -> None:
        with lock(file):
            is_locked.set()
            time.sleep(seconds)

    thread = threading.Thread(target=keep)
    thread.start()
    is_locked.wait()
    return thread


def test_six_at_once_make_a_fresh_database(tmp_path: Path) -> None:
    for number in range(5):
        folder = tmp_path / str(number)
        folder.mkdir()
        with ThreadPoolExecutor(6) as pool:
            assert (
                list(pool.map(lambda _, folder=folder: make_study("", folder), range(6)))
                == ["one"] * 6
            )
        assert not list(folder.glob(".*.lock"))


def test_six_at_once_make_a_fresh_database_on_a_server(
    postgres: PostgreSQL, tmp_path: Path
) -> None:
    for number in range(3):
        url = postgres.url(f"fresh{number}")
        # Folders of their own, as those of different machines: no file can be a common lock.
        homes = [tmp_path / f"{number} {home}" for home in range(6)]
        for home in homes:
            home.mkdir()
        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(lambda home, url=url: make_study(url, home), homes)) == ["one"] * 6


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite:////nonexistent/folder/optuna.db", "there is no folder /nonexistent/folder"),
        ("optuna.db", "study.storage: 'optuna.db' cannot be used"),
        ("oracle://me:secret@host/db", "study.storage: 'oracle://me:***@host/db' cannot be used"),
        ("mysql://me:secret@host/db", "unknown scheme 'mysql'"),
        ("postgres://me:secret@host/db", "unknown scheme 'postgres'; nearest: postgresql; allowed"),
        (
            "postgresql+psycopg://me:secret@127.0.0.1:1/db",
            "study.storage: 'postgresql+psycopg://me:***@127.0.0.1:1/db' cannot be used",
        ),
    ],
)
def test_an_unusable_database_is_wrong_input_and_its_password_is_not_shown(
    tmp_path: Path, url: str, message: str
) -> None:
    with pytest.raises(UserError) as raised:
        Database(url, tmp_path)
    assert (
        message in str(raised.value)
        and "secret" not in str(raised.value)
        and "\n" not in str(raised.value)
    )


def test_a_folder_of_any_name_holds_the_database(tmp_path: Path) -> None:
    home = tmp_path / "50% of {flowers}"
    home.mkdir()
    make_study("", home)
    assert (home / "optuna.db").is_file()


def test_the_lock_of_a_study_is_beside_the_database_and_not_of_the_folder(tmp_path: Path) -> None:
    homes = [tmp_path / "a", tmp_path / "b"]
    for home in homes:
        home.mkdir()
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    first, second = (Database(url, home) for home in homes)
    with first.lock_study("study", "in use"):
        assert (tmp_path / ".shared.db-study.lock").exists()
        with pytest.raises(InUse, match="in use"), second.lock_study("study", "in use"):
            pass
        with (
            second.lock_study("other", "in use"),
            Database("", homes[1]).lock_study("study", "in use"),
        ):
            pass


@pytest.mark.thorough
def test_a_locked_database_is_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = optuna.create_study(storage=Database("", tmp_path).storage)
    locked = lock_for(tmp_path / "optuna.db", 8.0)
    # Optuna's own connection gives up after five seconds.
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    study.tell(trial, 1.0)
    locked.join()
    assert study.best_value == 1.0
    assert (
        capsys.readouterr().out.count(
            "optuna.db is busy or away (database is locked); it is waited for"
        )
        == 1
    )
    locked = lock_for(tmp_path / "optuna.db", 4.0)
    assert Database("", tmp_path).storage.get_all_studies()
    locked.join()


def test_a_database_that_stays_locked_is_an_error_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_storage, "PATIENCE", 3.0)
    study = optuna.create_study(storage=Database("", tmp_path).storage)
    with lock(tmp_path / "optuna.db"):
        started = time.monotonic()
        with pytest.raises(
            StoreAway, match=r"database .*optuna\.db does not answer \(database is locked\)"
        ):
            study.set_user_attr("a", 1)
        assert 3 <= time.monotonic() - started < 9
        started = time.monotonic()
        with pytest.raises(StoreAway), fail_at_once(study):
            study.set_user_attr("a", 1)
        assert time.monotonic() - started < 5
    study.set_user_attr("a", 1)
    assert study.user_attrs == {"a": 1}


def test_a_database_that_is_locked_from_the_start_is_no_wrong_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_study("", tmp_path)
    monkeypatch.setattr(study_storage, "PATIENCE", 1.0)
    with lock(tmp_path / "optuna.db"), pytest.raises(StoreAway, match="does not answer"):
        Database("", tmp_path)


def at_epoch(epoch: int, training: str, do: object) -> pytest.MonkeyPatch:
    """Call `do` once, in that epoch of a training; to be undone."""
    shown, patched, calls = TrainingProgress.on_epoch, pytest.MonkeyPatch(), []

    def on_epoch(
        progress: TrainingProgress, number: int, values: dict[str, float], is_best: bool
    ) -> None:
        shown(progress, number, values, is_best)
        if number < epoch:
            let_a_checkpoint_be_written()
        elif number == epoch and progress._title.startswith(training) and not calls:
            calls.append(number)
            do()  # type: ignore[operator]

    patched.setattr(TrainingProgress, "on_epoch", on_epoch)
    return patched


@pytest.mark.thorough
def test_a_study_outlasts_a_lock_of_its_database(cli: Cli, quick: Path) -> None:
    locks: list[threading.Thread] = []
    patched = at_epoch(1, "00", lambda: locks.append(lock_for(quick.parent / "optuna.db", 9.0)))
    done = cli(
        "tune", "--config", study_file(quick, configs=LIST, space=SPACE, study={"trials": 3})
    )
    patched.undo()
    locks[0].join()
    assert done.code == 0, done.err
    assert "is busy or away (database is locked)" in done.out
    assert [run.data.tags[names.STATE] for run in runs("train")] == ["complete"] * 3


@pytest.mark.thorough
def test_where_the_lock_stays_the_trial_is_interrupted_and_goes_on_later(
    cli: Cli, quick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_storage, "PATIENCE", 2.0)
    file = study_file(quick, configs=LIST)
    keeper = lock(quick.parent / "optuna.db")
    patched = at_epoch(2, "01", keeper.__enter__)
    done = cli("tune", "--config", file, "--training.checkpoint_seconds", "0")
    patched.undo()
    keeper.__exit__(None, None, None)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert (
        "does not answer (database is locked); started again, the study goes on where it is"
        in done.err
    )
    (parent,) = runs("tune")
    assert (parent.info.status, parent.data.tags[names.STATE]) == ("KILLED", "interrupted")
    first, second = runs("train")
    assert [run.data.tags[names.STATE] for run in (first, second)] == ["complete", "interrupted"]
    again = cli("tune", "--config", file)
    assert again.code == 0, again.err
    assert (
        "1 of 2 trainings are there (1 of the list)" in again.out
        and "goes on after epoch" in again.out
    )
    assert [(run.info.run_id, run.data.tags[names.STATE]) for run in runs("train")] == [
        (first.info.run_id, "complete"),
        (second.info.run_id, "complete"),
    ]
    assert runs("tune")[0].info.status == "FINISHED"


@pytest.mark.thorough
def test_a_study_outlasts_a_restart_of_its_server(
    cli: Cli, quick: Path, postgres: PostgreSQL
) -> None:
    def restart() -> None:
        postgres.stop()
        threading.Timer(4.0, postgres.start).start()

    patched = at_epoch(1, "01", restart)
    study = {"trials": 3, "storage": postgres.url("restarted")}
    done = cli("tune", "--config", study_file(quick, configs=LIST, space=SPACE, study=study))
    patched.undo()
    assert done.code == 0, done.err
    assert "busy or away" in done.out and "secret" not in done.out
    assert [run.data.tags[names.STATE] for run in runs("train")] == ["complete"] * 3
    assert (
        "3 of 3 trainings are there"
        in cli("tune", "--config", study_file(quick, configs=LIST, space=SPACE, study=study)).out
    )
    assert not (quick.parent / "optuna.db").exists()


def test_where_the_server_stays_away_the_trial_is_interrupted(
    cli: Cli, quick: Path, postgres: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_storage, "PATIENCE", 2.0)
    file = study_file(quick, configs=LIST, study={"storage": postgres.url("away")})
    patched = at_epoch(1, "00", postgres.stop)
    done = cli("tune", "--config", file)
    patched.undo()
    postgres.start()
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "does not answer" in done.err and "secret" not in done.err
    assert [run.data.tags[names.STATE] for run in runs("train")] == ["interrupted"]
    assert cli("tune", "--config", file).code == 0
    assert [run.data.tags[names.STATE] for run in runs("train")] == ["complete"] * 2
