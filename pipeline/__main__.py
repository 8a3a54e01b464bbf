"""The command ``python -m pipeline STEP --name value``.

Its exit code is 0 if the step is done, 2 if the input is wrong, and 1 for anything else.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from pipeline.errors import (
    Interrupted,
    ManyProcesses,
    PipelineError,
    ProcessKilled,
    StoreAway,
    Unwritable,
    UserError,
    unknown_name,
)
from pipeline.files import out_of_room
from pipeline.safe_text import hide_passwords
from pipeline.signals import (
    has_arrived,
    ignore_signals,
    limit_endings,
    raise_on_signals,
    seconds_left,
)
from pipeline.tracking import launcher_process, launcher_run, launcher_status

STEPS = {
    "main": "prepare, tune, evaluate, summary and register in one go",
    "prepare": "read, check, split and decode the images",
    "train": "train one configuration",
    "tune": "train a list of configurations and search a space",
    "evaluate": "score the best run on the test split",
    "summary": "compare the runs of a study",
    "register": "make the best evaluated run the champion of a registered model",
    "predict": "classify unlabelled images with a registered model",
    "reconcile": "send what a server has missed, and end runs that a kill has left RUNNING",
    "init": "write an experiment file for your own images",
}
TRAINING_STEPS = ("main", "train", "tune")


_GO_ON = ("main", "tune")
"""Steps that go on where they stopped if they are called again."""


def main(arguments: Sequence[str]) -> int:
    """Run one step; return the exit code."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        _show(_overview())
        return 0 if arguments else 2
    raise_on_signals()
    try:
        _start(arguments[0], arguments[1:])
    except ManyProcesses as wanted:
        return _launch(wanted.count, arguments)
    except Interrupted as stopped:
        if not _is_helper():
            further = _how_to_go_on(arguments[0])
            print(f"stopped: {stopped}{further}", file=sys.stderr)
        _stop_sending()
        _end_launched_run(str(stopped), interrupted=True)
        return 1
    except Exception as error:
        told = _explain(error)
        if told is None:
            _stop_sending()
            raise
        print(f"error: {told}", file=sys.stderr)
        _stop_sending(str(told))
        _end_launched_run(str(told), interrupted=isinstance(told, StoreAway))
        return _exit_code(told)
    return 0


def _start(step: str, arguments: Sequence[str]) -> None:
    """Parse the options of a step and run it, or show its help."""
    if step not in STEPS:
        raise unknown_name("step", step, STEPS)
    _isolate_children()
    if not _is_helper():
        launcher_run.adopt_launched_run(step)
    if launcher_run.launched_run_id() or _is_in_group() or launcher_process.WORKER in os.environ:
        launcher_process.stop_with_parent()
    if launcher_run.launched_run_id() and not _is_in_group():
        launcher_process.enter_callers_folder()
    module = importlib.import_module(f"pipeline.steps.{step}")
    from pipeline.steps.options import parse_options, render_help

    if "--help" in arguments or "-h" in arguments:
        _show(render_help(step, module.OPTIONS))
        return
    own, overrides = parse_options(module.OPTIONS, arguments)
    _run(step, module, own, overrides)


