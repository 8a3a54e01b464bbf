"""Real servers for studies that several folders share: MLflow's, and PostgreSQL."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import MLflowServer, PostgreSQL, mlflow_server


@pytest.fixture(scope="session")
def tracking_server(
    tmp_path_factory: pytest.TempPathFactory, empty_store: Path
) -> Iterator[MLflowServer]:
    """A real MLflow server with a store of its own."""
    database = tmp_path_factory.mktemp("server") / "mlflow.db"
    shutil.copy(empty_store, database)
    with mlflow_server(database) as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgreSQL]:
    """A real PostgreSQL server; in CI, where one must be installed, its lack is a failure."""
    on_path = shutil.which("pg_ctl")
    installed = (
        [Path(on_path).parent] if on_path else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    )
    missing = [] if installed else ["PostgreSQL's server"]
    missing += [] if importlib.util.find_spec("psycopg") else ["psycopg"]
    if missing:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"needs {' and '.join(missing)}")
    server = PostgreSQL(installed[-1])
    try:
        yield server
    finally:
        server.remove()
