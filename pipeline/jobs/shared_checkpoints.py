"""Resume checkpoints that a tracking server has too, for workers on other machines."""

from __future__ import annotations

import re
import threading
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.errors import PipelineError, TakenOver
from pipeline.files import link_or_copy
from pipeline.report.console import say_once
from pipeline.tracking import artifacts, names
from pipeline.tracking.patience import few_retries
from pipeline.tracking.run_log import RunLog
from pipeline.tracking.sending import sender_of
from pipeline.tracking.tracked_run import TrackedRun
from pipeline.tracking.workspace import STORE_ERRORS
from pipeline.training.checkpoint import (
    Checkpoints,
    State,
    checkpoint_name,
    is_whole_checkpoint,
    number_of_steps,
)

_FOLDER = "shared"
_STEPS = "[0-9]{1,9}"
"""Values of the tag `names.RESUME_STEPS` that are a number of steps: anybody may write it."""
_REST = 10.0
"""Times as long as an upload took that none follows it, so that networks and disks have air."""


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
        """Remove the uploaded checkpoint, be it of an earlier life: nobody needs it any more."""
        if not self._is_server_there():
            return
        if self._thread is not None:
            self._thread.join(_REST)
        with suppress(Exception), few_retries():
            artifacts.remove_artifact(self._run.workspace, self._run.id, names.RESUME)

    def _is_uploading(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _is_server_there(self) -> bool:
        return bool(self._run.id) and not sender_of(self._run.workspace).is_away

    def _begin_upload(self) -> None:
        if not self._is_server_there():
            return
        newest = self._files()[0]
        file = self._shared / Path(names.RESUME).name
        try:
            self._shared.mkdir(exist_ok=True)
            file.unlink(missing_ok=True)
            link_or_copy(newest, file)
        except OSError:
            # A disk that is full ends a training only if it cannot go on here either.
            return
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
                steps = {names.RESUME_STEPS: str(number_of_steps(Path(name)))}
                RunLog(self._run.workspace, self._run.id).tag(steps)
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
    """Download the checkpoint of a run that goes on, if it is newer than those of this machine.

    Args:
        run: The run, with which another machine may have gone on meanwhile.
        folder: Folder of the training's checkpoints.
    """
    tag = run.before.tags.get(names.RESUME_STEPS, "") if run.before else ""
    if not run.workspace.is_server or not re.fullmatch(_STEPS, tag):
        return
    steps = int(tag)
    if steps <= max(map(number_of_steps, folder.glob("resume-*.pt")), default=-1):
        return
    with suppress(*STORE_ERRORS, PipelineError, OSError), TemporaryDirectory(dir=folder) as place:
        file = artifacts.download_artifact(run.workspace, run.id, names.RESUME, Path(place))
        # Anything else would stand as the newest one for good.
        if is_whole_checkpoint(file):
            file.replace(folder / checkpoint_name(steps))
