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
from pipeline.config import Configuration, Model
from pipeline.errors import UserError
from pipeline.identity import config_hash
from pipeline.training.checkpoint import save_weights, weights_of
from tests.test_models import SMALL, equal

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def expected_file(cache: Path, entry: torchvision.models.WeightsEnum) -> Path:
    return cache / "hub" / "checkpoints" / Path(urlsplit(entry.url).path).name


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
    save_weights(weights_of(trained), tmp_path / "best.safetensors")
    again = models.build(Model(name=name), 3, 64, load=False).module
    weights.load_state(again, tmp_path / "best.safetensors", name)
    assert equal(again.state_dict(), trained.state_dict())


@pytest.mark.parametrize(
    "act", [lambda model: models.check(model, 4, 32), lambda model: models.build(model, 4, 32)], ids=["check", "build"]
)
def test_weights_of_another_architecture_are_refused_by_name(tmp_path: Path, act: object) -> None:
    torch.save(models.SmallCNN(4).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"of another architecture than resnet18: \d+ tensors differ") as caught:
        act(Model(name="resnet18", weights=f"file:{tmp_path}/weights.pt"))  # type: ignore[operator]
    assert caught.value.findings[0] == "missing: bn1.weight"
    assert re.fullmatch(r"and \d+ more", caught.value.findings[-1])


@pytest.mark.parametrize(
    "act", [lambda model: models.check(model, 4, 32), lambda model: models.build(model, 4, 32)], ids=["check", "build"]
)
@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("conv2.weight", (32, 16, 5, 5), "conv2.weight: (32, 16, 5, 5) in the file, (32, 16, 3, 3) in small_cnn"),
        ("fc.weight", (4, 99), "fc.weight: (4, 99) in the file, (4, 256) in small_cnn"),
        ("conv2.weight", None, "missing: conv2.weight"),
        ("fc.bias", None, "missing: fc.bias"),
        ("conv9.weight", (1,), "not in small_cnn: conv9.weight"),
    ],
)
def test_any_other_difference_is_refused_by_name_and_shape(
    tmp_path: Path, act: object, name: str, shape: tuple[int, ...] | None, expected: str
) -> None:
    state = models.SmallCNN(4).state_dict()
    if shape is None:
        del state[name]
    else:
        state[name] = torch.zeros(shape)
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"weights\.pt' is of another architecture than small_cnn: 1 tensor differs") as caught:
        act(Model(name="small_cnn", weights=f"file:{tmp_path}/weights.pt"))  # type: ignore[operator]
    assert caught.value.findings == [expected]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("name", SMALL)
def test_a_head_for_another_number_of_classes_is_replaced_and_said(tmp_path: Path, name: str, dropout: float) -> None:
    trained = models.build(Model(name=name), 7, 64)
    save_weights(weights_of(trained.module), tmp_path / "best.safetensors")
    model = Model(name=name, weights=f"file:{tmp_path}/best.safetensors", dropout=dropout)
    network = models.build(model, 4, 64)
    assert network.note == f"its head ({network.head}) is for 7 classes; a new random one for 4 is trained"
    assert models.check(model, 4, 64) == network.note
    loaded, state = network.module.state_dict(), trained.module.state_dict()
    backbone = [key for key in state if not key.startswith(f"{network.head}.")]
    assert backbone and all(torch.equal(loaded[key], state[key]) for key in backbone)
    assert network.module.eval()(torch.rand(2, 3, 64, 64)).shape == (2, 4)


def test_a_missing_head_is_replaced_and_said(tmp_path: Path) -> None:
    state = {key: value for key, value in models.SmallCNN(4).state_dict().items() if not key.startswith("fc.")}
    torch.save(state, tmp_path / "weights.pt")
    network = models.build(Model(name="small_cnn", weights=f"file:{tmp_path}/weights.pt"), 4, 32)
    assert network.note == "it has no head (fc); a new random one is trained"
    assert all(torch.equal(network.module.state_dict()[key], value) for key, value in state.items())


def test_a_head_of_the_same_shape_is_loaded_and_nothing_said(tmp_path: Path) -> None:
    torch.save(models.SmallCNN(4).state_dict(), tmp_path / "weights.pt")
    assert models.check(Model(name="small_cnn", weights=f"file:{tmp_path}/weights.pt"), 4, 32) == ""


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_torchvisions_published_files_are_loaded_by_path(tmp_path: Path, name: str) -> None:
    torch.manual_seed(1)
    state = torchvision.models.get_model(name).state_dict()
    # The published files are older than the count of batches, and than the network's names of DenseNet's layers.
    torch.save(published(state), tmp_path / "weights.pth")
    network = models.build(Model(name=name, weights=f"file:{tmp_path}/weights.pth"), 3, 64)
    loaded = network.module.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items() if not key.startswith(f"{network.head}."))


def published(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state dict under the names of torchvision's published files."""
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): value for key, value in state.items() if "tracked" not in key}


@pytest.mark.parametrize("folder", ["any", "checkpoint"])
def test_the_normalisation_that_stands_with_a_file_is_used(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    torch.save(models.SmallCNN(4).state_dict(), tmp_path / folder / "best.pt")
    # Among a run's artifacts the weights are one folder below it.
    place = tmp_path if folder == "checkpoint" else tmp_path / folder
    (place / "preprocessing.json").write_text('{"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "image_size": 32}')
    network = models.build(Model(name="small_cnn", weights=f"file:{tmp_path}/{folder}/best.pt"), 4, 32)
    assert network.normalisation == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])


def test_a_file_alone_takes_the_normalisation_of_the_data(tmp_path: Path) -> None:
    torch.save(models.SmallCNN(4).state_dict(), tmp_path / "best.pt")
    assert models.build(Model(name="small_cnn", weights=f"file:{tmp_path}/best.pt"), 4, 32).normalisation is None


@pytest.mark.parametrize(
    "text", ["", "[]", '{"mean": [0, 0, 0]}', '{"mean": [0, 0, 0], "std": [1, 1]}', '{"mean": [0, 0, 0], "std": [0, 1, 1]}']
)
def test_a_normalisation_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    torch.save(models.SmallCNN(4).state_dict(), tmp_path / "best.pt")
    (tmp_path / "preprocessing.json").write_text(text)
    with pytest.raises(UserError, match=r"preprocessing\.json' must hold mean and std, three numbers each, for best\.pt"):
        models.check(Model(name="small_cnn", weights=f"file:{tmp_path}/best.pt"), 4, 32)


@pytest.mark.parametrize(
    ("name", "stands_for"), [("resnet18", "IMAGENET1K_V1"), ("resnet50", "IMAGENET1K_V2"), ("timm/resnet18", "a1_in1k")]
)
def test_default_and_the_name_it_stands_for_have_one_hash(name: str, stands_for: str) -> None:
    hashes = {
        weights: config_hash(Configuration(model=Model(name=name, weights=weights)), models.origin(Model(name=name, weights=weights)))
        for weights in ("none", "DEFAULT", stands_for)
    }
    assert hashes["DEFAULT"] == hashes[stands_for] != hashes["none"]


def test_two_files_of_one_content_have_one_hash_and_another_content_another(tmp_path: Path) -> None:
    for name, content in (("a.pt", b"one"), ("b.pt", b"one"), ("c.pt", b"two")):
        (tmp_path / name).write_bytes(content)
    one, same, other = (models.origin(Model(weights=f"file:{tmp_path}/{name}.pt"))["weights"] for name in "abc")
    assert one == same != other


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
    torch.save(published(state), file)
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
