"""Networks by name, their heads and their weights."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from pipeline import models
from pipeline.config import Model
from pipeline.errors import UserError
from pipeline.training.fit import save_weights, set_training_mode

SMALL = ["resnet18", "squeezenet1_1", "densenet121", "mobilenet_v3_small", "mnasnet0_5", "shufflenet_v2_x0_5", "small_cnn"]
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def parameter_names(module: nn.Module, prefix: str) -> set[str]:
    return {name for name, _ in module.named_parameters() if name.startswith(prefix)}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def expected_file(cache: Path, weights: torchvision.models.WeightsEnum) -> Path:
    return cache / "hub" / "checkpoints" / Path(urlsplit(weights.url).path).name


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute in one thread: tiny batches gain nothing from a second one, which waits where another process needs the core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that weights are downloaded to, where nothing can be downloaded."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "torch"


def test_torchvisions_classification_networks_and_ours_are_named() -> None:
    assert {"densenet264", "small_cnn", "resnet18", "vit_b_16", "swin_v2_s", "efficientnet_b0"} <= set(models.names())
    assert not {"fcn_resnet50", "raft_large", "fasterrcnn_resnet50_fpn", "quantized_resnet18"} & set(models.names())


@pytest.mark.parametrize("name", models.names())
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
    ("name", "classes", "count"), [("resnet18", 1000, 11_689_512), ("densenet264", 1000, 33_337_704), ("small_cnn", 10, 26_154)]
)
def test_number_of_parameters(name: str, classes: int, count: int) -> None:
    assert models.num_parameters(models.build(Model(name=name), classes, 224, device="meta").module) == count


def test_densenet264_has_the_blocks_of_its_name() -> None:
    module = models.build(Model(name="densenet264"), 10, 224, device="meta").module
    blocks = [len(list(module.get_submodule(f"features.denseblock{number}").children())) for number in (1, 2, 3, 4)]
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
    optimizer = torch.optim.SGD([parameter for parameter in module.parameters() if parameter.requires_grad], lr=0.1)
    nn.functional.cross_entropy(module(torch.rand(4, 3, 64, 64)), torch.arange(4)).backward()
    optimizer.step()
    changed = {key for key, value in module.state_dict().items() if not torch.equal(value, before[key])}
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


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_a_weights_file_is_loaded(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(1)
    state = models.SmallCNN(4).state_dict()
    file = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(state, file)
    else:
        torch.save(state, file)
    torch.manual_seed(2)
    network = models.build(Model(name="small_cnn", weights=f"file:{file}"), 4, 32)
    assert equal(network.module.state_dict(), state)
    models.check(Model(name="small_cnn", weights=f"file:{file}"), 4, 32)


def test_a_state_dict_inside_a_checkpoint_is_loaded(tmp_path: Path) -> None:
    state = models.SmallCNN(4).state_dict()
    torch.save({"state_dict": state}, tmp_path / "checkpoint.pt")
    network = models.build(Model(name="small_cnn", weights=f"file:{tmp_path}/checkpoint.pt"), 4, 32)
    assert equal(network.module.state_dict(), state)


def test_load_false_leaves_the_weights_file_alone(tmp_path: Path) -> None:
    network = models.build(Model(name="small_cnn", weights=f"file:{tmp_path}/gone.pt"), 4, 32, load=False)
    assert network.module(torch.zeros(1, 3, 32, 32)).shape == (1, 4)


@pytest.mark.parametrize("name", [*SMALL, "googlenet", "efficientnet_b0", "regnet_y_400mf"])
def test_saved_weights_are_loaded_back(tmp_path: Path, name: str) -> None:
    trained = models.build(Model(name=name), 3, 64).module
    save_weights(trained, tmp_path / "best.safetensors")
    again = models.build(Model(name=name), 3, 64, load=False).module
    weights.load_state(again, tmp_path / "best.safetensors", name)
    assert equal(again.state_dict(), trained.state_dict())


@pytest.mark.parametrize(
    "act", [lambda model: models.check(model, 4, 32), lambda model: models.build(model, 4, 32)], ids=["check", "build"]
)
def test_weights_of_another_architecture_are_refused_by_name(tmp_path: Path, act: object) -> None:
    torch.save(models.SmallCNN(4).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"another architecture .* than resnet18: \d+ tensors differ") as caught:
        act(Model(name="resnet18", weights=f"file:{tmp_path}/weights.pt"))  # type: ignore[operator]
    assert caught.value.findings[0] == "missing: bn1.weight"
    assert re.fullmatch(r"and \d+ more", caught.value.findings[-1])


@pytest.mark.parametrize(
    "act", [lambda model: models.check(model, 4, 32), lambda model: models.build(model, 4, 32)], ids=["check", "build"]
)
def test_weights_for_another_number_of_classes_are_refused_by_shape(tmp_path: Path, act: object) -> None:
    torch.save(models.SmallCNN(7).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(UserError, match="number of classes") as caught:
        act(Model(name="small_cnn", weights=f"file:{tmp_path}/weights.pt"))  # type: ignore[operator]
    assert caught.value.findings == [
        "fc.weight: (7, 256) in the file, (4, 256) in small_cnn",
        "fc.bias: (7,) in the file, (4,) in small_cnn",
    ]


class Pickled:
    """What must not be unpickled: it would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('unpickled')",)


