"""The device that a configuration names."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import UserError
from pipeline.training.device import resolve_device


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
