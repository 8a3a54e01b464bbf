"""Where a network looked."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch import nn

from pipeline.training.activation_maps import find_activation_maps

SIDE = 32


class Colours(nn.Module):
    """A network that tells red from green: the class is the colour that there is more of."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(4)
        self.mix = nn.Conv2d(3, 2, 1, bias=False)
        self.head = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.mix.weight.copy_(torch.eye(3)[:2, :, None, None])
            self.head.weight.copy_(torch.eye(2))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.mix(self.pool(images))).mean(dim=(2, 3)))


def red_and_green() -> torch.Tensor:
    """Return one image: red in the upper left corner, green in the lower right one."""
    image = torch.zeros(1, 3, SIDE, SIDE)
    image[0, 0, :8, :8] = 1
    image[0, 1, -8:, -8:] = 1
    return image


@pytest.mark.parametrize("frozen", [False, True])
def test_the_map_shows_what_speaks_for_the_class(frozen: bool) -> None:
    network = Colours().requires_grad_(not frozen)
    images = red_and_green().repeat(2, 1, 1, 1)
    maps = find_activation_maps(network, images, np.array([0, 1]))
    assert maps is not None and maps.shape == (2, 8, 8)
    expected = np.zeros((2, 8, 8))
    expected[0, :2, :2] = 1
    expected[1, -2:, -2:] = 1
    assert (maps == expected).all()


def test_many_images_are_answered_as_one_by_one() -> None:
    torch.manual_seed(0)
    network = timm.create_model("resnet18", num_classes=3)
    images = torch.randn(20, 3, SIDE, SIDE)
    classes = np.arange(20) % 3
    together = find_activation_maps(network, images, classes)
    assert together is not None
    for number in (0, 9, 19):
        chosen = slice(number, number + 1)
        alone = find_activation_maps(network, images[chosen], classes[chosen])
        assert alone is not None
        assert together[number] == pytest.approx(alone[0], abs=1e-3)


@pytest.mark.parametrize(
    ("name", "side"),
    [("resnet18", 4), ("vit_tiny_patch16_224", 4), ("swin_tiny_patch4_window7_224", 4)],
)
def test_convolutional_networks_and_transformers_have_maps(name: str, side: int) -> None:
    torch.manual_seed(0)
    size = {} if name == "resnet18" else {"img_size": 64}
    network = timm.create_model(name, num_classes=4, **size)
    nn.init.normal_(network.get_classifier().weight)
    maps = find_activation_maps(network, torch.randn(2, 3, 64, 64), np.array([1, 3]))
    assert maps is not None and maps.shape == (2, side, side)
    assert maps.max() == 1 and maps.min() == 0


def test_the_network_stays_as_it_was() -> None:
    network = timm.create_model("resnet18", num_classes=3).train()
    network.layer1.eval()
    modes = [module.training for module in network.modules()]
    state = {name: value.clone() for name, value in network.state_dict().items()}
    images = torch.randn(2, 3, SIDE, SIDE)
    with torch.inference_mode():
        assert find_activation_maps(network, images, np.array([0, 1])) is not None
    assert [module.training for module in network.modules()] == modes
    assert not any(module._forward_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]), name


class Unseen(nn.Module):
    """A network whose answer has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 2, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (self.mix(images) > 0).float().mean(dim=(2, 3))


class Broken(Colours):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) * float("nan")


@pytest.mark.parametrize(
    "network",
    [nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 2)), Unseen(), Broken()],
    ids=["no layer", "no gradient", "no number"],
)
def test_a_network_without_maps_is_no_error(network: nn.Module) -> None:
    assert find_activation_maps(network, red_and_green(), np.array([0])) is None


def test_no_images_have_no_maps() -> None:
    assert find_activation_maps(Colours(), torch.zeros(0, 3, 8, 8), np.zeros(0, np.int64)) is None


def test_a_map_without_differences_is_zero() -> None:
    maps = find_activation_maps(Colours(), torch.ones(1, 3, SIDE, SIDE), np.array([0]))
    assert maps is not None and not maps.any()
