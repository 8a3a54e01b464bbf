"""What tests share: a fresh store per test, real images, and one finished study.

Large libraries are imported where they are used: the process that only hands tests out to others
needs none of them, and the others wait for it.
"""

from __future__ import annotations

import functools
import gc
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline import trust
from pipeline.__main__ import main
from pipeline.errors import Interrupted
from pipeline.tracking import names

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.report.console import TrainingProgress
    from pipeline.tracking.workspace import Workspace

SLOW_FIXTURES = {"cli", "smoke", "tracking_server", "postgres", "server", "two", "page", "precious"}
"""Fixtures that run steps, servers or a browser."""


def thorough_of(names: Iterable[str], quick: Container[str]) -> list[Any]:
    """Return names to test, of which only the quick ones are no thorough tests."""
    return [
        name if name in quick else pytest.param(name, marks=pytest.mark.thorough) for name in names
    ]


PROJECT = Path(__file__).resolve().parents[1]

# Tests run side by side, each with one thread: threads that wait for one another on busy cores are
# many times slower. Torch reads it when it is imported, here and in processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
# Most users' clocks don't show UTC, in which databases have their times; in Nepal it is 5:45 later.
os.environ["TZ"] = "NPT-5:45"
if hasattr(time, "tzset"):
    time.tzset()
# A process that a test starts need not compile all of the package again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# What is imported stays: to look through it for garbage takes seconds, see `pytest_runtestloop`.
gc.disable()
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ.pop("MLFLOW_RUN_ID", None)
# What a test names is trusted in this run of the tests only.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="pipeline-tests-")


def forget_trust(monkeypatch: pytest.MonkeyPatch, state: Path | None = None) -> None:
    """Forget what this process has trusted; with a new folder of state, what its user has, too."""
    if state is not None:
        monkeypatch.setenv("XDG_STATE_HOME", str(state))
    for name in ("_of_this_process", "_given", "_named", "_images"):
        monkeypatch.setattr(trust, name, set())


@dataclass(frozen=True)
class Finished:
    """What a step left behind."""

    code: int
    out: str
    err: str


