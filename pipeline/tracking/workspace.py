"""Where runs are kept: tracking URI, MLflow experiment, and the folder of local results."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from pipeline.config import valid_name
from pipeline.errors import PipelineError, StoreAway, Unwritable, UserError, first_line
from pipeline.files import child_path, lock, unwritable, unwritable_file
from pipeline.report.console import say
from pipeline.safe_text import hide_passwords
from pipeline.signals import at_first_signal
from pipeline.tracking import launcher_run
from pipeline.tracking.address import check_address

STORE_ERRORS = (MlflowException, requests.RequestException)
"""What any call raises when the store cannot be reached or refuses; see `explain_store_error`."""

_SQLITE = "sqlite:///"

_MEANS_ELSE = re.compile(r"\?|%[0-9a-fA-F]{2}")
"""What SQLAlchemy and MLflow do not take literally in the address of a file."""
_ELSEWHERE = "start in another folder, or choose another store, such as MLFLOW_TRACKING_URI=sqlite:////PATH/mlflow.db"

_EXPERIMENT_TAGS = {
    # Without it the UI opens an experiment in its GenAI mode, which has no column for metrics or params.
    "mlflow.experimentKind": "custom_model_development",
}


@dataclass(frozen=True)
class Workspace:
    """An open store.

    Attributes:
        client: Of the tracking server or database.
        uri: Tracking URI, absolute.
        home: Folder of ``optuna.db``, ``prepared/``, ``checkpoints/`` and ``outputs/``: beside a local database, else the current one.
        experiment: Name of ours, which names folders, studies and registered models.
        launched_run: The run that ``mlflow run`` has made for this process, or empty.
    """

    client: MlflowClient
    uri: str
    home: Path
    experiment: str
    launched_run: str

    @cached_property
    def experiment_id(self) -> str:
        """Id of the MLflow experiment that new runs go to; made when it is first needed, so that reading makes none.

        Under ``mlflow run`` that of the run it has made, else the one named like ours.
        """
        try:
            if self.launched_run:
                experiment_id = str(self.client.get_run(self.launched_run).info.experiment_id)
            else:
                experiment_id = _experiment_id(self.client, self.experiment, self.uri)
            for key, value in _EXPERIMENT_TAGS.items():
                self.client.set_experiment_tag(experiment_id, key, value)
        except MlflowException as error:
            explained = explain_store_error(error)
            if isinstance(explained, UserError | StoreAway):
                raise explained from error
            raise UserError(
                f"experiment {self.experiment!r} cannot be used in {self.uri}: {first_line(error)}"
            ) from error
        return experiment_id

    @property
    def prepared(self) -> Path:
        """Folder of all prepared data."""
        return self.home / "prepared"

    @property
    def outputs(self) -> Path:
        """Folder of this experiment's tables and figures."""
        return child_path(self.home / "outputs", self.experiment)

    @property
    def checkpoints(self) -> Path:
        """Folder of what interrupted trainings of this experiment need to go on; each has a child of it, named by the run's uid."""
        return child_path(self.home / "checkpoints", self.experiment)

    @property
    def artifacts(self) -> tuple[Path, ...]:
        """Folder of the runs' files, where they stand beside a local database."""
        return (self.home / "mlruns",) if self.uri.startswith(_SQLITE) else ()

    def need_writable(self, *folders: Path, file: Path | None = None) -> None:
        """Find out at once whether folders of this store, and a file, can be written to, before hours of work are lost.

        Raises:
            Unwritable: One cannot.
        """
        reasons = {folder: unwritable(folder) for folder in folders} | (
            {file: unwritable_file(file)} if file else {}
        )
        for path, reason in reasons.items():
            if reason:
                raise Unwritable(f"{path} cannot be written to: {reason}; {_ELSEWHERE}")

    def ui_command(self) -> str:
        """Return the shell command that opens the MLflow UI on this store."""
        return (
            f"mlflow server --backend-store-uri '{self.uri}'"
            if self.uri.startswith(_SQLITE)
            else f"open {self.uri}"
        )


def tracking_uri() -> str:
    """Return MLflow's tracking URI, with the path of a local SQLite file absolute and plain.

    MLflow writes a space in it as %20, and would make an empty folder of that name.
    """
    uri = mlflow.get_tracking_uri()
    return (
        f"{_SQLITE}{Path.cwd() / unquote(uri.removeprefix(_SQLITE))}"
        if uri.startswith(_SQLITE)
        else uri
    )


def database_file(uri: str) -> Path | None:
    """Return the file of a local SQLite database, None for any other store; `uri` as of `tracking_uri`."""
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


def results_folder() -> Path:
    """Return the folder in which local results stand, without opening the store."""
    database = database_file(tracking_uri())
    return database.parent if database else Path.cwd()


