"""Weights by name and by place, and the normalisation they bring."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
import torchvision

from pipeline import models
from pipeline.config import Configuration, Model
from pipeline.errors import UserError
from pipeline.identity import FIRST_RELEASE, config_hash
from pipeline.models import torchvision_weights
from pipeline.models.builtin_models import BUILDERS
from tests.conftest import Cli
from tests.models.published import entry_of, publish_timms, published
from tests.models.test_state_dicts import without_counts

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def expected_file(cache: Path, entry: torchvision.models.WeightsEnum) -> Path:
    return cache / "hub" / "checkpoints" / Path(urlsplit(entry.url).path).name


@pytest.mark.parametrize("folder", ["any", "checkpoint"])
def test_the_normalisation_that_stands_with_a_file_is_used(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    torch.save(models.SmallCNN(4).state_dict(), tmp_path / folder / "best.pt")
    # Among a run's artifacts the weights are one folder below it.
    place = tmp_path if folder == "checkpoint" else tmp_path / folder
    (place / "preprocessing.json").write_text(
        '{"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "image_size": 32}'
    )
    network = models.build(
        Model(name="small_cnn", weights=f"file:{tmp_path}/{folder}/best.pt"), 4, 32
    )
    assert network.normalisation == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])


def test_a_file_alone_takes_the_normalisation_of_the_data(tmp_path: Path) -> None:
    torch.save(models.SmallCNN(4).state_dict(), tmp_path / "best.pt")
    assert (
        models.build(
            Model(name="small_cnn", weights=f"file:{tmp_path}/best.pt"), 4, 32
        ).normalisation
        is None
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"mean": [0, 0, 0]}',
        '{"mean": [0, 0, 0], "std": [1, 1]}',
        '{"mean": [0, 0, 0], "std": [0, 1, 1]}',
        '{"mean": [0, 0, 0], "std": [1, 1, NaN]}',
        '{"mean": [0, 0, Infinity], "std": [1, 1, 1]}',
        '{"mean": [0, 0, 0], "std": [1, 1, 1' + "0" * 400 + "]}",
        '{"mean": ["0", "0", "0"], "std": [1, 1, 1]}',
        '{"mean": [[0.1], [0.2], [0.3]], "std": [1, 1, 1]}',
        '{"mean": {"r": 0.1, "g": 0.2, "b": 0.3}, "std": [1, 1, 1]}',
        '{"preprocessing": {"mean": [0, 0, 0], "std": [1, 1, 1]}}',
        '{"mean": "123", "std": [1, 1, 1]}',
        '{"mean": null, "std": true}',
        "[" * 100_000,
        '{"mean": ' * 100_000,
        "\ufeff\u0000",
    ],
    ids=range(17),
)
def test_a_normalisation_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    torch.save(models.SmallCNN(4).state_dict(), tmp_path / "best.pt")
    (tmp_path / "preprocessing.json").write_text(text)
    for act in (models.check, models.build):
        with pytest.raises(
            UserError,
            match=r"preprocessing\.json' must hold mean and std, three numbers each, for best\.pt$",
        ) as caught:
            act(Model(name="small_cnn", weights=f"file:{tmp_path}/best.pt"), 4, 32)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "stands_for"),
    [("resnet18", "IMAGENET1K_V1"), ("resnet50", "IMAGENET1K_V2"), ("timm/resnet18", "a1_in1k")],
)
def test_default_and_the_name_it_stands_for_have_one_hash(name: str, stands_for: str) -> None:
    hashes = {
        weights: config_hash(
            Configuration(model=Model(name=name, weights=weights)),
            models.origin(Model(name=name, weights=weights)),
        )
        for weights in ("none", "DEFAULT", stands_for)
    }
    assert hashes["DEFAULT"] == hashes[stands_for] != hashes["none"]


def test_two_files_of_one_content_have_one_hash_and_another_content_another(tmp_path: Path) -> None:
    for name, content in (("a.pt", b"one"), ("b.pt", b"one"), ("c.pt", b"two")):
        (tmp_path / name).write_bytes(content)
    one, same, other = (
        models.origin(Model(weights=f"file:{tmp_path}/{name}.pt"))["weights"] for name in "abc"
    )
    assert one == same != other


def test_a_missing_weights_file_is_named_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").touch()
    model = Model(name="small_cnn", weights=f"file:{tmp_path}/weight.pt")
    with pytest.raises(
        UserError,
        match=r"model\.weights: file '.*/weight\.pt' does not exist; nearest: .*/weights\.pt",
    ):
        models.check(model, 4, 32)


@pytest.mark.parametrize(
    ("given", "close"), [("IMAGENET1K_V9", "IMAGENET1K_V2"), ("default", ""), ("imagenet", "")]
)
def test_unknown_weights_are_named_with_what_is_allowed(given: str, close: str) -> None:
    with pytest.raises(UserError, match=f"unknown model.weights '{given}' of resnet50") as caught:
        models.origin(Model(name="resnet50", weights=given))
    assert "allowed: none, IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT, file:PATH" in caught.value.message
    assert not close or f"nearest: {close[:-1]}" in caught.value.message


@pytest.mark.parametrize("name", sorted(BUILDERS))
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
    assert {
        name: tuple(value.shape) for name, value in loaded.items() if name.startswith("fc.")
    } == {
        "fc.weight": (3, 512),
        "fc.bias": (3,),
    }
    assert all(
        torch.equal(loaded[name], value)
        for name, value in state.items()
        if not name.startswith("fc.")
    )
    assert network.normalisation == IMAGENET
    models.check(Model(name="resnet18", weights="DEFAULT"), 3, 64)


def test_densenets_weights_are_used_with_the_names_of_torchvisions_file(cache: Path) -> None:
    torch.manual_seed(1)
    state = torchvision.models.densenet121().state_dict()
    file = expected_file(cache, torchvision.models.DenseNet121_Weights.IMAGENET1K_V1)
    file.parent.mkdir(parents=True)
    # torchvision's published file has norm.1 where the network has norm1.
    torch.save(without_counts(state), file)
    loaded = models.build(Model(name="densenet121", weights="DEFAULT"), 3, 64).module.state_dict()
    assert all(
        torch.equal(loaded[name], value)
        for name, value in state.items()
        if not name.startswith("classifier.")
    )


def test_inceptions_auxiliary_heads_are_left_out(cache: Path) -> None:
    torch.manual_seed(1)
    state = torchvision.models.googlenet(aux_logits=True, init_weights=False).state_dict()
    file = expected_file(cache, torchvision.models.GoogLeNet_Weights.IMAGENET1K_V1)
    file.parent.mkdir(parents=True)
    torch.save(state, file)
    module = models.build(Model(name="googlenet", weights="DEFAULT"), 3, 64).module
    assert module.train()(torch.rand(2, 3, 64, 64)).shape == (2, 3)
    assert torch.equal(module.state_dict()["conv1.conv.weight"], state["conv1.conv.weight"])


ONE, TWO = ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]), ([0.1, 0.2, 0.3], [0.4, 0.5, 0.7])


def identity_of(model: Model, release: str = "") -> str:
    return config_hash(Configuration(model=model), models.origin(model), release)


def weights_beside(
    folder: Path, normalisation: tuple[list[float], list[float]] | None, name: str = "small_cnn"
) -> Model:
    folder.mkdir()
    torch.manual_seed(0)
    torch.save(models.build(Model(name=name), 4, 64).module.state_dict(), folder / "w.pt")
    if normalisation:
        (folder / "preprocessing.json").write_text(
            json.dumps({"mean": normalisation[0], "std": normalisation[1]})
        )
    return Model(name=name, weights=f"file:{folder}/w.pt")


def test_one_file_of_weights_with_another_normalisation_is_another_configuration(
    tmp_path: Path,
) -> None:
    alone, one, again, two = (
        weights_beside(tmp_path / name, normalisation)
        for name, normalisation in (("a", None), ("b", ONE), ("c", ONE), ("d", TWO))
    )
    assert models.origin(alone)["weights"] == models.origin(one)["weights"]
    assert identity_of(one) == identity_of(again)
    assert len({identity_of(model) for model in (alone, one, two)}) == 3
    # As release 0.1.0 saw them.
    assert len({identity_of(model, FIRST_RELEASE) for model in (alone, one, two)}) == 1


def test_timms_own_normalisation_written_out_is_the_same_configuration(tmp_path: Path) -> None:
    halves = ([0.5] * 3, [0.5] * 3)
    alone, written, other = (
        weights_beside(tmp_path / folder, normalisation, "timm/test_resnet")
        for folder, normalisation in (("a", None), ("b", halves), ("c", ONE))
    )
    assert (
        models.build(alone, 4, 64).normalisation
        == models.build(written, 4, 64).normalisation
        == halves
    )
    assert identity_of(alone) == identity_of(written) != identity_of(other)


def said_of(model: Model) -> str:
    return models.check(model, 4, 64)[-1]


def test_the_normalisation_and_why_it_is_taken_are_always_said(cache: Path, tmp_path: Path) -> None:
    assert models.check(Model(name="small_cnn"), 4, 64) == ()
    by_images = (
        "images are normalised by mean and standard deviation of the training images: no "
        "preprocessing.json stands with the weights"
    )
    assert said_of(weights_beside(tmp_path / "alone", None)) == by_images
    given = (
        "images are normalised by mean 0.1, 0.2, 0.3 and standard deviation 0.4, 0.5, 0.6, those "
        "of the preprocessing.json that stands "
    )
    assert said_of(weights_beside(tmp_path / "beside", ONE)) == f"{given}with the weights"
    of_imagenet = (
        "images are normalised by mean 0.485, 0.456, 0.406 and standard deviation 0.229, 0.224, "
        "0.225, those of"
    )
    with published("resnet18", cache):
        assert (
            said_of(Model(name="resnet18", weights="DEFAULT"))
            == f"{of_imagenet} torchvision's ResNet18_Weights.IMAGENET1K_V1"
        )
    publish_timms("test_resnet", cache)
    of_timm = (
        "images are normalised by mean 0.5, 0.5, 0.5 and standard deviation 0.5, 0.5, 0.5, those "
        "of timm's weights r160_in1k of "
    )
    of_timm += "timm/test_resnet"
    assert said_of(Model(name="timm/test_resnet", weights="DEFAULT")) == of_timm
    expected = f"{of_timm}: no preprocessing.json stands with the weights"
    assert said_of(weights_beside(tmp_path / "timm", None, "timm/test_resnet")) == expected


def test_what_is_said_is_printed_once(cli: Cli, quick: Path, tmp_path: Path) -> None:
    model = weights_beside(tmp_path / "beside", ONE)
    quick.write_text(quick.read_text() + "configs: [{}, {optimizer: {lr: 1.0e-3}}]\n")
    done = cli("tune", "--config", quick, "--model.weights", model.weights)
    assert done.code == 0, done.err
    assert (
        done.out.count(
            f"model.weights {model.weights}: images are normalised by mean 0.1, 0.2, 0.3 and"
        )
        == 1
    )


@pytest.mark.parametrize("name", ["resnet18", "inception_v3", "efficientnet_v2_l"])
def test_a_file_that_is_torchvisions_own_is_normalised_as_that_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    entry, file = entry_of(name), tmp_path / "best.pth"
    torch.save(models.SmallCNN(4).state_dict(), file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    # No file here has the content of a published one; this one is published as far as its name and
    # content go.
    monkeypatch.setattr(
        torchvision_weights, "_entries_by_file", lambda: {f"{name}-{digest[:8]}.pth": entry}
    )
    own = file.rename(tmp_path / f"{name}-{digest[:8]}.pth")
    model = Model(name="small_cnn", weights=f"file:{own}")
    expected = IMAGENET if name == "resnet18" else ([0.5] * 3, [0.5] * 3)
    assert models.build(model, 4, 64).normalisation == expected
    assert said_of(model).endswith(f", those of torchvision's {entry}, which the file is")
    assert identity_of(model) != identity_of(
        Model(name="small_cnn", weights=f"file:{shutil.copy(own, tmp_path / 'renamed.pth')}")
    )
    # What a person has put beside it counts more.
    (tmp_path / "preprocessing.json").write_text(json.dumps({"mean": ONE[0], "std": ONE[1]}))
    assert models.build(model, 4, 64).normalisation == ONE


def test_a_file_that_only_has_the_name_of_torchvisions_is_not_taken_for_it(tmp_path: Path) -> None:
    file = tmp_path / Path(urlsplit(entry_of("resnet18").url).path).name
    torch.save(models.SmallCNN(4).state_dict(), file)
    model = Model(name="small_cnn", weights=f"file:{file}")
    assert models.build(model, 4, 64).normalisation is None
    expected = (
        "the content is not that of torchvision's ResNet18_Weights.IMAGENET1K_V1, whose name the "
        "file has, and no preprocessing.json"
    )
    assert expected in said_of(model)


def test_every_published_file_has_its_hash_in_its_name_and_one_entry() -> None:
    entries = [
        entry
        for name in models.names()
        if name not in BUILDERS
        for entry in torchvision.models.get_model_weights(name)
    ]
    assert len(torchvision_weights._entries_by_file()) == len(entries) == 115
    assert all(
        re.fullmatch(r".+-[0-9a-f]{8,}\.pth", name)
        for name in torchvision_weights._entries_by_file()
    )
