"""Run a step of the pipeline in several processes, as torchrun does."""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pipeline.config import Training
from pipeline.errors import Interrupted, ManyProcesses, ProcessKilled, UserError
from pipeline.training.distributed import is_one_of_several

_PROJECT = Path(__file__).resolve().parents[2]
_ENDING = 10
"""Seconds that processes have to end their runs before they are killed; they need about one."""


def need_processes(training: Training) -> None:
    """Have the step run again by several processes if ``training.processes`` asks for them.

    If this process is one of them, nothing is done.

    Raises:
        ManyProcesses: Several processes are needed; the entry point catches it.
        UserError: There are fewer GPUs than processes, or one GPU is named.
    """
    count = training.processes
    device = training.device
    if count == 1 or is_one_of_several():
        return
    if device.startswith("cuda:"):
        raise UserError(
            f"training.device: {device!r} is one GPU; with training.processes {count} give cuda, "
            "and CUDA_VISIBLE_DEVICES to choose"
        )
    if device in ("auto", "cuda") and 0 < torch.cuda.device_count() < count:
        raise UserError(
            f"training.processes: this machine has {torch.cuda.device_count()} GPUs, "
            f"and each process needs its own; got {count}"
        )
    raise ManyProcesses(count)


def launch_processes(count: int, arguments: Sequence[str]) -> int:
    """Run ``python -m pipeline ARGUMENTS`` in processes of one group on this machine.

    When one of them dies, the others are ended.

    Args:
        count: Number of processes.
        arguments: Step and options.

    Returns:
        The exit code.

    Raises:
        Interrupted: A signal arrived; the processes have ended.
        ProcessKilled: One was killed; the processes have ended.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    _set_environment(count)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        # The machine's own name need not resolve.
        local_addr="127.0.0.1",
        max_restarts=0,
        shutdown_timeout=_ENDING,
    )
    try:
        elastic_launch(config, sys.executable)("-P", "-m", "pipeline", *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        first = error.failures.get(0)
        if first is not None and first.exitcode < 0:
            raise ProcessKilled(_describe_kill(0, first, count), first.pid) from None
        if failure.exitcode < 0:
            raise ProcessKilled(_describe_kill(rank, failure, count), 0) from None
        return max(failure.exitcode, 1)
    except SignalException as stopped:
        raise Interrupted(f"stopped by {stopped.sigval.name}") from None
    return 0


def _set_environment(count: int) -> None:
    """Set the environment variables that the processes inherit from this one."""
    # The processes start in the user's folder, and must import this package even if something there
    # is called pipeline. So -P keeps that folder out of the search path, and this path is in it.
    search_path = [str(_PROJECT)]
    given = os.environ.get("PYTHONPATH")
    if given:
        search_path.append(given)
    os.environ["PYTHONPATH"] = os.pathsep.join(search_path)
    # Each would take all cores for itself.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))


def _describe_kill(rank: int, failure: ProcessFailure, count: int) -> str:
    text = f"process {rank} (of 0 to {count - 1}) was killed by {failure.signal_name()}"
    if failure.signal_name() == "SIGKILL":
        text += "; the memory of this machine may not suffice"
    return text
