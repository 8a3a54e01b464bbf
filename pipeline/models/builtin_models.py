"""The networks of this package itself: a small baseline, and a DenseNet that torchvision lacks."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import nn
from torchvision.models import DenseNet

from pipeline.config import Model
from pipeline.models.family import Family
from pipeline.models.heads import find_head


class SmallCNN(nn.Sequential):
    """Three convolutions and one linear layer, without normalisation layers: the baseline.

    It takes images of any size.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        channels = (3, 16, 32, 64)
        for number, (before, after) in enumerate(pairwise(channels), 1):
            self.add_module(f"conv{number}", nn.Conv2d(before, after, 3, padding=1))
            self.add_module(f"relu{number}", nn.ReLU())
            self.add_module(f"pool{number}", nn.MaxPool2d(2))
        self.add_module("average", nn.AdaptiveAvgPool2d(2))
        self.add_module("flatten", nn.Flatten())
        self.add_module("fc", nn.Linear(64 * 2 * 2, num_classes))


def _build_densenet264(num_classes: int) -> nn.Module:
    network: nn.Module = DenseNet(
        growth_rate=32, block_config=(6, 12, 64, 48), num_init_features=64, num_classes=num_classes
    )
    return network


BUILDERS: dict[str, Callable[[int], nn.Module]] = {
    "densenet264": _build_densenet264,
    "small_cnn": SmallCNN,
}
"""What builds each network, from the number of classes. A further network is an entry here."""


class BuiltinModels(Family):
    """The networks in `BUILDERS`. They have no published weights."""

    def has(self, name: str) -> bool:
        return name in BUILDERS

    def build(
        self, model: Model, num_classes: int, image_size: int, load: bool
    ) -> tuple[nn.Module, str]:
        module = BUILDERS[model.name](num_classes)
        return module, find_head(module)
