"""Run a step in several processes, as torchrun does."""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pipeline.errors import Interrupted, ManyProcesses
from pipeline.training.distributed import is_group

_PROJECT = Path(__file__).resolve().parents[2]
_ENDING = 5
"""Seconds that processes have for ending their runs."""


def need_processes(count: int) -> None:
    """Have the step run again by several processes, unless this is one of them.

    Raises:
        ManyProcesses: Which the entry point catches.
    """
    if count > 1 and not is_group():
        raise ManyProcesses(count)


def launch(count: int, arguments: Sequence[str]) -> int:
    """Run ``python -m pipeline ARGUMENTS`` in processes of one group on this machine; return the exit code.

    When one of them dies, the others are ended.

    Args:
        count: Of processes.
        arguments: Step and options.

    Raises:
        Interrupted: A signal arrived; the processes have ended.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    # They may start in another folder than this one, which was found there.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(_PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
    # Each would take all cores for itself.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=0,
        shutdown_timeout=_ENDING,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "pipeline", *arguments)
    except ChildFailedError as error:
        return max(error.get_first_failure()[1].exitcode, 1)
    except SignalException as stopped:
        raise Interrupted(f"stopped by {stopped.sigval.name}") from None
    return 0
