"""How many workers a study has on this machine."""

from __future__ import annotations

import json
import platform
from collections import Counter
from math import exp, log
from pathlib import Path
from statistics import fmean

import psutil
import torch

from pipeline.data.prepared import Prepared
from pipeline.experiment import Experiment
from pipeline.files import lock, write_whole
from pipeline.report.console import say
from pipeline.search.worker_processes import num_cores, usable_gpus
from pipeline.training.device import resolve_device
from pipeline.training.throughput import Load, Throughput, measure_throughput

FILE = "workers.json"
_MOST_NETWORKS = 3
"""Networks that are measured: the most frequent ones of list and space."""
_MOST_WORKERS = 16
_WORTHWHILE = 1.05
"""How much more several workers must get done than fewer of them."""
_MEMORY = 0.8
"""Part of the free memory that workers may take."""


def count_workers(experiment: Experiment, prepared: Prepared, folder: Path) -> int:
    """Return the number of processes that train a study's trials at the same time.

    With ``study.workers auto`` it is one for each GPU. On a CPU it is measured once for a study's
    networks, images and machine.

    Args:
        experiment: The experiment.
        prepared: Images of its base.
        folder: Folder of checkpoints, in which the measurement is kept.
    """
    workers = experiment.study.workers
    if workers != "auto":
        return workers
    if resolve_device(experiment.base.training.device).type != "cpu":
        return max(1, len(usable_gpus(experiment)))
    load = Load(
        _frequent_networks(experiment),
        len(prepared.classes),
        experiment.base.data.batch_size,
        experiment.base.data.image_size,
    )
    if num_cores() == 1 or not load.networks:
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / FILE
    key = f"{load} {num_cores()} cores of {platform.node()}, torch {torch.__version__}"
    with lock(file):
        known = _read(file)
        if key not in known:
            known[key] = _measure(load)
            write_whole(file, json.dumps(known, indent=1))
        return int(known[key])


def _frequent_networks(experiment: Experiment) -> list[str]:
    """Return the most frequent networks of a study, but for those of one's own files."""
    choices = experiment.space.get("model.name", [experiment.base.model.name])
    names = Counter(entry.model.name for entry in experiment.entries)
    if isinstance(choices, list) and experiment.space:
        names.update(map(str, choices))
    known = [name for name, _ in names.most_common() if ":" not in name and "/" not in name]
    return known[:_MOST_NETWORKS]


def _read(file: Path) -> dict[str, int]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _measure(load: Load) -> int:
    """Return the number of workers that get most done."""
    cores = num_cores()
    say(f"how many workers get most done with {', '.join(load.networks)} is measured")
    best = 1
    first = reached = measure_throughput(load, 1, cores)
    free = psutil.virtual_memory().available
    count = 2
    while first and reached and count <= min(cores, _MOST_WORKERS):
        if count * reached.num_bytes > _MEMORY * free:
            break
        measured = measure_throughput(load, count, cores // count)
        if measured is None:
            break
        gain = _gain(measured, reached)
        say(f"  {count} workers get {_gain(measured, first):.2f} times as much done as one")
        if gain >= _WORTHWHILE:
            best, reached = count, measured
        count *= 2
    return best


def _gain(measured: Throughput, before: Throughput) -> float:
    """Return how many times as much is done, as the geometric mean over the networks."""
    ratios = [log(measured.rates[name] / before.rates[name]) for name in measured.rates]
    return exp(fmean(ratios))
