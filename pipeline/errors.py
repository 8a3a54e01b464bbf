"""The errors a user can meet.

PipelineError
├── ProcessKilled    a process of a group was killed
├── StoreAway        a server or database does not answer
├── TakenOver        another worker has taken the trial over: nothing more is written
├── UserError        the input is wrong: exit code 2, one line and perhaps a list
│   ├── Unreachable  what is to be downloaded cannot be
│   ├── Unwritable   a folder or a file cannot be written to
│   └── InUse        another process works on it
└── TrainingFailed   a training cannot go on: the run ends FAILED
    ├── LossNotFinite
    ├── OutOfMemory
    ├── WorkersDied  several, one after another, in the same trial
    └── GivenUp      another process of the group has ended it
KeyboardInterrupt
└── Interrupted      SIGINT or SIGTERM arrived: the run ends KILLED
Paused, ManyProcesses    no errors
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from pipeline.safe_text import hide_passwords, make_visible

_LONGEST = 3000
"""Most characters of a line that is shown: a text that it quotes may be of any length."""
_END = 300
"""Characters of the end of a longer line, whose middle is left out."""


def _shown(text: str) -> str:
    shown = make_visible(hide_passwords(text))
    if len(shown) <= _LONGEST:
        return shown
    return f"{shown[: _LONGEST - _END]} … {shown[-_END:]}"


class PipelineError(Exception):
    """Base of all errors that are raised on purpose.

    Their text holds no password, and nothing that a terminal would act on.
    """

    def __str__(self) -> str:
        return _shown(super().__str__())


class UserError(PipelineError):
    """The user's input is wrong.

    Args:
        message: One line with what was given, what is allowed and the nearest valid name.
        findings: Lines that are printed below it as an indented list.
    """

    def __init__(self, message: str, findings: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.findings = list(findings)

    def __str__(self) -> str:
        findings = [f"  {_shown(finding)}" for finding in self.findings]
        return "\n".join([_shown(self.message), *findings])


class Unreachable(UserError):
    """Something cannot be downloaded; the message says where to put it by hand."""


class Unwritable(UserError):
    """A folder or a file cannot be written to, or the disk is full.

    The message says which one, and how to choose another.
    """


class InUse(UserError):
    """Another process works on what is asked for; the message names it."""


class StoreAway(PipelineError):
    """A server or database does not answer.

    That says nothing about the training: a run that ends by it can go on.
    """


class TakenOver(PipelineError):
    """Another worker has taken this trial over, since this one gave no sign of life.

    Whoever meets it writes nothing more to trial, run and checkpoints.
    """


class ProcessKilled(PipelineError):
    """A signal that it could not catch has killed a process of a group.

    Args:
        message: The killed process, and the signal that killed it.
        process_id: Id of the process that logs, if it was killed itself: its runs have not been
            ended. Else 0.
    """

    def __init__(self, message: str, process_id: int) -> None:
        super().__init__(message)
        self.process_id = process_id


class TrainingFailed(PipelineError):
    """A training cannot go on; the message says at which step and why."""


class LossNotFinite(TrainingFailed):
    """The loss is NaN or infinite."""


class OutOfMemory(TrainingFailed):
    """A batch does not fit in memory; the message says which would."""


class WorkersDied(TrainingFailed):
    """Several workers have died one after another while they trained the same trial."""


class GivenUp(TrainingFailed):
    """The process that logs has ended a training in which this one takes part."""


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM arrived.

    It is no Exception, so that no ``except Exception`` of a library swallows it.
    """


class Paused(Exception):
    """No error: a training waits after an epoch, and goes on from there later.

    Its run ends interrupted, with the text as the reason.
    """


class ManyProcesses(Exception):
    """No error: the step is to be run by several processes.

    Args:
        count: Number of processes.
    """

    def __init__(self, count: int) -> None:
        super().__init__(f"to be run by {count} processes")
        self.count = count


def may_pass(error: BaseException) -> bool:
    """Whether a training that this error has ended may succeed another time.

    It cannot succeed if the configuration, which stays the same, is the reason: it is wrong, or its
    loss is not finite. A full disk, a busy GPU, a server's error or a missing download may be gone
    by then.
    """
    if isinstance(error, Unreachable | InUse):
        return True
    return not isinstance(error, UserError | LossNotFinite)


def nearest(given: str, allowed: Iterable[str]) -> str:
    """Return ``"; nearest: NAME"`` for the allowed name most like `given`, or an empty string."""
    by_lower = {name.lower(): name for name in allowed}
    matches = difflib.get_close_matches(given.lower(), by_lower, n=1, cutoff=0.5)
    return f"; nearest: {by_lower[matches[0]]}" if matches else ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def unknown_name(kind: str, given: str, allowed: Iterable[str]) -> UserError:
    """Return the error for a name that is not among the allowed ones."""
    names = list(allowed)
    shown = ", ".join(names)
    if len(names) > 20:
        shown = f"{', '.join(names[:12])}, … ({len(names)} in all)"
    return UserError(f"unknown {kind} {given!r}{nearest(given, names)}; allowed: {shown}")
