"""How much several training processes on this machine get done beside one another.

Run as a module, it is one of these processes: it reads what to train from its first argument,
prints a line when it is ready, and its rates after a line has come.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import psutil
import torch

from pipeline import models
from pipeline.config import Configuration, Model
from pipeline.training.inference import set_training_mode
from pipeline.training.malloc import settle_memory
from pipeline.training.precision import PLAIN
from pipeline.training.stepper import Stepper

SECONDS = 1.5
"""Seconds for which each network is trained."""


class Load(NamedTuple):
    """What is trained to find out.

    Attributes:
        networks: Names of networks.
        num_classes: Number of classes.
        batch_size: Images per step.
        image_size: Side of an image in pixels.
        seconds: Seconds for which each network is trained.
    """

    networks: list[str]
    num_classes: int
    batch_size: int
    image_size: int
    seconds: float = SECONDS


class Throughput(NamedTuple):
    """What some processes get done together.

    Attributes:
        rates: Images a second over all processes, by network.
        num_bytes: Memory that the largest process takes.
    """

    rates: dict[str, float]
    num_bytes: int


def measure_throughput(load: Load, processes: int, threads: int) -> Throughput | None:
    """Train with several processes at the same time on the CPU.

    Args:
        load: What they train.
        processes: Number of processes.
        threads: Threads of each.

    Returns:
        What they get done; None if one of them fails, as for lack of memory.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-P", "-m", __name__, json.dumps(load._asdict())]
    running = [
        subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(processes)
    ]
    try:
        return _gather(load, running)
    finally:
        for process in running:
            process.kill()
            process.communicate()


def _gather(load: Load, running: Sequence[subprocess.Popen[str]]) -> Throughput | None:
    """Let processes that are ready begin at the same moment; return what they have got done."""
    for process in running:
        if process.stdout is None or not process.stdout.readline():
            return None
    for process in running:
        if process.stdin is not None:
            process.stdin.write("go\n")
            process.stdin.flush()
    rates = dict.fromkeys(load.networks, 0.0)
    num_bytes = 0
    for process in running:
        line = process.stdout.readline() if process.stdout is not None else ""
        if not line:
            return None
        told = json.loads(line)
        num_bytes = max(num_bytes, told["bytes"])
        for name in rates:
            rates[name] += told["rates"][name]
    return Throughput(rates, num_bytes)


def _train(load: Load) -> None:
    """Be one of the processes."""
    settle_memory()
    steps = {name: _prepare_step(name, load) for name in load.networks}
    for step in steps.values():
        step()
    print("ready", flush=True)
    sys.stdin.readline()
    rates = {}
    for name, step in steps.items():
        done = 0
        started = time.perf_counter()
        while time.perf_counter() - started < load.seconds:
            step()
            done += load.batch_size
        rates[name] = done / (time.perf_counter() - started)
    num_bytes = psutil.Process().memory_info().rss
    print(json.dumps({"rates": rates, "bytes": num_bytes}), flush=True)


def _prepare_step(name: str, load: Load) -> Callable[[], None]:
    """Return a function that does one training step on random images."""
    device = torch.device("cpu")
    network = models.build(Model(name=name), load.num_classes, load.image_size)
    set_training_mode(network, frozen=False)
    stepper = Stepper(Configuration(), network.module, PLAIN, device, None)
    images = torch.randn(load.batch_size, 3, load.image_size, load.image_size)
    labels = torch.zeros(load.batch_size, dtype=torch.long)

    def step() -> None:
        loss, _ = stepper.forward(images, labels)
        stepper.backward(loss)
        stepper.update(0.0)

    return step


if __name__ == "__main__":
    _train(Load(**json.loads(sys.argv[1])))
