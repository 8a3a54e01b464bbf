"""What has started this process, such as ``mlflow run`` or a study: its folder, and its end."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from urllib.parse import unquote

WORKER = "PIPELINE_WORKER"
"""Environment variable that a study's first process sets for its workers."""
AWAY = 75
"""Exit code of a worker whose store or database is away (the C library's EX_TEMPFAIL).

The study's first process starts it again later.
"""


def enter_callers_folder() -> None:
    """Enter the folder in which the user called, so that relative paths are meant from there.

    ``mlflow run`` starts this process in the project, or in a temporary copy of it. On Linux the
    launcher's current folder can be read. On other systems the address of a local database tells
    where ``mlflow run`` was called.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    try:
        os.chdir(Path(f"/proc/{os.getppid()}/cwd").resolve(strict=True))
    except OSError:
        if uri.startswith("sqlite:////"):
            os.chdir(Path(unquote(uri.removeprefix("sqlite:///"))).parent)


def stop_with_parent() -> None:
    """Stop this process when its parent ends, since nobody would wait for the result."""
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
