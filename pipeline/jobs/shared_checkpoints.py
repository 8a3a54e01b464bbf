"""Resume checkpoints that a tracking server has too, for workers on other machines."""

from __future__ import annotations

import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path

from pipeline.errors import PipelineError, TakenOver
from pipeline.files import link_or_copy
from pipeline.report.console import say_once
from pipeline.tracking import artifacts, names
from pipeline.tracking.patience import few_retries
from pipeline.tracking.tracked_run import TrackedRun
from pipeline.tracking.workspace import STORE_ERRORS
from pipeline.training.checkpoint import Checkpoints, State

_FOLDER = "shared"
_REST = 10.0
"""Times as long as an upload took that none follows it, so that networks and disks have air."""
_FIRST = "resume-000000000.pt"
"""Name of a downloaded checkpoint: every one that is made here is newer."""


class SharedCheckpoints(Checkpoints):
    """Resume checkpoints of a training whose newest one goes to its run's artifacts now and then.

    That is done beside the training, and not at all while the server is away: then a worker on
    another machine begins from an older one, or anew.

    Args:
        folder: Folder of the training's checkpoints.
        run: The run.
        seconds: Seconds between the beginnings of two uploads.
    """

    def __init__(self, folder: Path, run: TrackedRun, seconds: float) -> None:
        super().__init__(folder)
        self._shared = folder / _FOLDER
        self._run = run
        self._seconds = seconds
        self._due = time.monotonic() + seconds
        self._uploaded = ""
        self._thread: threading.Thread | None = None

    def save(self, state: State, number: int, best: Path | None = None) -> None:
        super().save(state, number, best)
        if time.monotonic() >= self._due and not self._is_uploading():
            self._begin_upload()

    def settle(self, seconds: float) -> None:
        """Have the newest checkpoint uploaded, and wait for that, but not longer than `seconds`."""
        ends = time.monotonic() + seconds
        for _ in range(2):
            if self._thread is not None:
                self._thread.join(max(0.0, ends - time.monotonic()))
            newest = self._files()[:1]
            if self._is_uploading() or not newest or newest[0].name == self._uploaded:
                return
            self._begin_upload()

    def remove(self) -> None:
        """Remove the uploaded checkpoint, which nobody needs any more."""
        if self._thread is None:
            return
        self._thread.join(_REST)
        with suppress(Exception), few_retries():
            artifacts.remove_artifact(self._run.workspace, self._run.id, names.RESUME)

    def _is_uploading(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _begin_upload(self) -> None:
        newest = self._files()[0]
        self._shared.mkdir(exist_ok=True)
        file = self._shared / Path(names.RESUME).name
        file.unlink(missing_ok=True)
        link_or_copy(newest, file)
        self._thread = threading.Thread(
            target=self._upload, args=(file, newest.name), name="shared checkpoint", daemon=True
        )
        self._thread.start()

    def _upload(self, file: Path, name: str) -> None:
        started = time.monotonic()
        try:
            self._run.guard()
            with few_retries():
                artifacts.upload_artifact(self._run.workspace, self._run.id, file, names.RESUME)
            self._uploaded = name
        except TakenOver:
            # The other worker uploads its own.
            pass
        except (*STORE_ERRORS, OSError, PipelineError):
            say_once("  checkpoints cannot be uploaded: on another machine trainings begin anew")
        finally:
            file.unlink(missing_ok=True)
            took = time.monotonic() - started
            self._due = time.monotonic() + max(self._seconds, _REST * took)


def fetch_checkpoint(run: TrackedRun, folder: Path) -> None:
    """Download the checkpoint of a run that goes on, if this machine has none.

    Args:
        run: The run, which another machine has begun.
        folder: Folder of the training's checkpoints.
    """
    if not run.workspace.is_server or list(folder.glob("resume-*.pt")):
        return
    with suppress(*STORE_ERRORS, PipelineError):
        if not artifacts.has_artifact(run.workspace, run.id, names.RESUME):
            return
        file = artifacts.download_artifact(run.workspace, run.id, names.RESUME, folder)
        shutil.move(file, folder / _FIRST)
        file.parent.rmdir()
