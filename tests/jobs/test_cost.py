"""What a network costs, against numbers that are counted by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torchvision.models import vgg11
from torchvision.models.vision_transformer import VisionTransformer

from pipeline.jobs import cost
from pipeline.jobs.cost import BATCH, count_multiply_adds, measure_speed, weights_bytes


def small_network(depth: int = 1) -> nn.Sequential:
    """Return a convolution, further ones of four channels each, and a linear layer."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    for _ in range(depth - 1):
        network.extend([nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()])
    network.extend([nn.Flatten(), nn.Linear(4 * 8 * 8, 10)])
    return network.eval()


IMAGE = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_multiply_adds_of_convolutions_and_linear_layers() -> None:
    first = 8 * 8 * 4 * (3 * 3 * 3)
    linear = 4 * 8 * 8 * 10
    assert (first, linear) == (6912, 2560)
    assert count_multiply_adds(small_network(), IMAGE) == first + linear
    further = 8 * 8 * 4 * (4 * 3 * 3)
    assert count_multiply_adds(small_network(depth=3), IMAGE) == first + 2 * further + linear


def test_strides_and_groups_lessen_them() -> None:
    # 16 positions instead of 64; each output looks at one of the three channels.
    strided = nn.Conv2d(3, 6, 3, stride=2, padding=1)
    assert count_multiply_adds(strided, IMAGE) == 4 * 4 * 6 * (3 * 3 * 3)
    grouped = nn.Conv2d(3, 6, 3, padding=1, groups=3)
    assert count_multiply_adds(grouped, IMAGE) == 8 * 8 * 6 * (3 * 3)


def test_a_published_number_is_found_again() -> None:
    # torchvision's page of vgg11 says 7.61 billion.
    with torch.device("meta"):
        network, image = vgg11().eval(), torch.empty(1, 3, 224, 224)
    assert count_multiply_adds(network, image) / 1e9 == pytest.approx(7.61, abs=0.005)


def test_counting_leaves_a_network_as_it_is() -> None:
    network = small_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    count_multiply_adds(network, IMAGE)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not network.training
    # A frozen network is counted as any other.
    assert count_multiply_adds(network.requires_grad_(False), IMAGE) == 6912 + 2560


LAYERS, WIDTH, HIDDEN, TOKENS = 2, 16, 32, 17
"""Of a vision transformer: 16 patches of 8 by 8 pixels, and the class token."""


def transformer() -> VisionTransformer:
    return VisionTransformer(
        image_size=32,
        patch_size=8,
        num_layers=LAYERS,
        num_heads=2,
        hidden_dim=WIDTH,
        mlp_dim=HIDDEN,
        num_classes=10,
    ).eval()


def count_by_formula() -> int:
    """Return the multiply-adds of `transformer`."""
    patches = 16 * WIDTH * (3 * 8 * 8)
    query_key_value = TOKENS * WIDTH * (3 * WIDTH)
    # Each token is compared with each, and takes a share of each.
    attention = 2 * TOKENS * TOKENS * WIDTH
    output = TOKENS * WIDTH * WIDTH
    perceptron = 2 * TOKENS * WIDTH * HIDDEN
    head = WIDTH * 10
    return patches + LAYERS * (query_key_value + attention + output + perceptron) + head


PICTURE = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_the_multiply_adds_of_attention() -> None:
    assert count_multiply_adds(transformer(), PICTURE) == count_by_formula()


@pytest.mark.parametrize("trained", [[], ["heads"]])
def test_a_frozen_transformer_costs_as_much_as_another(trained: list[str]) -> None:
    network = transformer()
    expected = count_multiply_adds(network, PICTURE)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.partition(".")[0] in trained)
    assert count_multiply_adds(network, PICTURE) == expected


def test_the_size_of_the_weights_is_that_of_parameters_and_buffers() -> None:
    # Convolution 3 · 3 · 3 · 4 + 4, normalisation 4 · 4, linear 256 · 10 + 10, of four bytes each;
    # and the number of batches, of eight.
    assert weights_bytes(small_network()) == 4 * (112 + 16 + 2570) + 8
    assert weights_bytes(small_network().half()) == 2 * (112 + 16 + 2570) + 8
    assert weights_bytes(nn.ReLU()) == 0


@pytest.mark.parametrize(("depth", "images"), [(1, 1), (2, 5), (1, BATCH + 1)])
def test_a_speed_is_a_positive_number_however_many_images_there_are(
    depth: int, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "_LEAST_SECONDS", 0.02)
    speed = measure_speed(small_network(depth), IMAGE.repeat(images, 1, 1, 1))
    assert math.isfinite(speed) and speed > 0


class Clocked(nn.Module):
    """A network whose batches take the seconds that it is given, by its own clock."""

    def __init__(self, seconds: Iterator[float]) -> None:
        super().__init__()
        self.seconds = seconds
        self.now = 100.0
        self.sizes: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.now += next(self.seconds)
        self.sizes.append(len(images))
        return images


@pytest.mark.parametrize(
    ("seconds", "batches", "expected"),
    [
        # The time is over after the fifth. The first one allocates memory.
        ([0.01, 0.1, 0.05, 0.1, 0.08, 9.0], 5, BATCH / 0.05),
        # Four batches are measured even if they take longer.
        ([2.0, 1.0, 1.5, 1.0, 9.0], 4, BATCH / 1.0),
        # After ten seconds two of them have to do, or one.
        ([6.0, 5.0, 9.0], 2, BATCH / 5.0),
        ([20.0, 9.0], 1, BATCH / 20.0),
    ],
)
def test_speed_is_that_of_the_least_disturbed_batch(
    seconds: list[float], batches: int, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Clocked(iter(seconds))
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.jobs.cost.time.perf_counter", lambda: network.now)
        speed = measure_speed(network, IMAGE)
    assert speed == pytest.approx(expected)
    assert network.sizes == [BATCH] * batches
