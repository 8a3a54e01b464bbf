"""One process of this machine at a time on what must not be done twice at once."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.errors import InUse


@contextmanager
def alone(what: str, refusal: str) -> Iterator[None]:
    """Hold something for this process; the operating system frees it when the process dies.

    Args:
        what: Its name, unique on this machine.
        refusal: The message where another process holds it.

    Raises:
        InUse: Another process holds it.
    """
    key = hashlib.sha256(what.encode()).hexdigest()[:16]
    lock = FileLock(Path(tempfile.gettempdir()) / f"pipeline-{key}.lock", mode=0o666)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InUse(refusal) from None
    try:
        yield
    finally:
        lock.release()
