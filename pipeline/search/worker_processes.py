"""Several processes of this machine that train the trials of one study at the same time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import torch

from pipeline import signals
from pipeline.errors import UserError
from pipeline.experiment import Experiment
from pipeline.report.console import say
from pipeline.report.workers_view import WorkersView
from pipeline.search.shared_state import LONGEST_AWAY
from pipeline.search.study_storage import Database
from pipeline.search.worker_place import WorkerPlace, Workers, worker_arguments
from pipeline.tracking.launcher_process import AWAY
from pipeline.tracking.workspace import Workspace

_RESTARTS = 2
"""How often another process takes the place of one that has died."""
_PAUSE = 2.0
"""Seconds until it starts."""
_AWAY_PAUSE = 10.0
"""Seconds between these starts."""
_NETWORK_FILE_SYSTEMS = (
    "nfs",
    "cifs",
    "smb",
    "9p",
    "afs",
    "beegfs",
    "ceph",
    "fuse.sshfs",
    "fuse.gluster",
    "fuse.ceph",
    "gpfs",
    "lustre",
    "ncpfs",
    "orangefs",
)
"""How the names of file systems begin whose locks do not hold, or not always."""


def need_sharable(database: Database, experiment: Experiment) -> None:
    """Check that several workers may share a study's database.

    Raises:
        UserError: They may not.
    """
    workers = experiment.study.workers
    if workers == 1:
        return
    if database.file is None:
        return
    kinds = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
    kind = find_file_system(database.file, kinds)
    if kind.startswith(_NETWORK_FILE_SYSTEMS):
        raise UserError(
            f"study.workers: {workers} given, and {database.file} is on a network file system "
            f"({kind}), where SQLite's locks do not hold; give study.storage a local file, or a "
            "database on a server (postgresql://…)"
        )


def find_file_system(file: Path, kinds: Mapping[str, str]) -> str:
    """Return the kind of file system that holds a file, or an empty text if it is not known.

    Args:
        file: The file, which need not exist.
        kinds: Kind of each file system by the folder where it is mounted.
    """
    place = file.resolve()
    for folder in (place, *place.parents):
        if str(folder) in kinds:
            return kinds[str(folder)]
    return ""


class WorkerProcesses(Workers):
    """Processes of this machine that train a study's trials."""

    def run(self) -> None:
        """Train until all processes have ended, since nothing is left for them.

        Raises:
            PipelineError: All have died, and there are trials to do.
        """
        say(f"{self.count} workers, {_describe_share(self.experiment, self.count)}")
        with WorkersView() as view:
            workers = [self._worker(number, view) for number in range(1, self.count + 1)]
            try:
                for worker in workers:
                    worker.start()
                while [worker for worker in workers if worker.goes_on()]:
                    time.sleep(0.2)
            finally:
                for worker in workers:
                    worker.ask_to_end()
                for worker in workers:
                    worker.end()
        self.need_nothing_left()

    def _worker(self, number: int, view: WorkersView) -> _Worker:
        place = WorkerPlace(number, self.study)
        environment = _environment(self.experiment, self.workspace, place, self.count)
        return _Worker(number, worker_arguments(self.experiment), environment, view)


def num_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def usable_gpus(experiment: Experiment) -> list[str]:
    """Return the names of the GPUs that workers may have for themselves, as CUDA counts them."""
    if experiment.base.training.device not in ("auto", "cuda"):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    named = visible.split(",") if visible else []
    count = torch.cuda.device_count()
    return [*named, *map(str, range(len(named), count))][:count]


def _describe_share(experiment: Experiment, count: int) -> str:
    gpus = usable_gpus(experiment)
    if gpus:
        return f"on {len(gpus)} GPUs" if len(gpus) > 1 else "on one GPU"
    share = max(1, num_cores() // count)
    return f"{share} {'core' if share == 1 else 'cores'} each"


class _Worker:
    """One process, and those that take its place.

    Args:
        number: Its number.
        arguments: Arguments of its Python.
        environment: Its environment variables.
        view: Shows what it prints.
    """

    def __init__(
        self,
        number: int,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        view: WorkersView,
    ) -> None:
        self._number = number
        self._command = [sys.executable, *arguments]
        self._environment = environment
        self._view = view
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._starts = 0
        self._due = 0.0
        self._away_since = 0.0
        self._reached_work = False

    def start(self) -> None:
        """Start the process."""
        self._starts += 1
        self._reached_work = False
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._show, args=(self._process,), daemon=True)
        self._reader.start()

    def _show(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self._reached_work |= line.startswith("trial ")
                self._view.show(self._number, line.rstrip())

    def goes_on(self) -> bool:
        """Whether the process, or one that takes its place, still works; start that one if due."""
        if self._due:
            if time.monotonic() >= self._due:
                self._due = 0.0
                self.start()
            return True
        assert self._process is not None and self._reader is not None
        code = self._process.poll()
        if code is None:
            return True
        self._reader.join()
        if code == AWAY and self._waits_for_store():
            return True
        if code in (0, 2) or self._starts > _RESTARTS:
            return False
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else "has died"
        say(f"worker {self._number} {how}; another process takes its place")
        self._due = time.monotonic() + _PAUSE
        return True

    def _waits_for_store(self) -> bool:
        """Start a process later whose store was away; return whether it still may come back."""
        now = time.monotonic()
        if self._reached_work:
            self._away_since = 0.0
        self._away_since = self._away_since or now
        if now - self._away_since > LONGEST_AWAY:
            return False
        self._starts -= 1
        self._due = now + _AWAY_PAUSE
        return True

    def ask_to_end(self) -> None:
        """Ask the process to end, if it still works."""
        self._due = 0.0
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def end(self) -> None:
        """Wait for the process to end, and kill it if it does not in time."""
        if self._process is None or self._reader is None:
            return
        try:
            self._process.wait(signals.seconds_left())
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(1.0)


def _environment(
    experiment: Experiment, workspace: Workspace, place: WorkerPlace, count: int
) -> dict[str, str]:
    """Return the environment variables of a worker."""
    found = {**os.environ, **place.environment(workspace)}
    # The run that `mlflow run` has made is that of the process which starts the workers.
    found.pop("MLFLOW_RUN_ID", None)
    # Threads of several processes on the same cores wait for one another: two trainings of two
    # threads each on two cores take up to ten times as long.
    found.setdefault("OMP_NUM_THREADS", str(max(1, num_cores() // count)))
    gpus = usable_gpus(experiment)
    if gpus:
        found["CUDA_VISIBLE_DEVICES"] = gpus[(place.number - 1) % len(gpus)]
    return found
