"""Networks by name, their heads, and one's own."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline import models
from pipeline.config import Model
from pipeline.errors import UserError
from pipeline.training.inference import set_training_mode
from tests.conftest import thorough_of

SMALL = [
    "resnet18",
    "squeezenet1_1",
    "densenet121",
    "mobilenet_v3_small",
    "mnasnet0_5",
    "shufflenet_v2_x0_5",
    "small_cnn",
]


def parameter_names(module: nn.Module, prefix: str) -> set[str]:
    return {name for name, _ in module.named_parameters() if name.startswith(prefix)}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_torchvisions_classification_networks_and_ours_are_named() -> None:
    assert {
        "densenet264",
        "small_cnn",
        "resnet18",
        "vit_b_16",
        "swin_v2_s",
        "efficientnet_b0",
    } <= set(models.names())
    assert not {
        "fcn_resnet50",
        "raft_large",
        "fasterrcnn_resnet50_fpn",
        "quantized_resnet18",
    } & set(models.names())


@pytest.mark.parametrize("name", thorough_of(models.names(), [*SMALL, "densenet264"]))
def test_each_network_classifies_into_three(name: str) -> None:
    network = models.build(Model(name=name), 3, 224, device="meta")
    assert network.module.eval()(torch.zeros(2, 3, 224, 224, device="meta")).shape == (2, 3)
    assert parameter_names(network.module, f"{network.head}.")
    assert network.normalisation is None


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("resnet18", "fc"),
        ("squeezenet1_1", "classifier.1"),
        ("densenet121", "classifier"),
        ("vit_b_16", "heads.head"),
        ("swin_t", "head"),
        ("small_cnn", "fc"),
    ],
)
def test_the_head_is_made_for_the_classes(name: str, head: str) -> None:
    network = models.build(Model(name=name), 7, 224, device="meta")
    layer = network.module.get_submodule(head)
    assert network.head == head
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    assert layer.weight.shape[0] == 7


@pytest.mark.parametrize("size", [8, 32, 37, 64])
def test_small_cnn_takes_images_of_any_size(size: int) -> None:
    module = models.build(Model(name="small_cnn"), 5, size).module
    assert module(torch.zeros(2, 3, size, size)).shape == (2, 5)
    assert [type(layer) for layer in module].count(nn.Conv2d) == 3
    assert not [layer for layer in module if "Norm" in type(layer).__name__]


@pytest.mark.parametrize(
    ("name", "classes", "count"),
    [("resnet18", 1000, 11_689_512), ("densenet264", 1000, 33_337_704), ("small_cnn", 10, 26_154)],
)
def test_number_of_parameters(name: str, classes: int, count: int) -> None:
    assert (
        models.num_parameters(models.build(Model(name=name), classes, 224, device="meta").module)
        == count
    )


def test_densenet264_has_the_blocks_of_its_name() -> None:
    module = models.build(Model(name="densenet264"), 10, 224, device="meta").module
    blocks = [
        len(list(module.get_submodule(f"features.denseblock{number}").children()))
        for number in (1, 2, 3, 4)
    ]
    assert blocks == [6, 12, 64, 48]


@pytest.mark.parametrize("name", SMALL)
def test_dropout_acts_before_the_head_while_training_only(name: str) -> None:
    torch.manual_seed(0)
    network = models.build(Model(name=name, dropout=0.5), 4, 64)
    dropout, layer = network.module.get_submodule(network.head)  # type: ignore[misc]
    assert isinstance(dropout, nn.Dropout) and dropout.p == 0.5
    assert layer.weight.shape[0] == 4
    module, image = network.module.eval(), torch.rand(2, 3, 64, 64)
    assert torch.equal(module(image), module(image))
    module.get_submodule(network.head).train()
    assert not torch.equal(module(image), module(image))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("name", SMALL)
def test_a_frozen_backbone_stays_as_it_is(name: str, dropout: float) -> None:
    torch.manual_seed(0)
    network = models.build(Model(name=name, freeze="backbone", dropout=dropout), 4, 64)
    module, prefix = network.module, f"{network.head}."
    trained = {key for key, parameter in module.named_parameters() if parameter.requires_grad}
    assert trained and trained == parameter_names(module, prefix)
    before = copy.deepcopy(module.state_dict())
    set_training_mode(network, frozen=True)
    optimizer = torch.optim.SGD(
        [parameter for parameter in module.parameters() if parameter.requires_grad], lr=0.1
    )
    nn.functional.cross_entropy(module(torch.rand(4, 3, 64, 64)), torch.arange(4)).backward()
    optimizer.step()
    changed = {
        key for key, value in module.state_dict().items() if not torch.equal(value, before[key])
    }
    assert changed == trained


def test_nothing_is_frozen_by_default() -> None:
    module = models.build(Model(name="resnet18"), 4, 64, device="meta").module
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_training_updates_the_statistics_of_an_unfrozen_backbone() -> None:
    network = models.build(Model(name="resnet18"), 4, 64)
    before = network.module.state_dict()["bn1.running_mean"].clone()
    set_training_mode(network, frozen=False)
    network.module(torch.rand(2, 3, 64, 64))
    assert not torch.equal(network.module.state_dict()["bn1.running_mean"], before)


@pytest.mark.parametrize("weights", ["none", "DEFAULT"])
@pytest.mark.parametrize(
    "act",
    [
        models.origin,
        lambda model: models.check(model, 3, 64),
        lambda model: models.build(model, 3, 64),
    ],
    ids=["origin", "check", "build"],
)
def test_an_unknown_network_is_named_with_the_nearest(act: object, weights: str) -> None:
    with pytest.raises(UserError, match=r"unknown model\.name 'resnet81'; nearest: resnet18"):
        act(Model(name="resnet81", weights=weights))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("alexnet", 32),
        ("inception_v3", 64),
        ("vit_b_16", 100),
        ("maxvit_t", 100),
        ("densenet121", 16),
    ],
)
def test_images_that_do_not_fit_are_refused(name: str, size: int) -> None:
    with pytest.raises(UserError, match=f"model.name: {name} cannot .* data.image_size {size}: "):
        models.check(Model(name=name), 3, size)


def test_batches_of_one_are_refused_where_batch_norm_cannot_train_on_them() -> None:
    with pytest.raises(
        UserError, match=r"resnet18 cannot train on one image of .* BatchNorm needs two"
    ):
        models.check(Model(name="resnet18"), 3, 32, trains_on_one=True)
    for name, size, freeze in (
        ("resnet18", 64, "none"),
        ("resnet18", 32, "backbone"),
        ("small_cnn", 32, "none"),
        ("vit_b_16", 32, "none"),
    ):
        model = Model(name=name, freeze=freeze)  # type: ignore[arg-type]
        models.check(model, 3, size, trains_on_one=True)


@pytest.mark.parametrize(
    ("name", "size"),
    [("vit_b_16", 64), ("resnet18", 8), ("swin_t", 64), ("inception_v3", 299), ("small_cnn", 8)],
)
def test_images_of_other_sizes_that_fit_are_taken(name: str, size: int) -> None:
    models.check(Model(name=name), 3, size)
    module = models.build(Model(name=name), 3, size, device="meta").module.eval()
    assert module(torch.zeros(2, 3, size, size, device="meta")).shape == (2, 3)


def test_a_pretrained_transformer_keeps_its_size() -> None:
    with pytest.raises(
        UserError, match=r"vit_b_16 with weights DEFAULT needs data\.image_size 224, got 64"
    ):
        models.build(Model(name="vit_b_16", weights="DEFAULT"), 3, 64, device="meta")


OWN = """
from __future__ import annotations
from torch import nn

