"""A study's workers on the nodes of a Ray cluster.

Ray places them, and starts one again whose node has gone. What they train, and what is done about a
training whose worker has died, is in the study's database alone: see `pipeline.search.claims`.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline import signals
from pipeline.background import run_within
from pipeline.errors import UserError, first_line
from pipeline.experiment import Experiment
from pipeline.report.console import say
from pipeline.report.workers_view import WorkersView
from pipeline.search import ray_task
from pipeline.search.shared_state import LONGEST_AWAY
from pipeline.search.study_storage import Database
from pipeline.search.worker_place import WorkerPlace, Workers, worker_arguments
from pipeline.tracking.launcher_process import AWAY
from pipeline.tracking.workspace import Workspace

_RESTARTS = 10
"""How often Ray starts a worker again that has died: nodes may be taken away again and again."""
_CONNECT_SECONDS = 20.0
"""Seconds that a cluster has to answer."""
_PLACED_SECONDS = 30.0
"""Seconds after which it is said that the cluster has no room for a worker yet."""
_PASSED_ON = ("MLFLOW_", "PIPELINE_", "AWS_", "AZURE_", "GOOGLE_", "PYTHONPATH")
"""How environment variables begin that workers get from this process: servers and passwords."""


def need_cluster(experiment: Experiment, workspace: Workspace, database: Database) -> None:
    """Check that there is a Ray cluster which can run a study's workers.

    Args:
        experiment: The experiment, with ``study.launcher ray``.
        workspace: The open store.
        database: The study's database.

    Raises:
        UserError: Ray is not installed, no cluster answers, no node has what a worker needs, or a
            node cannot reach the study's database or the tracking store.
    """
    nodes = _find_nodes()
    study = experiment.study
    for field, kind, wanted in (("cpus", "CPU", study.cpus), ("gpus", "GPU", study.gpus)):
        most = max((node["Resources"].get(kind, 0) for node in nodes), default=0)
        if wanted > most:
            raise UserError(
                f"study.{field}: {wanted:g} given, and no node of the Ray cluster has more than "
                f"{most:g}"
            )
    if not _count_places(experiment, nodes):
        raise UserError(
            f"study.cpus, study.gpus: {study.cpus} and {study.gpus:g} given, "
            "and no node of the Ray cluster has both"
        )
    here = socket.gethostname()
    others = sorted({node["NodeManagerHostname"] for node in nodes} - {here})
    if not others:
        return
    if database.file is not None:
        raise UserError(
            f"study.launcher: the Ray cluster has other machines ({', '.join(others)}), which "
            f"cannot share {database.file}; give study.storage a database on a server "
            "(postgresql://…)"
        )
    if not workspace.is_server:
        raise UserError(
            f"study.launcher: the Ray cluster has other machines ({', '.join(others)}), which "
            f"cannot write to {workspace.uri}; name a tracking server in MLFLOW_TRACKING_URI"
        )


def count_places(experiment: Experiment) -> int:
    """Return how many workers find room in the Ray cluster if it has nothing else to do."""
    return _count_places(experiment, _find_nodes())


def _count_places(experiment: Experiment, nodes: list[dict[str, Any]]) -> int:
    study = experiment.study
    places = 0
    for node in nodes:
        found = math.floor(node["Resources"].get("CPU", 0) / study.cpus)
        if study.gpus:
            found = min(found, math.floor(node["Resources"].get("GPU", 0) / study.gpus))
        places += found
    return places


def _find_nodes() -> list[dict[str, Any]]:
    return [node for node in _connect().nodes() if node["Alive"]]


def _connect() -> Any:
    """Return the package `ray`, connected to the cluster.

    Raises:
        UserError: It is not installed, or no cluster answers.
    """
    try:
        import ray
    except ImportError:
        raise UserError(
            "study.launcher: ray needs the package ray: pip install -e '.[ray]'"
        ) from None
    if ray.is_initialized():
        return ray
    address = os.environ.get("RAY_ADDRESS") or "auto"
    nothing = (
        "study.launcher: no Ray cluster answers at RAY_ADDRESS "
        f"{address!r}; `ray start --head` begins one, and RAY_AUTH_MODE=token lets in where a "
        "token is asked for"
    )
    if address == "auto":
        nothing = (
            "study.launcher: there is no Ray cluster on this machine; `ray start --head` begins "
            "one, `ray start --address HOST:PORT` joins one, and RAY_ADDRESS names one"
        )
    with _keep_signal_handlers():
        try:
            _need_listening(address)
            # Ray waits for a minute, and then ends the process.
            if not run_within(_CONNECT_SECONDS, lambda: _init(ray, address)):
                raise UserError(nothing)
        except (ConnectionError, OSError):
            raise UserError(nothing) from None
        except (RuntimeError, ValueError, SystemExit) as error:
            raise UserError(f"{nothing} ({first_line(error)})") from None
    return ray


def _init(ray: Any, address: str) -> None:
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")


def _need_listening(address: str) -> None:
    """Check that something listens at an address of the form HOST:PORT.

    Raises:
        OSError: Nothing does.
    """
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()


@contextlib.contextmanager
def _keep_signal_handlers() -> Iterator[None]:
    """Put back the handlers of signals that connecting to Ray replaces."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class RayWorkers(Workers):
    """Workers of a study on the nodes of a Ray cluster."""

    def run(self) -> None:
        """Train until all workers have ended, since nothing is left for them.

        Raises:
            PipelineError: All have died, and there are trials to do.
        """
        ray = _connect()
        settings = self.experiment.study
        each = f"{settings.cpus} {'core' if settings.cpus == 1 else 'cores'}"
        if settings.gpus:
            each += f" and {settings.gpus:g} GPU"
        say(f"{self.count} workers on the Ray cluster, {each} each")
        queue = _make_queue(ray)
        running = {}
        for number in range(1, self.count + 1):
            running[self._start(ray, queue, number)] = number
        try:
            with WorkersView() as view:
                self._wait(ray, queue, running, view)
        finally:
            self._cancel(ray, running)
        self.need_nothing_left()

    def _start(self, ray: Any, queue: Any, number: int) -> Any:
        settings = self.experiment.study
        ray.cloudpickle.register_pickle_by_value(ray_task)
        task = ray.remote(ray_task.run_worker).options(
            name=f"{self.study} worker {number}",
            num_cpus=settings.cpus,
            num_gpus=settings.gpus,
            max_retries=_RESTARTS,
            retry_exceptions=True,
        )
        call = ray_task.WorkerCall(
            number,
            worker_arguments(self.experiment),
            self._environment(number),
            str(Path.cwd()),
            AWAY,
            LONGEST_AWAY,
        )
        return task.remote(call, queue)

    def _environment(self, number: int) -> dict[str, str]:
        found = {}
        for name, value in os.environ.items():
            if name.startswith(_PASSED_ON) and name != "MLFLOW_RUN_ID":
                found[name] = value
        found |= WorkerPlace(number, self.study).environment(self.workspace)
        found["OMP_NUM_THREADS"] = str(self.experiment.study.cpus)
        return found

    def _wait(self, ray: Any, queue: Any, running: dict[Any, int], view: WorkersView) -> None:
        """Print what workers say until all have ended; forget those that have."""
        started = time.monotonic()
        has_spoken = is_told = False
        while running:
            done, _ = ray.wait(list(running), num_returns=len(running), timeout=0.5)
            with contextlib.suppress(ray.exceptions.RayError):
                while not queue.empty():
                    view.show(*queue.get())
                    has_spoken = True
            for one in done:
                self._tell_end(ray, one, running.pop(one))
            is_late = time.monotonic() - started > _PLACED_SECONDS
            if is_late and not has_spoken and not is_told:
                say("the Ray cluster has no room for a worker yet, which is waited for")
                is_told = True

    def _tell_end(self, ray: Any, one: Any, number: int) -> None:
        try:
            reason = ray.get(one)
        except ray.exceptions.RayError as error:
            reason = first_line(getattr(error, "cause", None) or error)
        if reason:
            say(f"worker {number} has ended: {reason}")

    def _cancel(self, ray: Any, running: dict[Any, int]) -> None:
        for one in running:
            ray.cancel(one, force=False)
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=signals.seconds_left())


def _make_queue(ray: Any) -> Any:
    """Return a queue on this node for what workers print."""
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
