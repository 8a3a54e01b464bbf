"""The device that ``training.device`` names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch

from pipeline.errors import UserError
from pipeline.training.distributed import is_one_of_several

_MOST_LOADING, _MOST_AUGMENTING = 4, 16
_CHEAP = ("Crop", "Flip")
"""Endings of transforms that only choose pixels: on an H100, four processes make 8,500 images of 224 pixels a second with them, and 600
with ColorJitter."""
_CUBLAS, _CUBLAS_DETERMINISTIC = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
_OUT_OF_MEMORY = ("allocate memory", "out of memory", "STATUS_ALLOC_FAILED")


def num_loading_processes(
    workers: int | Literal["auto"],
    device: torch.device,
    processes: int,
    augment: Sequence[str | Mapping[str, Any]] = (),
) -> int:
    """Return how many processes read and augment images for one that trains.

    Where the network is computed by the same cores, it is slower by as much while images are augmented beside it: on two cores, with
    three transforms, a training took 0.98 to 1.2 times as long with one or two such processes as without.

    Args:
        workers: ``data.workers``.
        device: Of the network.
        processes: That train on this machine.
        augment: ``data.augment``.
    """
    if workers != "auto":
        return workers
    if device.type != "cuda":
        return 0
    is_cheap = all(
        next(iter(entry), "").endswith(_CHEAP)
        if isinstance(entry, Mapping)
        else entry.endswith(_CHEAP)
        for entry in augment
    )
    most = _MOST_LOADING if is_cheap else _MOST_AUGMENTING
    return max(0, min(most, (os.cpu_count() or 1) // processes - 1))


@contextmanager
def choose_cuda_kernels(deterministic: bool) -> Iterator[None]:
    """Let CUDA use, while the block runs, only kernels that give the same result twice, or any; afterwards all is as before.

    Args:
        deterministic: An operation that has no such kernel raises RuntimeError.
    """
    enabled, warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    benchmark = torch.backends.cudnn.benchmark
    # A process looks at it when it first multiplies matrices, and never again: where that happened in a training that needs no
    # deterministic kernels, one that does would be refused ever after.
    is_ours = _CUBLAS not in os.environ
    os.environ.setdefault(_CUBLAS, _CUBLAS_DETERMINISTIC)
    try:
        if deterministic:
            torch.backends.cudnn.benchmark = False
            torch.use_deterministic_algorithms(True)
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warns)
        torch.backends.cudnn.benchmark = benchmark
        if is_ours:
            os.environ.pop(_CUBLAS, None)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the device, or of this machine, does not suffice."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # On a CPU a plain RuntimeError: "[enforce fail …] DefaultCPUAllocator: can't allocate memory"; on a GPU what does not come from
    # torch's own allocator: "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED".
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)


def need_compiler(device: torch.device) -> None:
    """Check that ``training.compile`` can work.

    Raises:
        UserError: There is no C++ compiler, which a CPU needs.
    """
    if device.type != "cpu":
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise UserError(
            "training.compile: needs a C++ compiler on a CPU, and none is found; install g++ or clang, or set CXX"
        ) from None


def resolve_device(name: str) -> torch.device:
    """Return the device; ``auto`` is the first CUDA device, else MPS, else the CPU.

    Raises:
        UserError: This machine has no such device.
    """
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    available = (
        ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count())), *available]
        if torch.cuda.is_available()
        else available
    )
    if is_one_of_several() and available[0] == "cuda" and name in ("auto", "cuda"):
        # One process per GPU.
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    if name == "auto":
        return torch.device(available[0])
    if name not in available:
        raise UserError(
            f"training.device: this machine has no {name!r}; allowed here: auto, {', '.join(available)}"
        )
    return torch.device(name)