def open_workspace(experiment: str, reads_only: bool = False) -> Workspace:
    """Open the store that MLflow's own rules name.

    Args:
        experiment: Name of ours; empty where runs are only read by their ids.
        reads_only: Whether a local database may be one that cannot be written to.

    Raises:
        Unwritable: A local database, or its folder, cannot be written to.
        UserError: The store cannot be opened, or the name, which may have been read back from a run, is none.
        StoreAway: It does not answer.
    """
    try:
        valid_name(experiment)
    except ValueError as error:
        raise UserError(f"experiment: {experiment!r} given; {error}") from None
    # MLflow tells about database migrations and model logging at length.
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # What it logs here, with a traceback, it also raises.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    uri = tracking_uri()
    check_address("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    if database_file(uri) is None:
        at_first_signal(stop_retrying)
    try:
        client = _initialised(uri, reads_only)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        explained = explain_store_error(error)
        if isinstance(explained, UserError | StoreAway):
            raise explained from error
        raise UserError(
            f"the MLflow store {hide_passwords(uri)} cannot be used: {first_line(error)}"
        ) from error
    return Workspace(client, uri, results_folder(), experiment, launcher_run.launched_run_id())


def _initialised(uri: str, reads_only: bool) -> MlflowClient:
    database = database_file(uri)
    if database is None:
        _say_if_away(uri)
        client = MlflowClient(uri)
        # Here and not minutes later: whether there is a server, and whether it knows the user.
        with _few_retries():
            client.search_experiments(max_results=1)
        return client
    if found := _MEANS_ELSE.search(str(database)):
        # MLflow would put one part of what it keeps here, and another there.
        raise UserError(
            f"{database}: MLflow takes {found[0]!r} in the name of its database or folder for something else; {_ELSEWHERE}"
        )
    _need_database(database, reads_only)
    # Several processes that meet a fresh SQLite file at once all fail in its migration.
    database.parent.mkdir(parents=True, exist_ok=True)
    with lock(database) if not unwritable(database.parent) else nullcontext():
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


def _say_if_away(uri: str) -> None:
    """Say that a database server does not answer: MLflow, which is asked next, tries again for two minutes without a word.

    Raises:
        UserError: The package for this kind of database is not installed.
    """
    if not uri.startswith(tuple(DATABASE_ENGINES)):
        return
    try:
        create_engine(uri).connect().close()
    except ImportError as error:
        raise UserError(
            f"the MLflow store {hide_passwords(uri)} needs the package {error.name}, which is not installed"
        ) from None
    except OperationalError as error:
        say(
            f"{hide_passwords(uri)} does not answer; it is tried for two minutes: {first_line(error)}"
        )


def _need_database(file: Path, reads_only: bool) -> None:
    """Find out at once whether a SQLite file can be used: MLflow tries again and again for two minutes.

    Raises:
        Unwritable: It cannot be written to, or where reading will do, not be read.
    """
    if reads_only and file.exists():
        if not os.access(file, os.R_OK):
            raise Unwritable(f"{file}, where runs are kept, cannot be read; {_ELSEWHERE}")
        return
    # SQLite makes files beside the database while it writes.
    if reason := unwritable_file(file) or unwritable(file.parent):
        raise Unwritable(
            f"{file}, where runs are kept, cannot be written to: {reason}; {_ELSEWHERE}"
        )


_RETRIES, _TIMEOUT = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"


def stop_retrying() -> None:
    """Have MLflow ask a server only once from now on, and not wait long for the answer: this process is to end."""
    os.environ[_RETRIES], os.environ[_TIMEOUT] = "0", "2"


@contextmanager
def _few_retries() -> Iterator[None]:
    """Have MLflow ask a server that does not answer twice instead of eight times, unless the user has said how often."""
    given = {name: os.environ.get(name) for name in (_RETRIES, _TIMEOUT)}
    os.environ[_RETRIES], os.environ[_TIMEOUT] = given[_RETRIES] or "1", given[_TIMEOUT] or "10"
    try:
        yield
    finally:
        for name, value in given.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def is_away(error: BaseException) -> bool:
    """Whether an error says that a server does not answer, or answers that it is out of order."""
    if isinstance(error, MlflowException):
        return (
            "failed with exception" in str(error) or error.error_code == "TEMPORARILY_UNAVAILABLE"
        )
    return (
        isinstance(error, requests.ConnectionError | requests.Timeout)
        or (_status(error) or 0) >= 500
    )


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that an error carries."""
    if isinstance(error, MlflowException):
        return {"UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403, "ENDPOINT_NOT_FOUND": 404}.get(
            str(error.error_code)
        )
    response = getattr(error, "response", None)
    return None if response is None else int(response.status_code)


def explain_store_error(error: BaseException) -> PipelineError:
    """Return what an error of the store means to a person, in one line."""
    uri, text, status = hide_passwords(tracking_uri()), first_line(error), _status(error)
    if is_away(error):
        return StoreAway(
            f"the {'tracking server' if uri.startswith('http') else 'database'} {uri} does not answer: {_cause(text)}"
        )
    if status in (401, 403):
        users = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, say who asks"
        return UserError(f"the tracking server {uri} refuses this user ({status}); {users}")
    if status == 404 or "not in a valid JSON format" in text:
        return UserError(f"MLFLOW_TRACKING_URI: {uri} is no MLflow server: {text}")
    return PipelineError(f"the MLflow store {uri}: {text}")


def _cause(text: str) -> str:
    """Return the innermost reason of an error of requests, such as ``Connection refused``."""
    inner = text.rpartition("Caused by ")[2].rstrip(")").rstrip("'\"")
    return inner.rpartition(": ")[2].rpartition("('")[2].removeprefix("[Errno 111] ") or text


def _experiment_id(client: MlflowClient, name: str, uri: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        location = (
            str(results_folder() / "mlruns" / name.replace("/", "_"))
            if uri.startswith(_SQLITE)
            else None
        )
        try:
            return client.create_experiment(name, artifact_location=location)
        except MlflowException:
            # Another process may have made it meanwhile.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise UserError(
            f"the MLflow experiment {name!r} is deleted; restore it, or choose another name with --experiment"
        )
    return str(found.experiment_id)
