"""What a study's pruned trainings leave behind in its process."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import PROJECT

NETWORK = """
from torch import nn


def build(num_classes):
    # Ten million weights: with gradients and Adam's moments, 160 MB.
    hidden = [layer for _ in range(3) for layer in (nn.Linear(1800, 1800), nn.ReLU())]
    first = nn.Linear(3 * 16 * 16, 1800)
    return nn.Sequential(nn.Flatten(), first, *hidden, nn.Linear(1800, num_classes))
"""
STUDY = """
import json, sys
import psutil
from pipeline.__main__ import main
from pipeline.search.trial_runner import TrialRunner

process, seen, one = psutil.Process(), [], TrialRunner._run_trial


def before_each(worker, trial, claim):
    seen.append((process.memory_info().rss, len(process.children())))
    return one(worker, trial, claim)


TrialRunner._run_trial = before_each
code = main(["tune", "--config", "study.yaml"])
seen.append((process.memory_info().rss, len(process.children())))
print(json.dumps([code, seen]))
"""
PRUNED = 11


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="memory is given back where glibc manages it"
)
@pytest.mark.thorough
def test_after_ten_pruned_trials_there_is_as_much_memory_as_after_one_and_no_process(
    quick: Path,
) -> None:
    quick.with_name("net.py").write_text(NETWORK)
    raw = yaml.safe_load(quick.read_text())
    raw["base"]["data"]["workers"] = 2
    raw["base"]["model"] = {"name": f"file:{quick.with_name('net.py')}:build"}
    # The list learns; what is searched cannot, at a learning rate of 1e-9.
    raw["configs"] = [
        {"model": {"name": "small_cnn"}, "optimizer": {"lr": lr}}
        for lr in (3e-3, 4e-3, 5e-3, 6e-3, 7e-3)
    ]
    raw["space"] = {"optimizer.lr": {"low": 1e-9, "high": 1.1e-9}}
    raw["study"] = {"trials": 5 + PRUNED, "pruner": "median"}
    quick.with_name("study.yaml").write_text(yaml.safe_dump(raw))
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [sys.executable, "-c", STUDY],
        capture_output=True,
        text=True,
        env=environment,
        cwd=quick.parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    code, seen = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    assert done.stdout.count("  pruned after epoch ") == PRUNED, done.stdout
    memory, processes = zip(*seen, strict=True)
    after_one, after_ten = memory[6], memory[15]
    assert after_ten <= 1.05 * after_one, memory
    assert max(processes) == 0
