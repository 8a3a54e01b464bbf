"""Several workers have one line each on a terminal, and say all in a log file."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from pipeline.report.workers_view import WorkersView
from tests.conftest import PROJECT

EPOCH = (
    "  03 resnet18, lr 0.002: epoch 4/30  train loss 0.1069 accuracy 93.94%  "
    "val loss 0.0454 accuracy 91.67% *  3 min left"
)
BEST = "  best so far: validation accuracy 95.00%, trial 2; trials left: 7"
LINES = [(1, "trial 4 of 20: resnet18"), (2, BEST), (1, EPOCH), (2, "    overfit: by far")]


def test_a_log_file_has_every_line_and_epochs_end_with_the_best_trial(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with WorkersView() as view:
        for number, line in LINES:
            view.show(number, line)
    assert capsys.readouterr().out.splitlines() == [
        "[1] trial 4 of 20: resnet18",
        f"[2] {BEST}",
        f"[1] {EPOCH}  best so far: validation accuracy 95.00%, trial 2",
        "[2]     overfit: by far",
    ]


SCRIPT = f"""
from pipeline.report.workers_view import WorkersView
with WorkersView() as view:
    for number, line in {LINES!r}:
        view.show(number, line)
    view.show(2, "trial 5 of 20: \\x1b[31mred")
    print("end", flush=True)
    input()
"""


def test_a_terminal_has_a_line_for_each_worker_and_one_for_the_best_trial() -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "140", "PYTHONPATH": str(PROJECT)}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdin=theirs, stdout=theirs, env=environment
    )
    os.close(theirs)
    seen = b""
    while b"end" not in seen:
        seen += os.read(ours, 4096)
    os.write(ours, b"\n")
    process.wait(30)
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode()).replace("\r", "")
    # What goes by is said once; the last of what stands below has a line for each worker.
    assert text.count("[2]     overfit: by far") == 1
    assert (
        text.split("end")[0]
        .rstrip()
        .endswith(
            "[1] 03 resnet18, lr 0.002: epoch 4/30  val loss 0.0454 accuracy 91.67% *  3 min left\n"
            "[2] trial 5 of 20: \\x1b[31mred\n"
            "best so far: validation accuracy 95.00%, trial 2; trials left: 7"
        )
    )
