"""Where runs are kept: tracking URI, MLflow experiment, and the folder of local results."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

import mlflow
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES
from sqlalchemy import create_engine, make_url
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from pipeline.errors import Unwritable, UserError, first_line
from pipeline.files import unwritable, unwritable_file
from pipeline.report.console import say
from pipeline.tracking import names

StoreError = MlflowException
"""What any call raises when the store cannot be reached or refuses."""

_SQLITE = "sqlite:///"

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
            raise UserError(f"experiment {self.experiment!r} cannot be used in {self.uri}: {first_line(error)}") from error
        return experiment_id

    @property
    def prepared(self) -> Path:
        """Folder of all prepared data."""
        return self.home / "prepared"

    @property
    def outputs(self) -> Path:
        """Folder of this experiment's tables and figures."""
        return self.home / "outputs" / self.experiment

    @property
    def checkpoints(self) -> Path:
        """Folder of what interrupted trainings of this experiment need to go on."""
        return self.home / "checkpoints" / self.experiment

    @property
    def artifacts(self) -> tuple[Path, ...]:
        """Folder of the runs' files, where they stand beside a local database."""
        return (self.home / "mlruns",) if self.uri.startswith(_SQLITE) else ()

    def need_writable(self, *folders: Path, file: Path | None = None) -> None:
        """Find out at once whether folders of this store, and a file, can be written to, before hours of work are lost.

        Raises:
            Unwritable: One cannot.
        """
        reasons = {folder: unwritable(folder) for folder in folders} | ({file: unwritable_file(file)} if file else {})
        for path, reason in reasons.items():
            if reason:
                raise Unwritable(f"{path} cannot be written to: {reason}; {_ELSEWHERE}")

    def ui_command(self) -> str:
        """Return the shell command that opens the MLflow UI on this store."""
        return f"mlflow server --backend-store-uri '{self.uri}'" if self.uri.startswith(_SQLITE) else f"open {self.uri}"


def tracking_uri() -> str:
    """Return MLflow's tracking URI, with the path of a local SQLite file absolute and plain.

    MLflow writes a space in it as %20, and would make an empty folder of that name.
    """
    uri = mlflow.get_tracking_uri()
    return f"{_SQLITE}{Path.cwd() / unquote(uri.removeprefix(_SQLITE))}" if uri.startswith(_SQLITE) else uri


def home() -> Path:
    """Return the folder in which local results stand, without opening the store."""
    uri = tracking_uri()
    return Path(uri.removeprefix(_SQLITE)).parent if uri.startswith(_SQLITE) else Path.cwd()


def open_workspace(experiment: str, reads_only: bool = False) -> Workspace:
    """Open the store that MLflow's own rules name.

    Args:
        experiment: Name of ours.
        reads_only: Whether a local database may be one that cannot be written to.

    Raises:
        Unwritable: A local database, or its folder, cannot be written to.
        UserError: The store cannot be opened.
    """
    # MLflow tells about database migrations and model logging at length.
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # What it logs here, with a traceback, it also raises.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    uri = tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        client = _initialised(uri, reads_only)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise UserError(f"the MLflow store {_without_password(uri)} cannot be used: {first_line(error)}") from error
    return Workspace(client, uri, home(), experiment, os.environ.get("MLFLOW_RUN_ID", ""))


def _initialised(uri: str, reads_only: bool) -> MlflowClient:
    if not uri.startswith(_SQLITE):
        _say_if_away(uri)
        return MlflowClient(uri)
    file = Path(uri.removeprefix(_SQLITE))
    _need_database(file, reads_only)
    # Several processes that meet a fresh SQLite file at once all fail in its migration.
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = Path(tempfile.gettempdir()) / f"mlflow-init-{hashlib.sha256(uri.encode()).hexdigest()[:16]}.lock"
    with FileLock(lock, mode=0o666):
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
        raise UserError(f"the MLflow store {_without_password(uri)} needs the package {error.name}, which is not installed") from None
    except OperationalError as error:
        say(f"{_without_password(uri)} does not answer; it is tried for two minutes: {first_line(error)}")


def _without_password(uri: str) -> str:
    return make_url(uri).render_as_string(hide_password=True) if uri.startswith(tuple(DATABASE_ENGINES)) else uri


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
        raise Unwritable(f"{file}, where runs are kept, cannot be written to: {reason}; {_ELSEWHERE}")


def _experiment_id(client: MlflowClient, name: str, uri: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        location = str(home() / "mlruns" / name.replace("/", "_")) if uri.startswith(_SQLITE) else None
        try:
            return client.create_experiment(name, artifact_location=location)
        except MlflowException:
            # Another process may have made it meanwhile.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise UserError(f"the MLflow experiment {name!r} is deleted; restore it, or choose another name with --experiment")
    return str(found.experiment_id)


def end_launched_run(reason: str, state: str = names.FAILED) -> None:
    """End the run that ``mlflow run`` has made for this process, where there is one and it still runs."""
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id:
        return
    # Where the store is why it ends, MLflow ends the run itself.
    with suppress(MlflowException, SQLAlchemyError, OSError):
        client = MlflowClient(tracking_uri())
        if client.get_run(run_id).info.status == "RUNNING":
            client.set_tag(run_id, names.REASON, reason[:5000])
            client.set_tag(run_id, names.STATE, state)
            client.set_terminated(run_id, names.STATUS_OF_STATE[state])
