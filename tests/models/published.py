"""Weights as a library publishes them, made here: nothing is downloaded in tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import safetensors.torch
import timm
import torch
import torchvision

FAMILIES = {
    "alexnet": 64,
    "convnext_tiny": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "efficientnet_v2_s": 64,
    "googlenet": 64,
    "inception_v3": 80,
    "maxvit_t": 224,
    "mnasnet0_5": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "regnet_y_400mf": 64,
    "resnet18": 64,
    "resnext50_32x4d": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
    "swin_t": 64,
    "swin_v2_t": 64,
    "vgg11_bn": 64,
    "vit_b_16": 224,
    "wide_resnet50_2": 64,
}
"""A small network of each of torchvision's families, and a size of images that it takes."""


def entry_of(name: str) -> Any:
    return torchvision.models.get_model_weights(name).DEFAULT


@contextmanager
def published(name: str, cache: Path) -> Iterator[Path]:
    """Put a file of random weights where torchvision's published ones are looked for.

    The published ones of vgg11 have half a gigabyte.
    """
    torch.manual_seed(1)
    arguments = (
        {"aux_logits": True, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    )
    state = torchvision.models.get_model(name, **arguments).state_dict()
    file = cache / "hub" / "checkpoints" / Path(urlsplit(entry_of(name).url).path).name
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, file)
    try:
        yield file
    finally:
        file.unlink()


def publish_timms(name: str, cache: Path) -> dict[str, torch.Tensor]:
    """Put random weights where timm's published ones are looked for, and return them."""
    torch.manual_seed(1)
    state: dict[str, torch.Tensor] = timm.create_model(name).state_dict()
    folder = cache / "hub" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(
        state, folder / f"timm-{name}.{timm.get_pretrained_cfg(name).tag}.safetensors"
    )
    return state
