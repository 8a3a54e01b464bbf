"""``python -m pipeline STEP --name value``: exit code 0 done, 2 wrong input, 1 anything else."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from pipeline.errors import Interrupted, PipelineError, UserError, unknown_name
from pipeline.signals import raise_on_signals

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


def main(arguments: Sequence[str]) -> int:
    """Run one step; return the exit code."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if arguments else 2
    step, rest = arguments[0], arguments[1:]
    raise_on_signals()
    if os.environ.get("MLFLOW_RUN_ID"):
        threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()
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
        module.run(own, overrides)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        _end_launched_run(str(error))
        return 2
    except (PipelineError, Interrupted) as error:
        stopped = isinstance(error, Interrupted)
        print(f"{'stopped' if stopped else 'error'}: {error}", file=sys.stderr)
        _end_launched_run(str(error), stopped)
        return 1
    return 0


def _overview() -> str:
    width = max(map(len, STEPS))
    lines = "\n".join(f"  {step:<{width}}  {text}" for step, text in STEPS.items())
    usage, hint = "usage: python -m pipeline STEP [--name value ...]", "python -m pipeline STEP --help lists the options of a step."
    return f"{usage}\n\nsteps:\n{lines}\n\n{hint}"


def _end_launched_run(reason: str, interrupted: bool = False) -> None:
    if os.environ.get("MLFLOW_RUN_ID"):
        from pipeline.tracking.names import FAILED, INTERRUPTED
        from pipeline.tracking.store import end_launched_run

        end_launched_run(reason, INTERRUPTED if interrupted else FAILED)
        if interrupted:
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
    """Stop when ``mlflow run`` has died: nobody would wait for the result."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
