"""Weights by name and from files: read, refused, loaded."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import safetensors.torch
import torch
import torchvision

from pipeline import models, weights
from pipeline.config import Model
from pipeline.errors import UserError
from pipeline.training.fit import save_weights
from tests.test_models import SMALL, equal

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def expected_file(cache: Path, entry: torchvision.models.WeightsEnum) -> Path:
    return cache / "hub" / "checkpoints" / Path(urlsplit(entry.url).path).name


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that weights are downloaded to, where nothing can be downloaded."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "torch"


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


@pytest.mark.parametrize("name", [*SMALL, "regnet_y_400mf"])
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
    torch.save(
        {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name): value for name, value in state.items() if "tracked" not in name},
        file,
    )
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
