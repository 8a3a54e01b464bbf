"""timm's networks: names, weights, heads."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from pipeline import models
from pipeline.config import Model
from pipeline.errors import UserError
from pipeline.models.batch_norm import synchronise_batch_norm
from tests.conftest import Cli

# Of different families, small enough to be built in a moment, and with heads under different names.
HEADS = {
    "test_resnet": "fc",
    "test_convnext": "head.fc",
    "test_efficientnet": "classifier",
    "test_vit": "head",
}


@pytest.mark.parametrize(("name", "head"), HEADS.items())
def test_the_head_is_made_for_the_classes(name: str, head: str) -> None:
    network = models.build(Model(name=f"timm/{name}", freeze="backbone", dropout=0.2), 3, 96)
    assert network.head == head
    assert network.module.eval()(torch.rand(2, 3, 96, 96)).shape == (2, 3)
    trained = {
        key for key, parameter in network.module.named_parameters() if parameter.requires_grad
    }
    assert trained == {f"{head}.1.weight", f"{head}.1.bias"}
    assert network.normalisation is None


@pytest.mark.parametrize(
    ("name", "size"),
    [("test_resnet", 64), ("test_vit", 64), ("vit_tiny_patch16_224", 96), ("regnety_002", 64)],
)
def test_images_of_other_sizes_are_taken(name: str, size: int) -> None:
    assert models.check(Model(name=f"timm/{name}"), 3, size) == ()
    assert models.build(Model(name=f"timm/{name}"), 3, size).module.eval()(
        torch.rand(1, 3, size, size)
    ).shape == (1, 3)


@pytest.mark.parametrize(
    ("name", "size"), [("test_vit", 8), ("inception_v3", 32), ("nest_tiny", 50)]
)
def test_images_that_do_not_fit_are_refused(name: str, size: int) -> None:
    with pytest.raises(
        UserError, match=rf"model\.name: timm/{name} cannot .* data\.image_size {size}: "
    ):
        models.check(Model(name=f"timm/{name}"), 3, size)


def test_a_network_of_several_heads_trains_whole_only() -> None:
    name = "timm/deit_tiny_distilled_patch16_224"
    models.check(Model(name=name), 3, 64)
    with pytest.raises(
        UserError, match=f"model.freeze: backbone needs a network with one head; {name} has several"
    ):
        models.check(Model(name=name, freeze="backbone"), 3, 64)


@pytest.mark.parametrize("weights", ["none", "DEFAULT"])
def test_an_unknown_network_is_named_with_the_nearest(weights: str) -> None:
    with pytest.raises(
        UserError,
        match=(
            r"unknown model\.name 'timm/efficientnet_light0'; nearest: timm/efficientnet_lite0; "
            "allowed: "
        ),
    ):
        models.check(Model(name="timm/efficientnet_light0", weights=weights), 3, 64)


def test_unknown_weights_are_named_with_what_is_allowed() -> None:
    expected = (
        r"unknown model\.weights 'a1_in2k' of timm/resnet18; nearest: a1_in1k; allowed: none, "
        "DEFAULT, a1_in1k, .*, file:PATH, "
    )
    with pytest.raises(UserError, match=expected):
        models.origin(Model(name="timm/resnet18", weights="a1_in2k"))


def test_without_timm_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, cli: Cli, quick: Path
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # type: ignore[arg-type]
    done = cli("train", "--config", quick, "--model.name", "timm/test_resnet")
    assert done.code == 2
    assert "pip install 'image-classifier-pipeline[timm]'" in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_a_training_is_exported_and_evaluated(cli: Cli, quick: Path) -> None:
    options = (
        "--model.name",
        "timm/test_resnet",
        "--model.freeze",
        "backbone",
        "--data.image_size",
        "32",
        "--training.epochs",
        "1",
    )
    assert cli("train", "--config", quick, *options).code == 0
    done = cli("evaluate", "--config", quick)
    assert done.code == 0, done.err


def test_weights_that_cannot_be_downloaded_say_where_to_put_them(cache: Path) -> None:
    file = cache / "hub" / "checkpoints" / "timm-test_resnet.r160_in1k.safetensors"
    with pytest.raises(UserError) as caught:
        models.check(Model(name="timm/test_resnet", weights="DEFAULT"), 3, 64)
    url = "https://huggingface.co/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"
    assert f"DEFAULT of timm/test_resnet cannot be downloaded from {url}" in caught.value.message
    assert caught.value.message.endswith(f"put that file at {file}")
    assert list(file.parent.iterdir()) == []


@pytest.mark.parametrize("weights", ["DEFAULT", "r160_in1k"])
@pytest.mark.parametrize("name", HEADS)
def test_weights_that_were_put_there_are_used(cache: Path, name: str, weights: str) -> None:
    torch.manual_seed(1)
    state = timm.create_model(name).state_dict()
    folder = cache / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    safetensors.torch.save_file(state, folder / f"timm-{name}.r160_in1k.safetensors")
    torch.manual_seed(2)
    model = Model(name=f"timm/{name}", weights=weights)
    network = models.build(model, 3, 160)
    loaded = network.module.state_dict()
    assert all(
        torch.equal(loaded[key], value)
        for key, value in state.items()
        if not key.startswith(f"{network.head}.")
    )
    assert loaded[f"{network.head}.weight"].shape[0] == 3
    settings = timm.get_pretrained_cfg(name)
    assert network.normalisation == (list(settings.mean), list(settings.std))
    models.check(model, 3, 160)


def test_a_file_of_the_networks_weights_brings_its_normalisation(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pt")
    network = models.build(Model(name="timm/test_resnet", weights=f"file:{tmp_path}/w.pt"), 3, 64)
    assert network.notes == (
        "its head (fc) is for 1000 classes; a new random one for 3 is trained",
        "images are normalised by mean 0.5, 0.5, 0.5 and standard deviation 0.5, 0.5, 0.5, those "
        "of timm's weights r160_in1k of timm/test_resnet: no preprocessing.json stands with the "
        "weights",
    )
    assert network.normalisation == ([0.5] * 3, [0.5] * 3)
    assert models.build(Model(name="timm/test_resnet"), 3, 64).normalisation is None


def test_a_damaged_file_is_refused_in_one_line(cache: Path) -> None:
    folder = cache / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "timm-test_resnet.r160_in1k.safetensors").write_bytes(b"<html>")
    with pytest.raises(UserError, match="is no state dict or safetensors file"):
        models.build(Model(name="timm/test_resnet", weights="DEFAULT"), 3, 64)


def test_batch_norm_over_processes_keeps_the_activations() -> None:
    network = models.build(Model(name="timm/efficientnet_lite0"), 3, 64).module.eval()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before, keys = network(images), network.state_dict().keys()
        converted = synchronise_batch_norm(network).eval()
        assert torch.equal(converted(images), before)
    assert converted.state_dict().keys() == keys
    assert any(isinstance(part, nn.SyncBatchNorm) for part in converted.modules())


def test_a_batch_norm_of_ones_own_is_no_plain_one() -> None:
    class Scaled(nn.BatchNorm2d):
        """Of its own kind."""

    with pytest.raises(UserError, match="Scaled, a BatchNorm of its own kind"):
        synchronise_batch_norm(nn.Sequential(nn.Conv2d(3, 3, 1), Scaled(3)))