def test_a_pickled_object_is_refused_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(pickle.dumps(Pickled()))
    with pytest.raises(UserError, match="is no state dict or safetensors file"):
        weights.read_state(tmp_path / "weights.pt")


def test_a_pickled_network_is_refused(tmp_path: Path) -> None:
    torch.save(models.SmallCNN(4), tmp_path / "network.pt")
    with pytest.raises(UserError, match="is no state dict or safetensors file"):
        models.build(Model(name="small_cnn", weights=f"file:{tmp_path}/network.pt"), 4, 32)


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights", b"\x00" * 100], ids=["empty", "text", "zeros"])
def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="is no state dict or safetensors file"):
        weights.read_state(tmp_path / name)


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"epoch": 3, "weight": torch.zeros(2)}, torch.zeros(2)])
def test_tensors_that_are_no_state_dict_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(UserError, match="holds no state dict"):
        weights.read_state(tmp_path / "weights.pt")


def test_a_missing_weights_file_is_named_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").touch()
    model = Model(name="small_cnn", weights=f"file:{tmp_path}/weight.pt")
    with pytest.raises(UserError, match=r"model\.weights: file '.*/weight\.pt' does not exist; nearest: .*/weights\.pt"):
        models.check(model, 4, 32)


@pytest.mark.parametrize("weights", ["none", "DEFAULT"])
@pytest.mark.parametrize(
    "act",
    [models.origin, lambda model: models.check(model, 3, 64), lambda model: models.build(model, 3, 64)],
    ids=["origin", "check", "build"],
)
def test_an_unknown_network_is_named_with_the_nearest(act: object, weights: str) -> None:
    with pytest.raises(UserError, match="unknown model.name 'resnet81'; nearest: resnet18"):
        act(Model(name="resnet81", weights=weights))  # type: ignore[operator]


@pytest.mark.parametrize(("given", "close"), [("IMAGENET1K_V9", "IMAGENET1K_V2"), ("default", ""), ("imagenet", "")])
def test_unknown_weights_are_named_with_what_is_allowed(given: str, close: str) -> None:
    with pytest.raises(UserError, match=f"unknown model.weights '{given}' of resnet50") as caught:
        models.origin(Model(name="resnet50", weights=given))
    assert "allowed: none, IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT, file:PATH" in caught.value.message
    assert not close or f"nearest: {close[:-1]}" in caught.value.message


@pytest.mark.parametrize("name", sorted(models.OURS))
def test_our_networks_have_no_pretrained_weights(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} has no pretrained weights"):
        models.origin(Model(name=name, weights="DEFAULT"))


def test_weights_that_cannot_be_downloaded_say_where_to_put_them(cache: Path) -> None:
    file = expected_file(cache, torchvision.models.ResNet18_Weights.IMAGENET1K_V1)
    with pytest.raises(UserError) as caught:
        models.check(Model(name="resnet18", weights="DEFAULT"), 3, 64)
    assert "DEFAULT of resnet18 cannot be downloaded from https://" in caught.value.message
    assert caught.value.message.endswith(f"put that file at {file}")
    assert list(file.parent.iterdir()) == []


def test_weights_that_were_put_there_are_used(cache: Path) -> None:
    torch.manual_seed(1)
    state = torchvision.models.resnet18(num_classes=1000).state_dict()
    file = expected_file(cache, torchvision.models.ResNet18_Weights.IMAGENET1K_V1)
    file.parent.mkdir(parents=True)
    torch.save(state, file)
    torch.manual_seed(2)
    network = models.build(Model(name="resnet18", weights="DEFAULT"), 3, 64)
    loaded = network.module.state_dict()
    assert {name: tuple(value.shape) for name, value in loaded.items() if name.startswith("fc.")} == {
        "fc.weight": (3, 512),
        "fc.bias": (3,),
    }
    assert all(torch.equal(loaded[name], value) for name, value in state.items() if not name.startswith("fc."))
    assert network.normalisation == IMAGENET
    models.check(Model(name="resnet18", weights="DEFAULT"), 3, 64)


