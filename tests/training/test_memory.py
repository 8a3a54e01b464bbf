"""A process that trains keeps its memory."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

STEPS = """
import resource
import numpy as np
from pipeline.training.memory import settle_memory

if {settled}:
    settle_memory()
for step in range(12):
    if step == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    # As large as activations, all alive at once, all freed at the end of the step.
    activations = [np.full(1_000_000, step, np.float32) for _ in range(20)]
    del activations
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / 10)
"""


def bytes_asked_for_per_step(settled: bool) -> float:
    done = subprocess.run([sys.executable, "-c", STEPS.format(settled=settled)], capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back after each step")
def test_what_a_step_frees_is_kept_for_the_next() -> None:
    assert bytes_asked_for_per_step(settled=False) > 10e6, "there is nothing to spare any more"
    assert bytes_asked_for_per_step(settled=True) < 1e6


def test_what_imports_have_made_is_not_collected() -> None:
    program = "import gc, pipeline.training.memory as memory; memory.settle_memory(); print(gc.get_freeze_count())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 1000
