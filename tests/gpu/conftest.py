"""What the tests on a GPU share.

They need only the engine, and not what the project's other tests share.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import FrameType, ModuleType

import pytest
import torch

from pipeline.data.prepare_data import prepare
from pipeline.data.prepared import Prepared
from tests.gpu.engine import DEVICE, ON_GPU, configuration_of

_SECONDS = 60
"""Longest time for one test: it takes a few seconds, and must not use up those of the others."""
_HERE = Path(__file__).parent
_numbers: list[str] = []


class _NotNeeded(MetaPathFinder):
    """Refuses to import what the engine must do without."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] in ("mlflow", "optuna", "pydantic_settings"):
            raise ImportError(f"{fullname} must not be needed for a training")
        return None


if os.environ.get("GPU_KIT"):
    sys.meta_path.insert(0, _NotNeeded())

Tell = Callable[[str], None]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip all where there is no CUDA device, unless the kit itself is tried on the processor."""
    for item in items:
        if _HERE not in item.path.parents:
            continue
        if ON_GPU and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        if config.pluginmanager.hasplugin("timeout"):
            item.add_marker(pytest.mark.timeout(_SECONDS))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the numbers that the tests have told."""
    for line in _numbers:
        terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def limit(request: pytest.FixtureRequest) -> Iterator[None]:
    """End a test that takes too long, where no plugin does."""
    if request.config.pluginmanager.hasplugin("timeout"):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"the test has taken {_SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Tell:
    """Return a function that puts a line with numbers into the report."""
    return lambda text: _numbers.append(f"{request.node.name}: {text}")


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device under test."""
    return torch.device(DEVICE)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Real handwritten digits, prepared."""
    return prepare(configuration_of().data, tmp_path_factory.mktemp("prepared"))