def test_densenets_weights_are_used_with_the_names_of_torchvisions_file(cache: Path) -> None:
    torch.manual_seed(1)
    state = torchvision.models.densenet121().state_dict()
    file = expected_file(cache, torchvision.models.DenseNet121_Weights.IMAGENET1K_V1)
    file.parent.mkdir(parents=True)
    # torchvision's published file has norm.1 where the network has norm1.
    torch.save({re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name): value for name, value in state.items()}, file)
    loaded = models.build(Model(name="densenet121", weights="DEFAULT"), 3, 64).module.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items() if not name.startswith("classifier."))


def test_inceptions_auxiliary_heads_are_left_out(cache: Path) -> None:
    torch.manual_seed(1)
    state = torchvision.models.googlenet(aux_logits=True, init_weights=False).state_dict()
    file = expected_file(cache, torchvision.models.GoogLeNet_Weights.IMAGENET1K_V1)
    file.parent.mkdir(parents=True)
    torch.save(state, file)
    module = models.build(Model(name="googlenet", weights="DEFAULT"), 3, 64).module
    assert module.train()(torch.rand(2, 3, 64, 64)).shape == (2, 3)
    assert torch.equal(module.state_dict()["conv1.conv.weight"], state["conv1.conv.weight"])


@pytest.mark.parametrize(
    ("name", "size"), [("alexnet", 32), ("inception_v3", 64), ("vit_b_16", 100), ("maxvit_t", 100), ("densenet121", 16)]
)
def test_images_that_do_not_fit_are_refused(name: str, size: int) -> None:
    with pytest.raises(UserError, match=f"model.name: {name} cannot .* data.image_size {size}: "):
        models.check(Model(name=name), 3, size)


@pytest.mark.parametrize(("name", "size"), [("vit_b_16", 64), ("resnet18", 8), ("swin_t", 64), ("inception_v3", 299), ("small_cnn", 8)])
def test_images_of_other_sizes_that_fit_are_taken(name: str, size: int) -> None:
    models.check(Model(name=name), 3, size)
    module = models.build(Model(name=name), 3, size, device="meta").module.eval()
    assert module(torch.zeros(2, 3, size, size, device="meta")).shape == (2, 3)


def test_a_pretrained_transformer_keeps_its_size(cache: Path) -> None:
    with pytest.raises(UserError, match=r"vit_b_16 with weights DEFAULT needs data\.image_size 224, got 64"):
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
    assert {name for name, parameter in network.module.named_parameters() if parameter.requires_grad} == {"fc.1.weight", "fc.1.bias"}
    assert models.source_file(model) == own


def test_an_own_network_without_a_named_head_is_built(own: Path) -> None:
    network = models.build(Model(name=f"file:{own}:headless"), 3, 16)
    assert network.head == ""
    assert network.module(torch.zeros(2, 3, 16, 16)).shape == (2, 3)


def test_an_own_network_loads_its_weights(own: Path, tmp_path: Path) -> None:
    trained = models.build(Model(name=f"file:{own}:Own"), 3, 16).module
    torch.save(trained.state_dict(), tmp_path / "own.pt")
    again = models.build(Model(name=f"file:{own}:Own", weights=f"file:{tmp_path}/own.pt"), 3, 16).module
    assert equal(again.state_dict(), trained.state_dict())


@pytest.mark.parametrize(
    ("name", "freeze", "expected"),
    [
        ("headless", "backbone", "needs a network with a head named one of fc, classifier, head, heads"),
        ("built", "none", "has no function 'built'; nearest: build"),
        ("three", "none", "three must return a torch.nn.Module, got int"),
        ("five", "none", r"gives \(2, 5\) for two images; \(2, 3\) is needed"),
        ("build", "none", r"gives \(2, 3, 16, 16\) for two images; \(2, 3\) is needed"),
    ],
)
def test_an_own_network_that_cannot_be_used_is_refused(own: Path, name: str, freeze: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        models.check(Model(name=f"file:{own}:{name}", freeze=freeze), 3, 16)  # type: ignore[arg-type]


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
    (tmp_path / "net.py").write_text(f"{OWN}\nfrom dataclasses import dataclass\n\n@dataclass\nclass Width:\n    channels: int = 4\n")
    assert models.build(Model(name=f"file:{tmp_path}/net.py:Own"), 3, 16).head == "fc"


@pytest.mark.parametrize("name", ["file:net.py", "file:net:build", "file:net.py:", "file:"])
def test_an_own_network_needs_file_and_function(name: str) -> None:
    with pytest.raises(UserError, match=r"must be file:PATH\.py:FUNCTION"):
        models.origin(Model(name=name))


def test_a_missing_own_file_is_named_with_the_nearest(own: Path) -> None:
    with pytest.raises(UserError, match=r"file '.*/nett\.py' does not exist; nearest: .*/net\.py"):
        models.origin(Model(name=f"file:{own.parent}/nett.py:build"))


def test_only_an_own_network_has_a_source_file() -> None:
    assert models.source_file(Model(name="resnet18")) is None
