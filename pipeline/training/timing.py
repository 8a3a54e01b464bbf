"""Measure how long a network takes per image on this machine."""

from __future__ import annotations

import statistics
import time

import torch
from torch.nn import functional

from pipeline.models import Network
from pipeline.training.device import is_out_of_memory
from pipeline.training.inference import main_output

WARM_UP = 2
"""Steps before those that count."""


def seconds_per_image(
    network: Network, batch_size: int, image_size: int, device: torch.device, steps: int = 2
) -> float | None:
    """Time real training steps on random images.

    Two steps come before, to warm up: the first ones choose and compile kernels.

    Returns:
        Median seconds per image; None if a batch does not fit in the device's memory.
    """
    times = []
    try:
        module = network.module.to(device).train()
        optimizer = torch.optim.AdamW(
            [parameter for parameter in module.parameters() if parameter.requires_grad], lr=1e-6
        )
        images = torch.randn(batch_size, 3, image_size, image_size, device=device)
        labels = torch.zeros(batch_size, dtype=torch.long, device=device)
        for _ in range(steps + WARM_UP):
            started = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(main_output(module(images)), labels).backward()
            optimizer.step()
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            times.append(time.perf_counter() - started)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    return statistics.median(times[WARM_UP:]) / batch_size
