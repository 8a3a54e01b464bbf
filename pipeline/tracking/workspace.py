"""The store of the runs: tracking URI, MLflow experiment, and the folder of local results."""

from __future__ import annotations

import logging
import os
import re
from contextlib import AbstractContextManager, nullcontext
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
from pipeline.tracking.patience import few_retries, stop_retrying

STORE_ERRORS = (MlflowException, requests.RequestException)
"""Errors that any call raises if the store cannot be reached or refuses it.

See `explain_store_error`.
"""

JOURNAL = "journal"
"""Folder of all journals, beside those of checkpoints and outputs."""
_SQLITE = "sqlite:///"

_MEANS_ELSE = re.compile(r"\?|%[0-9a-fA-F]{2}")
"""Texts in the address of a file that SQLAlchemy and MLflow do not take literally."""
_ELSEWHERE = (
    "start in another folder, or choose another store, "
    "such as MLFLOW_TRACKING_URI=sqlite:////PATH/mlflow.db"
)

_STATUS_OF_CODE = {"UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403, "ENDPOINT_NOT_FOUND": 404}
"""HTTP status for each error code of MLflow that stands for one."""

_EXPERIMENT_TAGS = {
    # Without this tag the UI opens an experiment in its GenAI mode, which has no columns for
    # metrics and params.
    "mlflow.experimentKind": "custom_model_development",
}


@dataclass(frozen=True)
class Workspace:
    """An open store.

    Attributes:
        client: Client of the tracking server or database.
        uri: Tracking URI, absolute.
        home: Folder of ``optuna.db``, ``prepared/``, ``checkpoints/``, ``journal/`` and
            ``outputs/``. It is the folder of a local database, or else the current folder.
        experiment: Name of our experiment, which names folders, studies and registered models.
        launched_run: The run that ``mlflow run`` has made for this process, or empty.
        study_run: The parent run of the study that this process works on with others, or empty.
            New runs go to its MLflow experiment.
    """

    client: MlflowClient
    uri: str
    home: Path
    experiment: str
    launched_run: str
    study_run: str = ""

    @cached_property
    def experiment_id(self) -> str:
        """Id of the MLflow experiment that new runs go to.

        It is that of the study's parent run if others have begun the study. Otherwise it is that of
        the run which ``mlflow run`` has made, or else the experiment of our name. It is made when
        it is first needed, so that reading makes none.
        """
        try:
            beside = self.study_run or self.launched_run
            if beside:
                experiment_id = str(self.client.get_run(beside).info.experiment_id)
            else:
                experiment_id = _get_or_make_experiment(self.client, self.experiment, self.uri)
            for key, value in _EXPERIMENT_TAGS.items():
                tag_experiment(self.client, experiment_id, key, value)
        except MlflowException as error:
            explained = explain_store_error(error)
            if isinstance(explained, UserError | StoreAway):
                raise explained from error
            raise UserError(
                f"experiment {self.experiment!r} cannot be used in {self.uri}: {first_line(error)}"
            ) from error
        return experiment_id

    @property
    def known_experiment_id(self) -> str:
        """What `experiment_id` is, or empty if it was not needed yet; asks no server."""
        return str(vars(self).get("experiment_id", ""))

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
        """Folder of what interrupted trainings of this experiment need to go on.

        Each training has a folder in it, named by the run's uid.
        """
        return child_path(self.home / "checkpoints", self.experiment)

    @property
    def is_server(self) -> bool:
        """Whether the store is a tracking server, which may go away while a training runs."""
        return self.uri.startswith(("http://", "https://"))

    @property
    def journals(self) -> Path:
        """Folder of what the tracking server has not taken yet of this experiment's runs.

        Each run has a folder in it, named by its uid (see `pipeline.tracking.journal`).
        """
        return child_path(self.home / JOURNAL, self.experiment)

    @property
    def artifacts(self) -> tuple[Path, ...]:
        """Folder of the runs' files if they stand beside a local database, or else nothing."""
        return (self.home / "mlruns",) if self.uri.startswith(_SQLITE) else ()

    def need_writable(self, *folders: Path, file: Path | None = None) -> None:
        """Check that folders of this store, and a file, can be written to.

        It is called before the work begins, so that hours of work are not lost.

        Raises:
            Unwritable: A folder or the file cannot be written to.
        """
        reasons = {folder: unwritable(folder) for folder in folders}
        if file:
            reasons[file] = unwritable_file(file)
        for path, reason in reasons.items():
            if reason:
                raise Unwritable(f"{path} cannot be written to: {reason}; {_ELSEWHERE}")

    def ui_command(self) -> str:
        """Return the shell command that opens the MLflow UI on this store."""
        if self.uri.startswith(_SQLITE):
            return f"mlflow server --backend-store-uri '{self.uri}'"
        return f"open {self.uri}"


def tracking_uri() -> str:
    """Return MLflow's tracking URI, with the path of a local SQLite file absolute and plain.

    MLflow writes a space in the path as %20, and would make an empty folder of that name.
    """
    uri = mlflow.get_tracking_uri()
    if uri.startswith(_SQLITE):
        return f"{_SQLITE}{Path.cwd() / unquote(uri.removeprefix(_SQLITE))}"
    return uri


def database_file(uri: str) -> Path | None:
    """Return the file of a local SQLite database, or None for any other store.

    Args:
        uri: A result of `tracking_uri`.
    """
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


def results_folder() -> Path:
    """Return the folder in which local results stand, without opening the store."""
    database = database_file(tracking_uri())
    return database.parent if database else Path.cwd()


def open_workspace(experiment: str, reads_only: bool = False) -> Workspace:
    """Open the store that MLflow's own rules name.

    Args:
        experiment: Name of our experiment; empty if runs are only read by their ids.
        reads_only: Accept a local database that cannot be written to.

    Raises:
        Unwritable: A local database, or its folder, cannot be written to.
        UserError: The store cannot be opened. Or the name, which may have been read back from a
            run, is not a name of an experiment.
        StoreAway: The store does not answer.
    """
    try:
        valid_name(experiment)
    except ValueError as error:
        raise UserError(f"experiment: {experiment!r} given; {error}") from None
    # MLflow writes long messages about database migrations and the logging of models.
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # MLflow also raises what it logs here with a traceback.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # It would print the address of each run of a server when its end is sent.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    uri = tracking_uri()
    check_address("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    if database_file(uri) is None:
        at_first_signal(stop_retrying)
    try:
        client = _open_client(uri, reads_only)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        explained = explain_store_error(error)
        if isinstance(explained, UserError | StoreAway):
            raise explained from error
        raise UserError(
            f"the MLflow store {hide_passwords(uri)} cannot be used: {first_line(error)}"
        ) from error
    return Workspace(client, uri, results_folder(), experiment, launcher_run.launched_run_id())


def _open_client(uri: str, reads_only: bool) -> MlflowClient:
    database = database_file(uri)
    if database is None:
        _say_if_away(uri)
        client = MlflowClient(uri)
        # This tells now, and not minutes later, whether there is a server and it knows the user.
        with few_retries():
            client.search_experiments(max_results=1)
        return client
    found = _MEANS_ELSE.search(str(database))
    if found:
        # MLflow would write one part of its data to this place and another part to another place.
        raise UserError(
            f"{database}: MLflow takes {found[0]!r} in the name of its database or folder "
            f"for something else; {_ELSEWHERE}"
        )
    _need_database(database, reads_only)
    database.parent.mkdir(parents=True, exist_ok=True)
    # Without the lock, processes that meet a new SQLite file at the same moment all fail in its
    # migration.
    guard: AbstractContextManager[None] = lock(database)
    if unwritable(database.parent):
        guard = nullcontext()
    with guard:
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


def _say_if_away(uri: str) -> None:
    """Say that a database server does not answer.

    MLflow, which is asked next, tries again for two minutes without a message.

    Raises:
        UserError: The package for this kind of database is not installed.
    """
    if not uri.startswith(tuple(DATABASE_ENGINES)):
        return
    try:
        create_engine(uri).connect().close()
    except ImportError as error:
        raise UserError(
            f"the MLflow store {hide_passwords(uri)} needs the package {error.name}, "
            "which is not installed"
        ) from None
    except OperationalError as error:
        reason = first_line(error)
        say(f"{hide_passwords(uri)} does not answer; it is tried for two minutes: {reason}")


def _need_database(file: Path, reads_only: bool) -> None:
    """Check at once that a SQLite file can be used: MLflow would try for two minutes.

    Raises:
        Unwritable: The file cannot be written to, or if reading suffices, it cannot be read.
    """
    if reads_only and file.exists():
        if not os.access(file, os.R_OK):
            raise Unwritable(f"{file}, where runs are kept, cannot be read; {_ELSEWHERE}")
        return
    # SQLite makes files beside the database while it writes.
    reason = unwritable_file(file) or unwritable(file.parent)
    if reason:
        raise Unwritable(
            f"{file}, where runs are kept, cannot be written to: {reason}; {_ELSEWHERE}"
        )


def is_away(error: BaseException) -> bool:
    """Whether an error says that a server does not answer, or that it is out of order."""
    if isinstance(error, MlflowException):
        is_unavailable = error.error_code == "TEMPORARILY_UNAVAILABLE"
        return is_unavailable or "failed with exception" in str(error)
    if isinstance(error, requests.ConnectionError | requests.Timeout):
        return True
    return (http_status(error) or 0) >= 500


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status that an error carries, or None."""
    if isinstance(error, MlflowException):
        return _STATUS_OF_CODE.get(str(error.error_code))
    response = getattr(error, "response", None)
    return None if response is None else int(response.status_code)


def explain_store_error(error: BaseException) -> PipelineError:
    """Return what an error of the store means to a person, in one line."""
    uri = hide_passwords(tracking_uri())
    text = first_line(error)
    status = http_status(error)
    if is_away(error):
        kind = "tracking server" if uri.startswith("http") else "database"
        return StoreAway(f"the {kind} {uri} does not answer: {_find_cause(text)}")
    if status in (401, 403):
        return UserError(
            f"the tracking server {uri} refuses this user ({status}); MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, say who asks"
        )
    if status == 404 or "not in a valid JSON format" in text:
        return UserError(f"MLFLOW_TRACKING_URI: {uri} is no MLflow server: {text}")
    return PipelineError(f"the MLflow store {uri}: {text}")


def _find_cause(text: str) -> str:
    """Return the innermost reason of an error of requests, such as ``Connection refused``."""
    inner = text.rpartition("Caused by ")[2].rstrip(")").rstrip("'\"").rpartition(", '")[2]
    return inner.rpartition(": ")[2].rpartition("('")[2].removeprefix("[Errno 111] ") or text


def tag_experiment(client: MlflowClient, experiment_id: str, key: str, value: str) -> None:
    """Set a tag of an experiment.

    If two processes set a new tag at the same moment, MLflow lets both insert it, and one fails.
    """
    try:
        client.set_experiment_tag(experiment_id, key, value)
    except MlflowException as error:
        if not re.search("unique constraint", str(error), re.IGNORECASE):
            raise
        client.set_experiment_tag(experiment_id, key, value)


def _get_or_make_experiment(client: MlflowClient, name: str, uri: str) -> str:
    """Return the id of the MLflow experiment of a name; make it if there is none."""
    found = client.get_experiment_by_name(name)
    if found is None:
        location = None
        if uri.startswith(_SQLITE):
            location = str(results_folder() / "mlruns" / name.replace("/", "_"))
        try:
            return client.create_experiment(name, artifact_location=location)
        except MlflowException:
            # Another process may have made it meanwhile.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise UserError(
            f"the MLflow experiment {name!r} is deleted; "
            "restore it, or choose another name with --experiment"
        )
    return str(found.experiment_id)
