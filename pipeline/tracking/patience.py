"""How long MLflow waits for a tracking server: it reads that from environment variables."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"


class _State:
    lock = threading.Lock()
    users: dict[str, int] = {}  # noqa: RUF012 - one state of the process
    is_over = False


def stop_retrying() -> None:
    """Have MLflow ask a server only once from now on, and wait two seconds for the answer.

    It is called when this process must end.
    """
    _State.is_over = True
    os.environ[_RETRIES] = "0"
    os.environ[_TIMEOUT] = "2"


@contextmanager
def few_retries() -> Iterator[None]:
    """Have MLflow ask a server that does not answer twice instead of eight times.

    What the user has set stays as it is.
    """
    with _set({_RETRIES: "1", _TIMEOUT: "10"}):
        yield


@contextmanager
def no_retries() -> Iterator[None]:
    """Have MLflow ask a server once: the caller asks again by itself.

    What the user has set stays as it is.
    """
    with _set({_RETRIES: "0"}):
        yield


@contextmanager
def _set(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables that the user has not set; the last of several threads removes them again."""
    with _State.lock:
        ours = [name for name in values if name in _State.users or name not in os.environ]
        for name in ours:
            _State.users[name] = _State.users.get(name, 0) + 1
            os.environ.setdefault(name, values[name])
    try:
        yield
    finally:
        with _State.lock:
            for name in ours:
                _State.users[name] -= 1
                if not _State.users[name]:
                    del _State.users[name]
                    if not _State.is_over:
                        os.environ.pop(name, None)
