"""``python -m pipeline STEP --name value``: exit code 0 done, 2 wrong input, 1 anything else."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote

from pipeline.errors import Interrupted, ManyProcesses, PipelineError, ProcessKilled, Unwritable, UserError, unknown_name
from pipeline.files import out_of_room
from pipeline.signals import ignore_signals, raise_on_signals

STEPS = {
    "main": "prepare, tune, evaluate, summary and register in one go",
    "prepare": "read, check, split and decode the images",
    "train": "train one configuration",
    "tune": "train a list of configurations and search a space",
    "evaluate": "score the best run on the test split",
    "summary": "compare the runs of a study",
    "register": "make the best evaluated run the champion of a registered model",
    "predict": "classify unlabelled images with a registered model",
    "reconcile": "end runs that a kill or a power cut has left RUNNING",
    "init": "write an experiment file for your own images",
}
TRAINING_STEPS = ("main", "train", "tune")


def main(arguments: Sequence[str]) -> int:
    """Run one step; return the exit code."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if arguments else 2
    step, rest = arguments[0], arguments[1:]
    raise_on_signals()
    if os.environ.get("MLFLOW_RUN_ID") or _is_in_group():
        threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()
    if os.environ.get("MLFLOW_RUN_ID") and not _is_in_group():
        _enter_callers_folder()
    try:
        if step not in STEPS:
            raise unknown_name("step", step, STEPS)
        module = importlib.import_module(f"pipeline.steps.{step}")
        from pipeline.steps.options import parse_options, render_help

        if "--help" in rest or "-h" in rest:
            print(render_help(step, module.OPTIONS))
            return 0
        own, overrides = parse_options(module.OPTIONS, rest)
        with _full_disk_told():
            _run(step, module, own, overrides)
    except ManyProcesses as wanted:
        return _launch(wanted.count, arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        _end_launched_run(str(error))
        return 2
    except (PipelineError, Interrupted) as error:
        stopped = isinstance(error, Interrupted)
        if not (stopped and _is_helper()):
            print(f"{'stopped' if stopped else 'error'}: {error}", file=sys.stderr)
        _end_launched_run(str(error), stopped)
        return 1
    return 0


def _run(step: str, module: ModuleType, own: Any, overrides: Any) -> None:
    """Run a step; where torchrun has started several processes, the first one does it, and the others help in its trainings."""
    if not _is_in_group():
        module.run(own, overrides)
        return
    if step not in TRAINING_STEPS:
        raise UserError(f"{step} runs in one process; torchrun is for {', '.join(TRAINING_STEPS)}")
    from pipeline.jobs.together import dismiss_helpers, help_out
    from pipeline.training.distributed import joined

    if _is_helper():
        # One process speaks for all; an error is told by whom it meets.
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            help_out()
        return
    # At once: a process that waits for others to join cannot be stopped by a signal.
    joined()
    module.run(own, overrides)
    dismiss_helpers()


@contextmanager
def _full_disk_told() -> Iterator[None]:
    """Tell in one line that the disk is full, or that a file may not be read or written: a traceback would say no more."""
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, PermissionError) else out_of_room(error)
        if not reason:
            raise
        raise Unwritable(reason) from error


def _launch(count: int, arguments: Sequence[str]) -> int:
    from pipeline.training.launch import launch

    try:
        return launch(count, arguments)
    except Interrupted as stopped:
        print(f"stopped: {stopped}", file=sys.stderr)
    except ProcessKilled as killed:
        print(f"error: {killed}", file=sys.stderr)
        if killed.process_id:
            from pipeline.jobs.resume import reconcile
            from pipeline.tracking.store import StoreError, open_workspace

            with suppress(UserError, StoreError):
                reconcile(open_workspace(""), process_id=killed.process_id)
    _restore_killed_later()
    return 1


def _is_in_group() -> bool:
    # As pipeline.training.distributed, which takes seconds to import.
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def _is_helper() -> bool:
    return _is_in_group() and os.environ["RANK"] != "0"


def _overview() -> str:
    width = max(map(len, STEPS))
    lines = "\n".join(f"  {step:<{width}}  {text}" for step, text in STEPS.items())
    usage, hint = "usage: python -m pipeline STEP [--name value ...]", "python -m pipeline STEP --help lists the options of a step."
    return f"{usage}\n\nsteps:\n{lines}\n\n{hint}"


def _end_launched_run(reason: str, interrupted: bool = False) -> None:
    if os.environ.get("MLFLOW_RUN_ID") and not _is_helper():
        from pipeline.tracking.names import FAILED, INTERRUPTED
        from pipeline.tracking.store import end_launched_run

        end_launched_run(reason, INTERRUPTED if interrupted else FAILED)
        if interrupted and not _is_in_group():
            _restore_killed_later()


def _restore_killed_later() -> None:
    """Keep ``mlflow run``, our parent process, from overwriting the state of its run."""
    if os.environ.get("MLFLOW_RUN_ID"):
        from pipeline.tracking.aftermath import restore_killed_later

        restore_killed_later(os.environ["MLFLOW_RUN_ID"])


def _enter_callers_folder() -> None:
    """Make relative paths those of the caller: ``mlflow run`` starts us in the project, or in a temporary copy of it.

    On Linux the launcher's current folder can be read; elsewhere a local database tells where it was called.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    try:
        launcher = Path(f"/proc/{os.getppid()}/cwd").resolve(strict=True)
    except OSError:
        launcher = Path.cwd()
    if launcher == Path.cwd() and uri.startswith("sqlite:////"):
        launcher = Path(unquote(uri.removeprefix("sqlite:///"))).parent
    os.chdir(launcher)


def _watch_parent(parent: int) -> None:
    """Stop when ``mlflow run``, or torchrun, has died: nobody would wait for the result."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    # Imports make a million objects that stay; looking through them again and again takes a second.
    gc.set_threshold(10_000)
    code = main(sys.argv[1:])
    ignore_signals()
    sys.exit(code)
