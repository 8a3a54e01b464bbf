"""The device that a configuration names."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import UserError
from pipeline.training.device import num_loading, resolve_device


def test_cpu_is_always_there() -> None:
    assert resolve_device("cpu") == torch.device("cpu")


def test_auto_is_the_fastest_that_is_there() -> None:
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert resolve_device("auto").type == expected


def test_auto_can_hold_a_tensor() -> None:
    assert torch.ones(2, device=resolve_device("auto")).sum().item() == 2


def test_a_device_that_is_not_there_is_refused_with_those_that_are() -> None:
    missing = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(UserError, match=f"training.device: this machine has no '{missing}'; allowed here: auto, .*cpu"):
        resolve_device(missing)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_is_refused_where_there_is_none() -> None:
    with pytest.raises(UserError, match="this machine has no 'cuda'"):
        resolve_device("cuda")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="needs a machine without MPS")
def test_mps_is_refused_where_there_is_none() -> None:
    with pytest.raises(UserError, match="this machine has no 'mps'"):
        resolve_device("mps")


def test_images_are_loaded_beside_a_gpu_only_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda:0")
    for cores, processes, expected in ((32, 1, 4), (4, 1, 3), (32, 8, 3), (2, 2, 0), (1, 1, 0)):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        assert num_loading("auto", gpu, processes) == expected
        assert num_loading("auto", cpu, processes) == 0
        assert num_loading(3, cpu, processes) == num_loading(3, gpu, processes) == 3
