"""How inputs are made: good ones, changed where it hurts; and how one is held to its limits.

By default each target is fuzzed for a second beside the other tests, always with the same inputs,
and with eighty of them at least. This takes ten minutes for each target, with other inputs, and
prints how many they were:

    FUZZ_SECONDS=600 FUZZ_SEED=7 python -m pytest -n 2 -rP tests/fuzz \
        tests/tracking/test_served_model.py::test_requests

What fails is kept in ``tests/fuzz/finds/TARGET-HASH``, and tried first from then on.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

FINDS = Path(__file__).parent / "finds"
SECONDS = float(os.environ.get("FUZZ_SECONDS", "1"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
MOST_SECONDS = 60.0
"""Of one input, by the clock: these are small, and a busy machine is slow."""
MOST_MEMORY = 1_500_000_000
"""Bytes by which one input may raise the process's peak.

`data.max_pixels` with transparency is 256 MB, four times at once.
"""
_PER_ROUND = 40

Check = Callable[[bytes], object]


@contextmanager
def limits() -> Iterator[None]:
    """Hold what is done to the limits of one input; of memory where Linux tells the peak."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"more than {MOST_SECONDS:g} seconds")

    before = _reset_peak()
    handler = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    if before:
        grown = _status("VmHWM") - before
        assert grown <= MOST_MEMORY, f"{grown / 1e6:.0f} MB of memory"


def _status(name: str) -> int:
    return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0]) * 1024


def _reset_peak() -> int:
    """Let the peak of memory begin anew.

    Return the memory in use now, 0 if the system cannot do that.
    """
    if not sys.platform.startswith("linux"):
        return 0
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def changed(samples: list[bytes], words: list[bytes] | None = None) -> st.SearchStrategy[bytes]:
    """Return changes of samples.

    Bytes and words are put in, parts repeated or left out, numbers set to their limits.
    """
    pieces = st.one_of(
        st.binary(max_size=8),
        st.sampled_from([b"\0", b"\xff", b"\xff" * 4, b"\x7f\xff\xff\xff", *(words or [])]),
    )
    change = st.tuples(st.floats(0, 1), st.integers(0, 3), pieces, st.integers(1, 40))

    def put(sample: bytes, changes: list[tuple[float, int, bytes, int]]) -> bytes:
        content = sample
        for place, kind, piece, count in changes:
            # Most of them near the beginning, where files keep what matters.
            start = int(place**3 * len(content))
            match kind:
                case 0:
                    content = content[:start] + piece + content[start + len(piece) :]
                case 1:
                    content = content[:start] + piece * count + content[start:]
                case 2:
                    content = content[:start] + content[start + count :]
                case _:
                    content = (
                        content[:start] + content[start : start + count] * count + content[start:]
                    )
        return content

    return st.builds(put, st.sampled_from(samples), st.lists(change, max_size=6))


def fuzz(target: str, inputs: st.SearchStrategy[bytes], check: Check) -> int:
    """Check inputs until the time is up, and return how many.

    The smallest input that fails is kept as a file.
    """
    for find in sorted(FINDS.glob(f"{target}-*")):
        with limits():
            check(find.read_bytes())
    count = 0
    until = time.monotonic() + SECONDS
    for number in range(10**9):

        @seed(SEED * 10**6 + number)
        @settings(
            max_examples=_PER_ROUND,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(inputs)
        def one(content: bytes) -> None:
            nonlocal count
            count += 1
            kept = FINDS / f"{target}-{hashlib.sha256(content).hexdigest()[:12]}"
            try:
                with limits(), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    check(content)
            except BaseException:
                _keep(kept, content)
                raise

        one()
        if number and time.monotonic() > until:
            break
    print(f"{target}: {count} inputs")
    return count


def _keep(file: Path, content: bytes) -> None:
    """Keep a failing input in the place of a larger one that this process has kept."""
    if (before := _kept.get(file.name.partition("-")[0])) is not None:
        if len(before.read_bytes()) <= len(content):
            return
        before.unlink()
    file.write_bytes(content)
    _kept[file.name.partition("-")[0]] = file


_kept: dict[str, Path] = {}
