"""What a network costs to use: multiply-adds, speed and size."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config import Configuration
from pipeline.tracking import find_runs, names
from pipeline.tracking.workspace import Workspace

BATCH = 32
"""Images that are answered at once while the speed is measured."""
_LEAST_SECONDS = 0.3
_MOST_SECONDS = 10.0
_LEAST_BATCHES = 3


def find_cost(
    workspace: Workspace,
    network: nn.Module,
    configuration: Configuration,
    images: torch.Tensor,
) -> tuple[str, dict[str, float]]:
    """Return what a network costs, measured once for each network, size of images and machine.

    Args:
        workspace: The open store.
        network: The network, in evaluation mode, on the device that it is measured on.
        configuration: The configuration of its run.
        images: Normalised images on the same device, shape (images, 3, height, width).

    Returns:
        What it was measured with, as `names.COST` holds it, and the metrics.
    """
    key = _describe_measurement(configuration, network, images)
    known = _find_known(workspace, key)
    if known:
        return key, known
    values = {names.WEIGHTS_BYTES: float(weights_bytes(network))}
    # A network of one's own may do what cannot be counted.
    with suppress(Exception):
        values[names.MULTIPLY_ADDS] = float(count_multiply_adds(network, images[:1]))
    values[names.SPEED] = measure_speed(network, images)
    return key, values


def _describe_measurement(
    configuration: Configuration, network: nn.Module, images: torch.Tensor
) -> str:
    device = images.device
    machine = f"{socket.gethostname()}, {os.cpu_count()} processors"
    if device.type == "cuda":
        machine = f"{socket.gethostname()}, {torch.cuda.get_device_name(device)}"
    parameters = sum(parameter.numel() for parameter in network.parameters())
    size = f"{images.shape[2]} x {images.shape[3]} pixels"
    return f"{configuration.model.name}, {parameters} parameters, {size}, {machine}"


def _find_known(workspace: Workspace, key: str) -> dict[str, float]:
    """Return what another run has measured, or nothing."""
    condition = f"tags.`{names.COST}` = '{find_runs.quote(key)}'"
    experiments = [workspace.experiment_id]
    for run in workspace.client.search_runs(experiments, condition, max_results=1):
        found = {
            name: run.data.metrics[name]
            for name in (names.WEIGHTS_BYTES, names.MULTIPLY_ADDS, names.SPEED)
            if name in run.data.metrics
        }
        if names.SPEED in found:
            return found
    return {}


def weights_bytes(network: nn.Module) -> int:
    """Return the size of a network's parameters and buffers in bytes."""
    state = network.state_dict().values()
    return sum(tensor.numel() * tensor.element_size() for tensor in state)


def count_multiply_adds(network: nn.Module, image: torch.Tensor) -> int:
    """Return how many pairs of a multiplication and an addition one image takes.

    Args:
        network: The network, in evaluation mode.
        image: Shape (1, 3, height, width).
    """
    counter = FlopCounterMode(display=False)
    # With gradients, and of the plain kind, attention is made of products that the counter knows.
    image = image.detach().clone().requires_grad_()
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        network(image)
    return int(counter.get_total_flops()) // 2


def measure_speed(network: nn.Module, images: torch.Tensor) -> float:
    """Return how many images a second a network answers, `BATCH` at once.

    It takes a third of a second, of slow networks up to ten.

    Args:
        network: The network, in evaluation mode.
        images: Shape (images, 3, height, width); they are repeated if they are too few.
    """
    device = images.device
    repeats = -(-BATCH // len(images))
    batch = images.repeat(repeats, 1, 1, 1)[:BATCH]
    seconds: list[float] = []
    begun = time.perf_counter()
    with torch.inference_mode():
        while True:
            start = time.perf_counter()
            network(batch)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            now = time.perf_counter()
            seconds.append(now - start)
            is_enough = now - begun >= _LEAST_SECONDS and len(seconds) > _LEAST_BATCHES
            if is_enough or now - begun >= _MOST_SECONDS:
                break
    # The first one allocates memory. Of the others the quickest was disturbed least.
    return BATCH / min(seconds[1:] or seconds)
