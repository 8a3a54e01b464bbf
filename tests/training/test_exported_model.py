"""Networks as files that need none of the code that made them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from pipeline import models
from pipeline.config import Model
from pipeline.training.exported_model import load_exported, save_exported


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small_cnn", "resnet18"])
def test_an_exported_network_answers_alike_for_batches_of_any_size(
    name: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = models.build(Model(name=name, dropout=0.3), 3, 32).module.eval()
    images = torch.randn(5, 3, 32, 32)
    with torch.inference_mode():
        expected = module(images)
    save_exported(module, 32, tmp_path / "network.pt2")
    exported = load_exported(tmp_path / "network.pt2", "cpu")
    with torch.inference_mode():
        for count in (1, 2, 5):
            assert torch.allclose(exported(images[:count]), expected[:count], atol=1e-5)


def test_it_tells_nothing_of_this_machine(tmp_path: Path) -> None:
    save_exported(models.build(Model(name="small_cnn"), 3, 32).module, 32, tmp_path / "network.pt2")
    with zipfile.ZipFile(tmp_path / "network.pt2") as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    assert str(Path(models.__file__).parent).encode() not in content
