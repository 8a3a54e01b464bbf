"""How the head of a network starts."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import scipy.stats
import timm
import torch
import torchvision
from torch import nn

from pipeline import models
from pipeline.config import Configuration, Model
from pipeline.models.state_dicts import load_state
from pipeline.tracking import names, stored_weights
from pipeline.tracking.tracked_run import TrackedRun
from pipeline.tracking.workspace import Workspace
from pipeline.training.checkpoint import save_weights, weights_of
from tests.models.published import publish_timms, published

CLASSES = 12
TIMMS = ("test_resnet", "test_convnext", "test_efficientnet", "test_vit", "mambaout_femto")


def starts_normally(layer: nn.Module) -> bool:
    """Whether the weights of a layer may be drawn from a normal distribution of deviation 0.01.

    Its bias, if it has one, must be 0.
    """
    weights = layer.get_parameter("weight").detach().flatten().double()
    # A sample's deviation is within 4 of its own standard errors; a uniform distribution of the
    # same one would fail the test of the shape.
    deviation, shape = weights.std().item(), scipy.stats.kstest(weights.numpy(), "norm", (0, 0.01))
    is_so_wide = abs(deviation - 0.01) < 4 * 0.01 / math.sqrt(2 * weights.numel())
    return (
        is_so_wide
        and shape.pvalue > 1e-4
        and not any(
            parameter.any() for name, parameter in layer.named_parameters() if name == "bias"
        )
    )


@pytest.mark.parametrize("classes", [CLASSES, 1000])
@pytest.mark.parametrize("name", TIMMS)
def test_a_head_on_timms_weights(cache: Path, name: str, classes: int) -> None:
    state = publish_timms(name, cache)
    network = models.build(Model(name=f"timm/{name}", weights="DEFAULT"), classes, 160)
    layer = network.module.get_submodule(network.head)
    assert starts_normally(layer) and layer.get_parameter("weight").shape[0] == classes
    # As many as the published ones are no reason to keep those: they are other people's classes, as
    # on torchvision's weights.
    assert classes == CLASSES or not torch.equal(
        layer.get_parameter("weight"), state[f"{network.head}.weight"]
    )


def test_all_of_several_heads(cache: Path) -> None:
    name = "deit_tiny_distilled_patch16_224"
    publish_timms(name, cache)
    module = models.build(Model(name=f"timm/{name}", weights="DEFAULT"), CLASSES, 224).module
    assert starts_normally(module.get_submodule("head")) and starts_normally(
        module.get_submodule("head_dist")
    )


OWN = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.Conv2d(3, 64, 3)
        self.classifier = nn.Linear(64, num_classes)
        nn.init.constant_(self.classifier.weight, 7.0)

    def forward(self, images):
        return self.classifier(self.body(images).mean((2, 3)))
"""


def trained_file(folder: Path, name: str, classes: int, drop: str = "") -> str:
    trained = models.build(Model(name=name), classes, 64)
    state = {
        key: value
        for key, value in weights_of(trained.module).items()
        if not drop or not key.startswith(f"{trained.head}.")
    }
    save_weights(state, folder / "best.safetensors")
    return f"file:{folder}/best.safetensors"


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("drop", ["", "head"])
@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "squeezenet1_1",
        "efficientnet_b0",
        "small_cnn",
        "timm/test_efficientnet",
        "file:{}/net.py:Net",
    ],
)
def test_a_head_on_weights_of_a_file(tmp_path: Path, name: str, drop: str, dropout: float) -> None:
    (tmp_path / "net.py").write_text(OWN)
    name = name.format(tmp_path)
    model = Model(name=name, weights=trained_file(tmp_path, name, 7, drop), dropout=dropout)
    network = models.build(model, CLASSES, 64)
    head = network.module.get_submodule(network.head)
    assert starts_normally(head[1] if dropout else head)  # type: ignore[index]


@pytest.mark.parametrize("name", ["efficientnet_b0", "timm/test_efficientnet"])
def test_a_head_that_a_file_brings_is_taken(tmp_path: Path, name: str) -> None:
    weights = trained_file(tmp_path, name, CLASSES)
    network = models.build(Model(name=name, weights=weights), CLASSES, 64)
    trained = load_state(
        models.build(Model(name=name), CLASSES, 64).module, tmp_path / "best.safetensors", name
    )
    assert not trained.keeps_head
    assert not starts_normally(network.module.get_submodule(network.head))


@pytest.mark.parametrize("form", ["runs:/{}/model", "models:/trained/1"])
def test_a_head_on_weights_of_a_run(workspace: Workspace, tmp_path: Path, form: str) -> None:
    trained_file(tmp_path, "efficientnet_b0", 7)
    with TrackedRun(workspace, "train", "r") as run:
        run.file(tmp_path / "best.safetensors", "checkpoint")
        run.configuration(Configuration(model=Model(name="efficientnet_b0")))
        run.json(names.PREPROCESSING, {"mean": [0.5] * 3, "std": [0.5] * 3})
    workspace.client.create_registered_model("trained")
    workspace.client.create_model_version("trained", f"runs:/{run.id}/model", run.id)
    network = models.build(
        stored_weights.resolve_weights(Model(name="efficientnet_b0", weights=form.format(run.id))),
        CLASSES,
        64,
    )
    assert starts_normally(network.module.get_submodule(network.head))


def test_without_weights_the_librarys_start_stays(tmp_path: Path) -> None:
    torch.manual_seed(0)
    built = models.build(Model(name="timm/test_efficientnet"), CLASSES, 64).module
    torch.manual_seed(0)
    assert torch.equal(
        built.classifier.weight,
        timm.create_model("test_efficientnet", num_classes=CLASSES).classifier.weight,
    )
    torch.manual_seed(0)
    built = models.build(Model(name="resnet18"), CLASSES, 64).module
    torch.manual_seed(0)
    features = torchvision.models.resnet18().fc.in_features
    assert torch.equal(built.fc.weight, nn.Linear(features, CLASSES).weight)


def test_a_relu_behind_the_head_lets_it_learn(cache: Path) -> None:
    with published("squeezenet1_1", cache):
        network = models.build(Model(name="squeezenet1_1", weights="DEFAULT"), CLASSES, 64)
    images = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    nn.functional.cross_entropy(network.module(images), torch.arange(8)).backward()
    gradient = network.module.get_submodule(network.head).get_parameter("weight").grad
    assert gradient is not None and gradient.abs().max() > 0
