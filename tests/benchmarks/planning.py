"""Benchmark of planning: ``python -m tests.benchmarks.planning``.

Does a study take as long as `init` says? For each set of images, `init` plans a study for some
hours, and `main` runs it on the same machine. The benchmark prints what was planned, what was
taken, and the ratio of the two. It exits 0 if each study takes between 0.7 and 1.3 times of what
was planned, on an idle machine.

The embedded digits, and Debian's tuxpaint stamps if they are installed, 12 minutes each:

    python -m tests.benchmarks.planning

A first look:

    python -m tests.benchmarks.planning --hours 0.03 --of digits
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from pipeline.config import Data
from pipeline.jobs.init import write_experiment
from tests.benchmarks.measure import Results, console, seconds

LOW, HIGH = 0.7, 1.3
"""What was taken over what was planned."""
SOURCES = {"digits": "digits", "stamps": "folder:/usr/share/tuxpaint/stamps"}
PROJECT = Path(__file__).resolve().parents[2]


def run_main(file: Path) -> None:
    """Run `main` of an experiment in a process and a folder of its own."""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", "pipeline", "main", "--config", str(file)]
    with (file.parent / "main.log").open("w") as log:
        done = subprocess.run(
            command, cwd=file.parent, env=environment, stdout=log, stderr=log, check=False
        )
    if done.returncode:
        sys.exit((file.parent / "main.log").read_text())


def processor_seconds() -> float:
    """Return what the processes that have ended took: on one idle thread, all their time."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def compare(results: Results, name: str, hours: float) -> None:
    """Plan a study, run it, and add what was planned and taken."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{name}.yaml"
        plan = write_experiment(Data(source=SOURCES[name]), file, hours, "auto", console.print)
        console.print(file.read_text(), markup=False)
        before = processor_seconds()
        taken = seconds(lambda: run_main(file))
        worked = processor_seconds() - before
    planned = plan.seconds.total
    ratio = taken / planned
    results.add(
        f"{name}, {hours:g} hours",
        f"taken {taken:.0f} s, {worked:.0f} s of processors",
        f"planned {planned:.0f} s",
        f"ratio {ratio:.2f}, bound {LOW} to {HIGH}",
        LOW <= ratio <= HIGH,
    )


def main() -> int:
    """Compare what is planned with what is taken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=0.2)
    parser.add_argument("--of", choices=["all", *SOURCES], default="all")
    given = parser.parse_args()
    results = Results("What a study takes, and what init has planned")
    for name in SOURCES if given.of == "all" else [given.of]:
        folder = SOURCES[name].removeprefix("folder:")
        if folder != SOURCES[name] and not Path(folder).is_dir():
            console.print(f"{name}: {folder} is not there; left out")
            continue
        compare(results, name, given.hours)
    return results.conclude()


if __name__ == "__main__":
    sys.exit(main())
