"""The device that ``training.device`` names."""

from __future__ import annotations

import os
from typing import Literal

import torch

from pipeline.errors import UserError
from pipeline.training.distributed import is_group

_MOST_LOADING = 4


def num_loading(workers: int | Literal["auto"], device: torch.device, processes: int) -> int:
    """Return how many processes read and augment images for one that trains.

    Where the network is computed by the same cores, it is slower by as much while images are augmented beside it: on two cores, with
    three transforms, a training took 0.98 to 1.2 times as long with one or two such processes as without.

    Args:
        workers: ``data.workers``.
        device: Of the network.
        processes: That train on this machine.
    """
    if workers != "auto":
        return workers
    if device.type != "cuda":
        return 0
    return max(0, min(_MOST_LOADING, (os.cpu_count() or 1) // processes - 1))


def use_deterministic_kernels() -> None:
    """Let CUDA use only kernels that give the same result twice; an operation that has none raises RuntimeError."""
    # cuBLAS reads it when it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the device, or of this machine, does not suffice."""
    # On a GPU torch.OutOfMemoryError; on a CPU a plain RuntimeError: "[enforce fail …] DefaultCPUAllocator: can't allocate memory".
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and "allocate memory" in str(error))


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
        raise UserError("training.compile: needs a C++ compiler on a CPU, and none is found; install g++ or clang, or set CXX") from None


def resolve_device(name: str) -> torch.device:
    """Return the device; ``auto`` is the first CUDA device, else MPS, else the CPU.

    Raises:
        UserError: This machine has no such device.
    """
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    available = ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count())), *available] if torch.cuda.is_available() else available
    if is_group() and available[0] == "cuda" and name in ("auto", "cuda"):
        # One process per GPU.
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    if name == "auto":
        return torch.device(available[0])
    if name not in available:
        raise UserError(f"training.device: this machine has no {name!r}; allowed here: auto, {', '.join(available)}")
    return torch.device(name)
