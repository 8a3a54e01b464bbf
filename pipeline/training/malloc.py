"""Memory of a process that trains one network after another."""

from __future__ import annotations

import ctypes
import functools
import gc
import sys
import traceback
from collections.abc import Callable

import torch

# Numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_MMAP_THRESHOLD = 32 * 1024 * 1024
_NEVER = 2**31 - 1


@functools.cache
def settle_memory() -> None:
    """Make a process that has imported all it needs ready to train; done once.

    The garbage collector no longer looks at what imports have made, a million objects that stay. It
    would look through them for half a second, now and then, in the middle of a training.

    Memory that a step frees stays with the process. By default glibc may give it back to the system
    and ask for it at the next step, page by page. Whether it does depends on what happens to lie in
    memory behind it, so that one process trains up to a tenth slower than another.
    """
    gc.freeze()
    mallopt = _find_in_glibc("mallopt")
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)


def release_memory() -> None:
    """Give back the memory that a training which has ended no longer needs.

    It takes some milliseconds. Without it, objects in cycles, also those of the store's and the
    figures' libraries, would stay through many trainings; and `settle_memory` would keep as much
    with the process as the most that any of its trainings has needed.
    """
    gc.collect()
    malloc_trim = _find_in_glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _find_in_glibc(name: str) -> Callable[..., int] | None:
    # Not every C library has the function.
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def clear_frames(error: BaseException) -> None:
    """Empty the ended frames that an error, and the errors that led to it, have passed through.

    Whoever keeps an error keeps its traceback, and with it all that these frames held: network,
    optimizer, batches. Optuna keeps an error in a cycle, which is freed only when the garbage
    collector happens to run.
    """
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or any(one is other for other in seen):
            continue
        seen.append(one)
        traceback.clear_frames(one.__traceback__)
        waiting += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions
