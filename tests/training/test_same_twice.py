"""The same configuration, seed and number of threads give the same bits.

So it is for each kind of layer that families of networks have.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import Configuration
from pipeline.data.prepare_data import prepare
from pipeline.training.fit import fit
from tests.conftest import thorough_of
from tests.training.small_training import TIMES, build_context

pytestmark = pytest.mark.slow

SIZES = {"maxvit_t": 224, "inception_v3": 96, "vit_b_16": 32, "swin_t": 32, "small_cnn": 16}
FAMILIES = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "small_cnn",
    "squeezenet1_1",
    "swin_t",
    "timm/efficientnet_lite0",
    "vgg11_bn",
    "vit_b_16",
]


# More threads than one could add up in another order each time; where other tests run beside, they
# are slow.
TWO_THREADS = ("resnet18", "densenet121", "swin_t")


@pytest.fixture
def threads(name: str) -> Iterator[None]:
    torch.set_num_threads(2 if name in TWO_THREADS else 1)
    yield
    torch.set_num_threads(1)


def trained(
    configuration: Configuration, folder: Path
) -> tuple[list[dict[str, float]], dict[str, bytes]]:
    folder.mkdir()
    prepared = prepare(configuration.data, folder.parent / "prepared")
    setting = build_context(configuration, prepared, folder)
    fitted = fit(configuration, setting)
    weights = {
        name: value.numpy().tobytes() for name, value in setting.network.module.state_dict().items()
    }
    return [
        {name: value for name, value in epoch.items() if name not in TIMES}
        for epoch in fitted.history
    ], weights


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    "name", thorough_of(FAMILIES, ["resnet18", "small_cnn", "shufflenet_v2_x0_5", "squeezenet1_1"])
)
def test_each_family_of_networks_trains_to_the_same_bits_twice(name: str, tmp_path: Path) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm", reason="needs the extra timm")
    raw: dict[str, Any] = {
        "data": {
            "source": "digits",
            "image_size": SIZES.get(name, 64),
            "batch_size": 4,
            "limit": 10,
            "augment": [{"RandomRotation": 20}],
        },
        "model": {"name": name, "dropout": 0.0 if name == "squeezenet1_1" else 0.2},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "training": {"epochs": 1, "device": "cpu"},
    }
    configuration = Configuration.model_validate(raw)
    assert trained(configuration, tmp_path / "first") == trained(configuration, tmp_path / "second")
