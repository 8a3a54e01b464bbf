"""Folders for what a source unpacks.

A folder is removed when its process ends, or, if the process was killed, when another process needs
a folder.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from functools import cache
from multiprocessing.util import Finalize
from pathlib import Path

if os.name == "posix":
    import fcntl

_PREFIX = "image-classifier-unpacked-"


@cache
def temporary_folder(key: str) -> Path:
    """Return a folder for what is unpacked, the same folder for the same key.

    The folder is removed when this process ends.
    """
    _remove_abandoned()
    # The folder gets its name only when it is locked: before, another process would take it for
    # abandoned.
    hidden = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}"))
    with suppress(OSError, NameError):
        # It stays open, and so locked, as long as this process or one forked from it lives.
        fcntl.flock(os.open(hidden, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
    folder = hidden.rename(hidden.with_name(hidden.name[1:]))
    # Unlike a callback of atexit, this one runs only in the process that made it, after its worker
    # processes have ended.
    Finalize(None, shutil.rmtree, args=(folder, True), exitpriority=-1)
    return folder


def _remove_abandoned() -> None:
    if os.name != "posix":
        # What a killed process leaves stays until the system clears its temporary files.
        return
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # Another user's folder cannot be opened, and a folder in use cannot be locked.
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(descriptor)
