"""Small real trainings through the engine alone: neither MLflow nor Optuna is needed."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline.config import Configuration, merge
from pipeline.data.prepared import Prepared
from pipeline.training.build_context import open_context
from pipeline.training.callback import Callback
from pipeline.training.context import TrainingContext
from pipeline.training.distributed import SINGLE_PROCESS, Group
from pipeline.training.fit import fit
from pipeline.training.fit_result import FitResult
from pipeline.training.precision import list_candidates

DEVICE = os.environ.get("GPU_KIT_DEVICE", "cuda")
"""``cpu`` tries the kit itself where there is no GPU, with a smaller network."""
ON_GPU = DEVICE.startswith("cuda")
NETWORK = "resnet18" if ON_GPU else "small_cnn"
GIB = 2**30

BASE: dict[str, Any] = {
    "data": {
        "source": "digits",
        "image_size": 32,
        "batch_size": 64,
        "limit": 1797 if ON_GPU else 160,
        "workers": 0,
    },
    "model": {"name": NETWORK},
    "optimizer": {"name": "adam", "lr": 1e-3},
    "training": {
        "epochs": 2,
        "device": DEVICE,
        "precision": "fp32",
        "memory_format": "contiguous",
        "checkpoint_seconds": 1000,
    },
}


class Trained(NamedTuple):
    """What a training has come to, and where its best weights are."""

    fitted: FitResult
    checkpoint: Path

    def curve(self, metric: str) -> list[float]:
        """Return a metric by epoch."""
        return [epoch[metric] for epoch in self.fitted.history]


def configuration_of(**changes: Any) -> Configuration:
    """Return the small configuration with changes, by section."""
    return Configuration.model_validate(merge(BASE, changes))


@contextmanager
def setting_of(
    configuration: Configuration, prepared: Prepared, folder: Path, group: Group = SINGLE_PROCESS
) -> Iterator[TrainingContext]:
    """Build a training in a folder, in the number and memory format of its configuration."""
    with open_context(configuration, prepared, folder / "best.safetensors", group) as setting:
        yield replace(setting, numerics=list_candidates(configuration.training, setting.device)[0])


def train(
    configuration: Configuration,
    prepared: Prepared,
    folder: Path,
    callbacks: Sequence[Callback] = (),
    group: Group = SINGLE_PROCESS,
) -> Trained:
    """Train in a folder, going on from a checkpoint in it."""
    with setting_of(configuration, prepared, folder, group) as setting:
        fitted = fit(configuration, setting, callbacks)
    return Trained(fitted, folder / "best.safetensors")


@contextmanager
def at_most(num_bytes: int) -> Iterator[None]:
    """Refuse memory beyond so many further bytes: of the GPU, or of this process."""
    if ON_GPU:
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        assert free > num_bytes, "others use the GPU"
        torch.cuda.set_per_process_memory_fraction(
            (torch.cuda.memory_reserved() + num_bytes) / total
        )
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
            torch.cuda.empty_cache()
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
