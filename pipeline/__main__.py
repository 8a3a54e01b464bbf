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
from types import FrameType
from typing import NoReturn
from urllib.parse import unquote

from pipeline.errors import Interrupted, PipelineError, UserError, unknown_name

STEPS = {
    "main": "prepare, tune, evaluate, summary and register in one go",
    "prepare": "read, check, split and decode the images",
    "train": "train one configuration",
    "tune": "train a list of configurations and search a space",
    "evaluate": "score the best run on the test split",
    "summary": "compare the runs of a study",
    "register": "make the best evaluated run the champion of a registered model",
    "predict": "classify unlabelled images with a registered model",
    "init": "write an experiment file for your own images",
}


def main(arguments: Sequence[str]) -> int:
    """Run one step; return the exit code."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if arguments else 2
    step, rest = arguments[0], arguments[1:]
    _stop_on_signals()
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
    except PipelineError as error:
        print(f"{'stopped' if isinstance(error, Interrupted) else 'error'}: {error}", file=sys.stderr)
        _end_launched_run(str(error), interrupted=isinstance(error, Interrupted))
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


def _enter_callers_folder() -> None:
    """Make relative paths those of the caller: ``mlflow run`` starts us in the project, or in a temporary copy of it.

    Where it was called is known from the local database, which MLflow puts there.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if os.environ.get("MLFLOW_RUN_ID") and uri.startswith("sqlite:////"):
        os.chdir(Path(unquote(uri.removeprefix("sqlite:///"))).parent)


def _stop_on_signals() -> None:
    """Turn SIGINT and SIGTERM into `Interrupted`, and the death of ``mlflow run`` into SIGTERM."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        # mlflow run passes Ctrl-C on as a second signal, which must not break the ending of the run.
        for other in (signal.SIGINT, signal.SIGTERM):
            signal.signal(other, signal.SIG_IGN)
        raise Interrupted(f"stopped by {signal.Signals(number).name}")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    if os.environ.get("MLFLOW_RUN_ID"):
        threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
