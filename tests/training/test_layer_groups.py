"""Groups of layers, and histograms of their values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from pipeline import models
from pipeline.config import Model
from pipeline.training.layer_groups import (
    MOST_GROUPS,
    MOST_VALUES,
    histogram,
    kernels,
    layer_groups,
    subsample,
)

GROUPS = {
    "resnet18": "conv1 bn1 layer1 layer2 layer3 layer4 fc",
    "resnet101": "conv1 bn1 layer1 layer2 layer3 layer4 fc",
    "small_cnn": "conv1 conv2 conv3 fc",
    "alexnet": "features.0 features.3 features.6 features.8 features.10 classifier",
    "squeezenet1_1": "features.0 features.3 features.4 features.6 features.7 features.9 "
    "features.10 features.11 features.12 classifier",
    "densenet121": "features.conv0 features.norm0 features.denseblock1 features.transition1 "
    "features.denseblock2 features.transition2 features.denseblock3 features.transition3 "
    "features.denseblock4 features.norm5 classifier",
    "mobilenet_v2": "features.0 features.1-2 features.3-4 features.5-6 features.7-8 features.9-10 "
    "features.11-12 features.13-14 features.15 features.16 features.17-18 classifier",
}


@pytest.mark.parametrize("name", GROUPS)
def test_groups_are_the_parts_that_people_know(name: str) -> None:
    module = models.build(Model(name=name), 10, 32).module
    assert " ".join(layer_groups(module)) == GROUPS[name]


@pytest.mark.parametrize(
    "name",
    [
        *GROUPS,
        "vit_b_32",
        "vgg11_bn",
        "swin_t",
        "efficientnet_b0",
        "googlenet",
        "convnext_tiny",
        "shufflenet_v2_x0_5",
    ],
)
def test_every_parameter_is_in_one_of_few_groups(name: str) -> None:
    module = models.build(Model(name=name), 10, 224 if name.startswith("vit") else 32).module
    groups = layer_groups(module)
    assert 4 <= len(groups) <= MOST_GROUPS
    grouped = [id(parameter) for parameters in groups.values() for parameter in parameters]
    assert sorted(grouped) == sorted(map(id, module.parameters()))


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "squeezenet1_1"])
def test_a_frozen_backbone_is_in_no_group(name: str) -> None:
    network = models.build(Model(name=name, freeze="backbone"), 10, 32)
    groups = layer_groups(network.module)
    assert [
        network.head.startswith(group) or group.startswith(network.head) for group in groups
    ] == [True]


def test_modules_without_parts() -> None:
    assert list(layer_groups(nn.Linear(2, 3))) == ["weight", "bias"]
    assert layer_groups(nn.ReLU()) == {}
    assert list(layer_groups(nn.Sequential(nn.Linear(2, 3)))) == ["0"]


def test_any_number_of_groups() -> None:
    module = torchvision.models.resnet18()
    assert list(layer_groups(module, 3)) == ["conv1", "bn1-layer4", "fc"]
    assert list(layer_groups(module, 1)) == ["conv1-fc"]


def test_kernels_are_told_from_biases_and_factors() -> None:
    convolution, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    assert [id(one) for one in kernels([*convolution.parameters(), *norm.parameters()])] == [
        id(convolution.weight)
    ]
    assert len(kernels(list(norm.parameters()))) == 2


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_all_of_few_values_are_taken(memory_format: torch.memory_format) -> None:
    tensors = [torch.randn(4, 3, 3, 3).to(memory_format=memory_format), torch.randn(5, 2)]
    values = subsample(tensors)
    assert sorted(values) == sorted(
        [*tensors[0].flatten().tolist(), *tensors[1].flatten().tolist()]
    )


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_many_values_are_thinned_evenly(memory_format: torch.memory_format) -> None:
    # Each place of the kernel has a value of its own.
    kernel = (
        torch.arange(9.0)
        .reshape(3, 3)
        .expand(512, 256, 3, 3)
        .contiguous(memory_format=memory_format)
    )
    values = subsample([kernel, torch.full((300_000,), 9.0)])
    assert MOST_VALUES / 3 < len(values) <= MOST_VALUES + 2
    _, counts = np.unique(values, return_counts=True)
    assert counts[:9] / counts[:9].sum() == pytest.approx(1 / 9, rel=0.01)
    assert counts[9] / counts.sum() == pytest.approx(300_000 / (300_000 + kernel.numel()), rel=0.01)


@pytest.mark.parametrize("number", [1, 10, 1000, 100_000])
def test_a_histogram_counts_every_value(number: int) -> None:
    values = torch.randn(number, generator=torch.Generator().manual_seed(0)).numpy()
    edges, counts = histogram(values)
    assert len(edges) == len(counts) + 1 and 20 <= len(counts) <= 120
    assert counts.sum() == number
    assert edges[0] < values.min() and values.max() < edges[-1]
    assert (np.diff(edges) > 0).all()


@pytest.mark.parametrize("value", [0.0, 1.0, -300.0, 1e-12])
def test_equal_values_have_a_histogram(value: float) -> None:
    edges, counts = histogram(np.full(64, value, np.float32))
    assert counts.sum() == counts.max() == 64
    assert (np.diff(edges) > 0).all()


def test_extreme_values_lie_in_the_middle_of_a_bin() -> None:
    edges, counts = histogram(np.array([0.0, 1.0] * 32, np.float32))
    assert counts[0] == counts[-1] == 32
    assert (edges[:2].mean(), edges[-2:].mean()) == pytest.approx((0, 1), abs=1e-6)