Cli = Callable[..., Finished]


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return how many processes run the tests: one more than cores, since slow ones often wait."""
    cores = os.cpu_count() or 1
    return cores if config.option.markexpr == "not slow" else cores + 1


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the finished study together, at the beginning.

    Each process that runs one of them trains the study anew.
    """
    for item in items:
        # What runs steps or servers is slow, and what is thorough.
        fixtures = set(getattr(item, "fixturenames", ()))
        if fixtures & SLOW_FIXTURES or item.get_closest_marker("thorough"):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: "smoke" not in getattr(item, "fixturenames", ()))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Collect garbage from now on, but none of what has been imported."""
    gc.freeze()
    gc.enable()


@functools.cache
def do_not_wait_for_the_disk() -> None:
    """Let SQLite in this process go on before the disk has what it has written.

    A training writes some hundred times. That matters to who loses power, and to no test: what a
    killed process has written is there.
    """
    from sqlalchemy import Engine, event

    def set_pragma(connection: Any, record: object) -> None:
        if not isinstance(connection, sqlite3.Connection):
            return
        (patience,) = connection.execute("PRAGMA busy_timeout").fetchone()
        connection.execute("PRAGMA busy_timeout = 0")
        # A database may be locked, or be none: who opened it is told of that by what follows.
        with suppress(sqlite3.Error):
            connection.execute("PRAGMA synchronous = OFF")
        connection.execute(f"PRAGMA busy_timeout = {patience}")

    event.listen(Engine, "connect", set_pragma)


def use_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in `folder`, on its own store."""
    import mlflow

    do_not_wait_for_the_disk()
    monkeypatch.chdir(folder)
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a space in its path and a store of its own."""
    path = tmp_path / "my work"
    path.mkdir()
    use_folder(path, monkeypatch)
    return path


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send downloads to a port at which nobody listens, as if there were no network."""
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    # It keeps the proxies of its first request, in this test and, without this, in every one after
    # it.
    monkeypatch.setattr(urllib.request, "_opener", None)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None) -> Path:
    """The folder that weights are downloaded to, where nothing can be downloaded."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch"


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """Run a step in this process, which has torch and mlflow loaded already."""

    def run(*arguments: str) -> Finished:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Finished(code, captured.out, captured.err)

    yield run
    # What a store keeps for its address stays, 10,000 objects a test. Each training collects
    # garbage at its end, and would look through those of all tests before.
    gc.collect()
    gc.freeze()


def let_a_checkpoint_be_written() -> None:
    """Wait, so that the next step has another one to go on from.

    None is taken while one is written, and steps of tests are short.
    """
    time.sleep(0.3)


def interrupt(cli: Cli, *arguments: str, training: str = "", epoch: int = 1) -> None:
    """Run a step in this process, and stop it after an epoch as a signal would.

    The epoch is one of the named training, or of the first one.
    """
    from pipeline.report.console import TrainingProgress

    shown = TrainingProgress.on_epoch

    def on_epoch(
        progress: TrainingProgress, number: int, values: dict[str, float], is_best: bool
    ) -> None:
        shown(progress, number, values, is_best)
        if number < epoch:
            let_a_checkpoint_be_written()
        elif number == epoch and progress._title.startswith(training):
            raise Interrupted("stopped by SIGTERM")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(TrainingProgress, "on_epoch", on_epoch)
        assert cli(*arguments).code == 1


def start(arguments: list[str], cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """Start a real process of this environment's Python, its output in one pipe."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": str(PROJECT),
        "PYTHONUNBUFFERED": "1",
        **environment,
    }
    process = subprocess.Popen(
        arguments,
        cwd=cwd,
        env=variables,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    _started.append(process)
    return process


_started: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _pipes_are_closed() -> Iterator[None]:
    """Close the pipes of processes that a test has started and killed."""
    yield
    while _started:
        process = _started.pop()
        if process.poll() is not None and process.stdout is not None:
            process.stdout.close()


def run_unprivileged(
    arguments: list[str], cwd: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a process that permissions hold for, and wait for its end.

    They hold for it even if the tests run as root.
    """
    prefix: list[str] = []
    if os.name != "posix":
        pytest.skip("permissions of this system are others")
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip(
                "root may write everywhere, and there is no setpriv to take that from a process"
            )
        prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    variables = {
        **os.environ,
        "PYTHONPATH": str(PROJECT),
        "PYTHONDONTWRITEBYTECODE": "1",
        **environment,
    }
    return subprocess.run(
        [*prefix, *arguments],
        cwd=cwd,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def calibrated(workspace: Workspace, run_id: str, shares: pd.DataFrame) -> Any:
    """Return the probabilities that evaluating a run has kept as its served model gives them.

    Their shape is (images, classes).
    """
    temperature = workspace.client.get_run(run_id).data.metrics[names.TEMPERATURE]
    powers = shares.to_numpy() ** (1 / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """Read a process's output up to the line that contains `text`."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"the process ended without {text!r}:\n{seen}")


def write_digits(
    root: Path, per_class: int, size: int = 16, classes: tuple[int, ...] = (0, 1, 2)
) -> Path:
    """Write real handwritten digits as PNG files, one folder per class."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for label in classes:
        folder = root / f"digit {label}"
        folder.mkdir(parents=True)
        for number, index in enumerate(np.flatnonzero(digits.target == label)[:per_class]):
            pixels = (digits.images[index] * (255 / 16)).astype(np.uint8)
            Image.fromarray(pixels).resize((size, size)).save(folder / f"{number:03d}.png")
    return root


QUICK = """
experiment: quick
base:
  data: {source: "folder:SOURCE", image_size: 16, batch_size: 32}
  model: {name: small_cnn}
  optimizer: {lr: 3.0e-3}
  training: {epochs: 3, precision: fp32, memory_format: contiguous}
study: {evaluate: none}
"""


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of MLflow's with nothing in it.

    It is made once a test process: its migrations take two seconds.
    """
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


def place_store(empty_store: Path, folder: Path) -> str:
    """Put an empty store into a folder, and return its address."""
    folder.mkdir(exist_ok=True)
    file = folder / "mlflow.db"
    shutil.copy(empty_store, file)
    with closing(sqlite3.connect(file)) as database, database:
        database.execute(
            "UPDATE experiments SET artifact_location = ?", [str(folder / "mlruns" / "0")]
        )
    return f"sqlite:///{file}"


@pytest.fixture
def store(folder: Path, empty_store: Path) -> Path:
    """The current folder, with an empty store in it."""
    place_store(empty_store, folder)
    return folder


@pytest.fixture
def quick(folder: Path, store: Path) -> Path:
    """An experiment file that trains in a second.

    It is of a baseline network on 90 digits of three classes.
    """
    source = write_digits(folder / "digits", 30)
    file = folder / "quick.yaml"
    file.write_text(QUICK.replace("SOURCE", str(source)))
    return file


@pytest.fixture
def workspace(store: Path) -> Workspace:
    """The open store of the current folder, experiment ``quick``."""
    from pipeline.tracking.workspace import open_workspace

    return open_workspace("quick")


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which main of experiments/smoke.yaml has run, once a test process.

    Tests only add to it.
    """
    path = tmp_path_factory.mktemp("smoke")
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_folder(path, monkeypatch)
        assert (
            main(
                [
                    "main",
                    "--config",
                    str(PROJECT / "experiments" / "smoke.yaml"),
                    "--data.limit",
                    "900",
                ]
            )
            == 0
        )
    yield path


@pytest.fixture
def in_smoke(smoke: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The open store of the finished smoke study, its folder the current one."""
    from pipeline.tracking.workspace import open_workspace

    use_folder(smoke, monkeypatch)
    return open_workspace("smoke")
