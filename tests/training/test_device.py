"""The device that a configuration names."""

from __future__ import annotations

import os
from contextlib import suppress

import pytest
import torch

from pipeline.errors import UserError
from pipeline.training.device import (
    choose_cuda_kernels,
    is_out_of_memory,
    num_loading_processes,
    resolve_device,
)


def test_cpu_is_always_there() -> None:
    assert resolve_device("cpu") == torch.device("cpu")


def test_auto_is_the_fastest_that_is_there() -> None:
    expected = (
        "cuda"
        if torch.cuda.is_available()
        else "mps"
        if torch.backends.mps.is_available()
        else "cpu"
    )
    assert resolve_device("auto").type == expected


def test_auto_can_hold_a_tensor() -> None:
    assert torch.ones(2, device=resolve_device("auto")).sum().item() == 2


def test_a_device_that_is_not_there_is_refused_with_those_that_are() -> None:
    missing = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(
        UserError,
        match=f"training.device: this machine has no '{missing}'; allowed here: auto, .*cpu",
    ):
        resolve_device(missing)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_is_refused_where_there_is_none() -> None:
    with pytest.raises(UserError, match="this machine has no 'cuda'"):
        resolve_device("cuda")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="needs a machine without MPS")
def test_mps_is_refused_where_there_is_none() -> None:
    with pytest.raises(UserError, match="this machine has no 'mps'"):
        resolve_device("mps")


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("ends", ["well", "with an error"])
def test_deterministic_kernels_are_asked_for_in_one_training_only(ends: str) -> None:
    torch.backends.cudnn.benchmark = True
    try:
        with suppress(OSError), choose_cuda_kernels(deterministic=True):
            assert torch.are_deterministic_algorithms_enabled()
            assert not torch.backends.cudnn.benchmark
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
            if ends != "well":
                raise OSError
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.benchmark
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    finally:
        torch.backends.cudnn.benchmark = False


@pytest.mark.usefixtures("plain")
def test_a_plain_training_leaves_it_open_whether_a_later_one_is_deterministic() -> None:
    # Cuda's check of the variable is done once in a process.
    with choose_cuda_kernels(deterministic=False):
        assert not torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with choose_cuda_kernels(deterministic=True):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate "
                "memory: you tried to allocate 1 bytes"
            ),
            True,
        ),
        (RuntimeError("CUDA error: out of memory"), True),
        (
            RuntimeError(
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
            ),
            True,
        ),
        (
            RuntimeError(
                "unscale_() has already been called on this optimizer since the last update()."
            ),
            False,
        ),
        (ValueError("out of memory"), False),
    ],
)
def test_what_says_that_memory_does_not_suffice(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


def test_images_are_loaded_beside_a_gpu_only_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda:0")
    for cores, processes, expected in ((32, 1, 4), (4, 1, 3), (32, 8, 3), (2, 2, 0), (1, 1, 0)):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        assert num_loading_processes("auto", gpu, processes) == expected
        assert num_loading_processes("auto", cpu, processes) == 0
        assert (
            num_loading_processes(3, cpu, processes)
            == num_loading_processes(3, gpu, processes)
            == 3
        )
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    for augment, expected in (
        (["RandomHorizontalFlip", {"RandomResizedCrop": {"scale": [0.5, 1]}}], 4),
        (["RandomHorizontalFlip", {"ColorJitter": 0.2}], 15),
        (["AutoAugment"], 15),
    ):
        assert num_loading_processes("auto", gpu, 1, augment) == expected
        assert (
            num_loading_processes("auto", gpu, 16, augment)
            == num_loading_processes("auto", cpu, 1, augment)
            == 0
        )
