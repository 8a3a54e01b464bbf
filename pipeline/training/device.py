"""The device that ``training.device`` names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch

from pipeline.errors import UserError
from pipeline.training.distributed import is_one_of_several

_MOST_LOADING = 4
"""Processes at most if all transforms are cheap."""
_MOST_AUGMENTING = 16
"""Processes at most otherwise."""
_CHEAP = ("Crop", "Flip")
"""Endings of transforms that only choose pixels.

On an H100, four processes make 8,500 images of 224 pixels a second with them, and 600 with
ColorJitter.
"""
_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_CUBLAS_DETERMINISTIC = ":4096:8"
_OUT_OF_MEMORY = ("allocate memory", "out of memory", "STATUS_ALLOC_FAILED")


def num_loading_processes(
    workers: int | Literal["auto"],
    device: torch.device,
    processes: int,
    augment: Sequence[str | Mapping[str, Any]] = (),
) -> int:
    """Return how many processes read and augment images for one that trains.

    If the same cores compute the network, it becomes slower by as much as these processes take: on
    two cores, with three transforms, a training took 0.98 to 1.2 times as long with one or two of
    them as without.

    Args:
        workers: ``data.workers``.
        device: The device of the network.
        processes: Number of processes that train on this machine.
        augment: ``data.augment``.
    """
    if workers != "auto":
        return workers
    if device.type != "cuda":
        return 0
    is_cheap = all(_transform_name(entry).endswith(_CHEAP) for entry in augment)
    most = _MOST_LOADING if is_cheap else _MOST_AUGMENTING
    return max(0, min(most, (os.cpu_count() or 1) // processes - 1))


def _transform_name(entry: str | Mapping[str, Any]) -> str:
    if isinstance(entry, Mapping):
        return next(iter(entry), "")
    return entry


@contextmanager
def choose_cuda_kernels(deterministic: bool) -> Iterator[None]:
    """Choose, while the block runs, which kernels CUDA may use; afterwards all is as before.

    Args:
        deterministic: Only kernels that give the same result twice may be used; an operation that
            has none raises RuntimeError. False: any kernel may be used.
    """
    enabled = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    # A process reads this variable when it first multiplies matrices, and never again. Without it,
    # a process that has trained once without deterministic kernels could never train with them.
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
    # A CPU raises a plain RuntimeError: "[enforce fail …] DefaultCPUAllocator: can't allocate
    # memory". So does a GPU if the memory is not from torch's own allocator: "CUDA error: out of
    # memory", "CUBLAS_STATUS_ALLOC_FAILED".
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
            "training.compile: needs a C++ compiler on a CPU, and none is found; "
            "install g++ or clang, or set CXX"
        ) from None


def resolve_device(name: str) -> torch.device:
    """Return the device; ``auto`` is the first CUDA device, else MPS, else the CPU.

    Raises:
        UserError: This machine has no such device.
    """
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        numbered = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
        available = ["cuda", *numbered, *available]
    if is_one_of_several() and available[0] == "cuda" and name in ("auto", "cuda"):
        # One process per GPU.
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    if name == "auto":
        return torch.device(available[0])
    if name not in available:
        raise UserError(
            f"training.device: this machine has no {name!r}; "
            f"allowed here: auto, {', '.join(available)}"
        )
    return torch.device(name)