def _show(text: str) -> None:
    """Print a text, even if nobody reads any more, as in ``--help | head``."""
    try:
        print(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python would flush once more at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _explain(error: Exception) -> PipelineError | None:
    """Return what an error means to a person; None for an error that nobody expected."""
    if isinstance(error, PipelineError):
        return error
    return _explain_disk(error) or _explain_store(error)


def _explain_disk(error: Exception) -> PipelineError | None:
    """Explain that the disk is full, or that a file or a home folder cannot be used."""
    if isinstance(error, RuntimeError) and str(error).startswith("Could not determine home"):
        return UserError("a path begins with ~ and a name that is no user of this machine")
    if isinstance(error, PermissionError) and error.filename:
        return Unwritable(f"{error.filename}: {error.strerror}")
    reason = out_of_room(error)
    if not reason:
        return None
    return Unwritable(f"nothing can be written any more: {reason}; make room and start again")


def _explain_store(error: Exception) -> PipelineError | None:
    """Explain an error of MLflow or its server."""
    if "mlflow" not in sys.modules:
        return None
    from pipeline.tracking.workspace import STORE_ERRORS, explain_store_error

    return explain_store_error(error) if isinstance(error, STORE_ERRORS) else None


def _run(step: str, module: ModuleType, own: Any, overrides: Any) -> None:
    """Run a step.

    If torchrun has started several processes, the first one runs it, and the others help in its
    trainings.
    """
    if not _is_in_group():
        module.run(own, overrides)
        _finish_sending()
        return
    if step not in TRAINING_STEPS:
        raise UserError(f"{step} runs in one process; torchrun is for {', '.join(TRAINING_STEPS)}")
    from pipeline.jobs.helper_processes import dismiss_helpers, help_out
    from pipeline.training.distributed import join_group

    if _is_helper():
        # The first process speaks for all. An error is told by the process that meets it.
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            help_out()
        return
    # The group is joined at once: a signal cannot stop a process that waits for others to join.
    join_group()
    module.run(own, overrides)
    dismiss_helpers()
    _finish_sending()


def _finish_sending() -> None:
    """Wait until a tracking server has all that this process has logged."""
    if "pipeline.tracking.sending" in sys.modules:
        from pipeline.tracking.sending import finish_sending

        finish_sending()
        _stop_sending()


def _stop_sending(told: str = "") -> None:
    """Say what to do if a tracking server has not taken all that this process has logged.

    Args:
        told: What the user has been told already.
    """
    if "pipeline.tracking.sending" not in sys.modules:
        return
    from pipeline.tracking.sender import HOW
    from pipeline.tracking.sending import stop_sending

    if not stop_sending(max(seconds_left() - 1.0, 0.1)) and HOW not in told:
        print(f"not all that was logged is sent; {HOW} later", file=sys.stderr)


def _launch(count: int, arguments: Sequence[str]) -> int:
    from pipeline.training.torchrun import launch_processes

    try:
        return launch_processes(count, arguments)
    except Interrupted as stopped:
        print(f"stopped: {stopped}", file=sys.stderr)
    except ProcessKilled as killed:
        print(f"error: {killed}", file=sys.stderr)
        if killed.process_id:
            from pipeline.jobs.resume import reconcile
            from pipeline.tracking.workspace import STORE_ERRORS, open_workspace

            with suppress(PipelineError, *STORE_ERRORS):
                reconcile(open_workspace(""), process_id=killed.process_id)
    _restore_killed_later()
    return 1


def _exit_code(error: PipelineError) -> int:
    """Return the exit code for an error; a worker tells its study's first process of a store."""
    if isinstance(error, UserError):
        return 2
    return (
        launcher_process.AWAY
        if isinstance(error, StoreAway) and launcher_process.WORKER in os.environ
        else 1
    )


def _how_to_go_on(step: str) -> str:
    """Return what to tell about a step that was interrupted."""
    if step not in _GO_ON or launcher_process.WORKER in os.environ:
        return ""
    return (
        "; the same command goes on with it (tune --stop true, from elsewhere, ends a study "
        "without breaking off its trials)"
    )


def _is_in_group() -> bool:
    # The rule of pipeline.training.distributed, which takes seconds to import.
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def _is_helper() -> bool:
    return _is_in_group() and os.environ["RANK"] != "0"


def _overview() -> str:
    width = max(map(len, STEPS))
    lines = "\n".join(f"  {step:<{width}}  {text}" for step, text in STEPS.items())
    usage = "usage: python -m pipeline STEP [--name value ...]"
    hint = "python -m pipeline STEP --help lists the options of a step."
    return f"{usage}\n\nsteps:\n{lines}\n\n{hint}"


def _end_launched_run(reason: str, interrupted: bool = False) -> None:
    if not launcher_run.launched_run_id():
        return
    from pipeline.tracking.names import FAILED, INTERRUPTED

    # A store that is away does not take this either; `reconcile` ends the run later.
    with suppress(Exception):
        launcher_run.end_launched_run(reason, INTERRUPTED if interrupted else FAILED)
    if interrupted and not _is_in_group():
        _restore_killed_later()


def _restore_killed_later() -> None:
    run_id = launcher_run.launched_run_id()
    if run_id:
        launcher_status.restore_killed_later(run_id)


def _isolate_children() -> None:
    """Let every process that this one starts import this package, whatever the current folder has.

    Python would look in the current folder first, and the processes of multiprocessing start in
    that way.
    """
    os.environ["PYTHONSAFEPATH"] = "1"
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    project = str(Path(__file__).resolve().parents[1])
    others = [path for path in paths if path not in ("", project)]
    os.environ["PYTHONPATH"] = os.pathsep.join([project, *others])


def _tell_of_bug(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print the traceback of an error that nobody expected, without passwords of addresses."""
    text = "".join(traceback.format_exception(kind, error, trace))
    print(hide_passwords(text), end="", file=sys.stderr)


def _tell_of_bug_in_thread(arguments: threading.ExceptHookArgs) -> None:
    """Print the traceback of an error that has ended a thread.

    That the disk is full is told by the thread that trains, which finds it too.
    """
    error = arguments.exc_value
    if error is not None and not out_of_room(error):
        _tell_of_bug(arguments.exc_type, error, arguments.exc_traceback)


if __name__ == "__main__":
    sys.excepthook = _tell_of_bug
    threading.excepthook = _tell_of_bug_in_thread
    # Imports make a million objects that stay. To look through them again and again takes a second.
    gc.set_threshold(10_000)
    limit_endings()
    code = main(sys.argv[1:])
    if not has_arrived():
        ignore_signals()
    sys.exit(code)
