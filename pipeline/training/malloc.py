"""Memory of a process that trains one network after another."""

from __future__ import annotations

import ctypes
import functools
import gc
import sys
import traceback
from collections.abc import Callable

import torch

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 * 1024 * 1024
_NEVER = 2**31 - 1


@functools.cache
def settle_memory() -> None:
    """Make a process that has imported all it needs ready to train; done once.

    What imports have made, a million objects that stay, is taken out of the garbage collector's sight: it would look through them for
    half a second, now and then, in the middle of a training.

    What a step frees stays with the process. By default glibc may give it back to the system and ask for it at the next step, page by
    page; whether it does depends on what happens to lie in memory behind it, so that one process trains up to a tenth slower than another.
    """
    gc.freeze()
    if (mallopt := _of_glibc("mallopt")) is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)


def release_memory() -> None:
    """Give back what a training that has ended does not need any more; takes some milliseconds.

    What stands in cycles, of the store's and the figures' libraries too, would stay through many trainings, and what `settle_memory`
    keeps with the process would be as much as the most that any of its trainings has needed.
    """
    gc.collect()
    if (malloc_trim := _of_glibc("malloc_trim")) is not None:
        malloc_trim(0)
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _of_glibc(name: str) -> Callable[..., int] | None:
    # Not every C library has it.
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def clear_frames(error: BaseException) -> None:
    """Empty the frames that an error, and those that led to it, have passed and that have ended.

    Whoever keeps an error keeps its traceback, and with it all that those frames held: network, optimizer, batches. Optuna keeps one
    in a cycle, which is freed when the garbage collector happens to come by.
    """
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or any(one is other for other in seen):
            continue
        seen.append(one)
        traceback.clear_frames(one.__traceback__)
        waiting += [
            one.__cause__,
            one.__context__,
            *(one.exceptions if isinstance(one, BaseExceptionGroup) else ()),
        ]