def build(num_classes: int) -> nn.Module:
    return nn.Sequential()

class Own(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, num_classes)

    def forward(self, images):
        return self.fc(self.body(images).mean((2, 3)))

def headless(num_classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))

def three(num_classes):
    return 3

def five(num_classes):
    return headless(5)
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(OWN)
    return tmp_path / "net.py"


def test_an_own_network_is_built(own: Path) -> None:
    model = Model(name=f"file:{own}:Own", freeze="backbone", dropout=0.1)
    models.check(model, 3, 16)
    network = models.build(model, 3, 16)
    assert network.module(torch.zeros(2, 3, 16, 16)).shape == (2, 3)
    assert network.head == "fc"
    assert {
        name for name, parameter in network.module.named_parameters() if parameter.requires_grad
    } == {"fc.1.weight", "fc.1.bias"}


def test_an_own_network_without_a_named_head_is_built(own: Path) -> None:
    network = models.build(Model(name=f"file:{own}:headless"), 3, 16)
    assert network.head == ""
    assert network.module(torch.zeros(2, 3, 16, 16)).shape == (2, 3)


def test_an_own_network_loads_its_weights(own: Path, tmp_path: Path) -> None:
    trained = models.build(Model(name=f"file:{own}:Own"), 3, 16).module
    torch.save(trained.state_dict(), tmp_path / "own.pt")
    again = models.build(
        Model(name=f"file:{own}:Own", weights=f"file:{tmp_path}/own.pt"), 3, 16
    ).module
    assert equal(again.state_dict(), trained.state_dict())


