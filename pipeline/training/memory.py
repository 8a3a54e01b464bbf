"""What a process does once about its memory, so that no step of a training waits for it."""

from __future__ import annotations

import ctypes
import functools
import gc
import sys

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
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # Not every C library has it.
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