@pytest.mark.parametrize(
    ("name", "freeze", "expected"),
    [
        (
            "headless",
            "backbone",
            "needs a network with a head named one of fc, classifier, head, heads",
        ),
        ("built", "none", "has no function 'built'; nearest: build"),
        ("three", "none", "three must return a torch.nn.Module, got int"),
        ("five", "none", r"gives \(2, 5\) for two images; \(2, 3\) is needed"),
        ("build", "none", r"gives \(2, 3, 16, 16\) for two images; \(2, 3\) is needed"),
    ],
)
def test_an_own_network_that_cannot_be_used_is_refused(
    own: Path, name: str, freeze: str, expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        model = Model(name=f"file:{own}:{name}", freeze=freeze)  # type: ignore[arg-type]
        models.check(model, 3, 16)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def build(n) return n", "SyntaxError"),
        ("import no_such_module", "No module named 'no_such_module'"),
        ("def build(): ...", "TypeError"),
        ("def build(n): return nn.Linear(n, n)", "name 'nn' is not defined"),
        ("import torch\ndef build(n): return torch.zeros(2) @ torch.zeros(3)", "RuntimeError"),
        ("def build(n): return {}['layers']", "KeyError"),
    ],
)
def test_a_mistake_in_an_own_network_is_told(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "net.py").write_text(text)
    with pytest.raises(UserError, match=expected):
        models.build(Model(name=f"file:{tmp_path}/net.py:build"), 3, 16)


def test_an_own_network_may_use_a_dataclass(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        f"{OWN}\n"
        "from dataclasses import dataclass\n"
        "\n"
        "@dataclass\n"
        "class Width:\n"
        "    channels: int = 4\n"
    )
    assert models.build(Model(name=f"file:{tmp_path}/net.py:Own"), 3, 16).head == "fc"


@pytest.mark.parametrize("name", ["file:net.py", "file:net:build", "file:net.py:", "file:"])
def test_an_own_network_needs_file_and_function(name: str) -> None:
    with pytest.raises(UserError, match=r"must be file:PATH\.py:FUNCTION"):
        models.origin(Model(name=name))


def test_a_missing_own_file_is_named_with_the_nearest(own: Path) -> None:
    with pytest.raises(UserError, match=r"file '.*/nett\.py' does not exist; nearest: .*/net\.py"):
        models.origin(Model(name=f"file:{own.parent}/nett.py:build"))


@pytest.mark.parametrize("name", ["resnet18", "small_cnn"])
def test_the_size_of_a_network_is_that_of_its_file(name: str, tmp_path: Path) -> None:
    model = Model(name=name, freeze="backbone")
    module = models.build(model, 5, 32).module
    save_file(module.state_dict(), tmp_path / "weights.safetensors")
    size = models.find_size(model, 5, 32)
    assert 0 < (tmp_path / "weights.safetensors").stat().st_size - size.weights < 20_000
    head = [one for one in module.parameters() if one.requires_grad]
    assert size.trained == sum(4 * one.numel() for one in head) < size.weights
