"""Features of frozen backbones, against the plain loop over the same images."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from torch import nn

from pipeline import models
from pipeline.config import Configuration, Model, merge
from pipeline.data.loader import Images
from pipeline.data.prepare_data import prepare
from pipeline.data.prepared import Prepared
from pipeline.data.transforms import build_augmentation
from pipeline.tracking import find_runs, names
from pipeline.tracking.workspace import Workspace
from pipeline.training.context import TrainingContext
from pipeline.training.feature_cache import (
    Backbone,
    FeatureCache,
    Features,
    hash_backbone,
    hash_contents,
    is_head_last,
)
from pipeline.training.fit import fit
from tests.conftest import Cli
from tests.training.small_training import BASE, build_context

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(frozen().data, tmp_path_factory.mktemp("prepared"))


def frozen(**changes: Any) -> Configuration:
    raw = merge(
        BASE,
        {
            "data": {"image_size": 32, "limit": 120},
            "model": {"freeze": "backbone"},
            "training": {"epochs": 3},
        },
    )
    return Configuration.model_validate(merge(raw, changes))


class Counting(Backbone):
    """Counts the images that it is given."""

    images = 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.images += len(images)
        return super().__call__(images)


def backbone_of(setting: TrainingContext) -> Counting:
    return Counting(setting.network, setting.preprocessing, setting.numerics, setting.device)


def ids(prepared: Prepared, images: Images, numbered: bool = False) -> np.ndarray[Any, Any]:
    return hash_contents(prepared.manifest["sha256"].iloc[images.positions].tolist(), numbered)


def computed(
    prepared: Prepared, images: Any, backbone: Backbone, folder: Path, views: int = 1
) -> tuple[Features, int]:
    cache = FeatureCache(folder, backbone, 32, 0, lambda *_: None)
    return cache.load_or_compute(images, ids(prepared, images, views > 1), views)


def on_features(
    setting: TrainingContext, prepared: Prepared, folder: Path, views: int = 1
) -> TrainingContext:
    backbone = backbone_of(setting)
    train, _ = computed(prepared, setting.train.images, backbone, folder / "train", views)
    val, _ = computed(prepared, setting.val.images, backbone, folder / "val")
    return replace(
        setting,
        part=setting.network.head,
        train=setting.train.over(train),
        val=setting.val.over(val),
    )


@pytest.mark.parametrize(
    ("name", "dropout"),
    [
        ("small_cnn", 0.3),
        ("resnet18", 0.0),
        ("densenet121", 0.3),
        ("mobilenet_v3_small", 0.0),
        ("regnet_y_400mf", 0.3),
        pytest.param("swin_t", 0.0, marks=pytest.mark.thorough),
    ],
)
def test_a_head_on_features_learns_what_the_plain_loop_does(
    name: str, dropout: float, digits: Prepared, tmp_path: Path
) -> None:
    configuration = frozen(model={"name": name, "dropout": dropout}, training={"epochs": 2})
    trained = []
    for featured in (False, True):
        folder = tmp_path / str(featured)
        folder.mkdir()
        setting = build_context(configuration, digits, folder)
        if featured:
            setting = on_features(setting, digits, folder)
        fitted = fit(configuration, setting)
        trained.append(
            (
                fitted,
                {key: value.clone() for key, value in setting.network.module.state_dict().items()},
            )
        )
    (plain, plain_weights), (featured_one, weights) = trained
    assert np.abs(plain.logits - featured_one.logits).max() < 1e-4
    assert plain.history[-1]["val/accuracy"] == featured_one.history[-1]["val/accuracy"]
    assert plain.history[-1]["train/loss"] == pytest.approx(
        featured_one.history[-1]["train/loss"], abs=1e-4
    )
    assert plain_weights.keys() == weights.keys()
    assert all(
        torch.allclose(plain_weights[key].float(), weights[key].float(), atol=1e-4)
        for key in weights
    )


def test_each_image_passes_the_backbone_once(digits: Prepared, tmp_path: Path) -> None:
    setting = build_context(frozen(), digits, tmp_path)
    backbone = backbone_of(setting)
    assert (
        computed(digits, setting.train.images, backbone, tmp_path / "f")[1]
        == len(setting.train.images)
        == backbone.images
    )
    again = backbone_of(setting)
    assert computed(digits, setting.train.images, again, tmp_path / "f")[1] == again.images == 0
    # Another split adds its own to the same folder.
    assert (
        computed(digits, setting.val.images, again, tmp_path / "f")[1]
        == len(setting.val.images)
        == again.images
    )


def test_files_that_are_cut_off_or_deleted_are_computed_anew_to_the_same_bits(
    digits: Prepared, tmp_path: Path
) -> None:
    setting = build_context(frozen(), digits, tmp_path)
    images, backbone, folder = setting.train.images, backbone_of(setting), tmp_path / "f"
    keys = [(1, number) for number in range(len(images))]
    before, _ = computed(digits, images, backbone, folder)[0].__getitems__(keys)
    (features,) = (file for file in folder.glob("*.npy") if not file.name.endswith(".ids.npy"))
    features.write_bytes(features.read_bytes()[:-1])
    after, computed_now = computed(digits, images, backbone, folder)
    assert computed_now == len(images)
    assert torch.equal(before, after.__getitems__(keys)[0])
    for file in folder.glob("*.npy"):
        file.unlink()
    assert computed(digits, images, backbone, folder)[1] == len(images)


@pytest.mark.skipif(
    not Path("/proc/self/fd").is_dir(), reason="needs a system that lists a process's open files"
)
def test_many_files_of_features_are_not_kept_open(
    digits: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = build_context(frozen(), digits, tmp_path)
    monkeypatch.setattr("pipeline.training.feature_cache._FILE_SECONDS", 0.0)
    before = len(list(Path("/proc/self/fd").iterdir()))
    features, count = computed(digits, setting.train.images, backbone_of(setting), tmp_path / "f")
    assert len(list((tmp_path / "f").glob("*.ids.npy"))) == math.ceil(count / 32) > 1
    assert len(features) == count
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(("seconds", "batches_kept"), [(0.0, 2), (60.0, 0)])
def test_a_pass_that_is_cut_off_goes_on_where_its_last_file_ended_to_the_same_bits(
    digits: Prepared,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    batches_kept: int,
) -> None:
    setting = build_context(frozen(), digits, tmp_path)
    images = setting.train.images
    keys = [(1, number) for number in range(len(images))]
    whole, _ = computed(digits, images, backbone_of(setting), tmp_path / "whole")
    monkeypatch.setattr("pipeline.training.feature_cache._FILE_SECONDS", seconds)

    def told(what: str, done: int, of: int) -> None:
        if done > 2 * 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache = FeatureCache(tmp_path / "cut", backbone_of(setting), 32, 0, told)
        cache.load_or_compute(images, ids(digits, images), 1)
    rest, computed_now = computed(digits, images, backbone_of(setting), tmp_path / "cut")
    assert computed_now == len(images) - 32 * batches_kept
    assert torch.equal(whole.__getitems__(keys)[0], rest.__getitems__(keys)[0])


def test_a_view_is_what_training_shows_in_that_epoch(digits: Prepared, tmp_path: Path) -> None:
    configuration = frozen(data={"augment": [{"RandomRotation": 30}]})
    setting = build_context(configuration, digits, tmp_path)
    images, backbone = setting.train.images, backbone_of(setting)
    assert isinstance(images, Images)
    assert build_augmentation(configuration.data) is not None
    features, _ = computed(digits, images, backbone, tmp_path / "f", views=3)
    for epoch in (1, 2, 3):
        numbers = [5, 0, 17]
        shown, labels = images.__getitems__([(epoch, number) for number in numbers])
        for later in (epoch, epoch + 3):
            given, given_labels = features.__getitems__([(later, number) for number in numbers])
            assert torch.allclose(given, backbone(shown), atol=1e-5)
            assert torch.equal(labels, given_labels)
    first, second = (features.__getitems__([(epoch, 5)])[0] for epoch in (1, 2))
    assert not torch.allclose(first, second)


def test_what_follows_the_head_keeps_the_plain_loop() -> None:
    assert is_head_last(models.build(Model(name="resnet18", freeze="backbone"), 3, 32), 32)
    assert not is_head_last(models.build(Model(name="squeezenet1_1", freeze="backbone"), 3, 32), 32)


def test_the_hash_is_over_the_backbone_alone() -> None:
    def network(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return models.build(Model(name="small_cnn"), 3, 32).module

    one, other = network(0), network(0)
    with torch.no_grad():
        other.get_submodule("fc").weight.add_(1)  # type: ignore[union-attr, operator]
    assert hash_backbone(one, "fc") == hash_backbone(other, "fc") != hash_backbone(network(1), "fc")


FROZEN = ("--model.freeze", "backbone")


def run_of(workspace: Workspace, out: str) -> Any:
    return find_runs.get_run(workspace, out.rpartition("run ")[2].split(":")[0])


def test_trainings_share_features_and_say_so(cli: Cli, quick: Path, workspace: Workspace) -> None:
    tags = []
    for lr in ("1e-3", "3e-3"):
        done = cli("train", "--config", quick, *FROZEN, "--optimizer.lr", lr)
        assert done.code == 0, done.err
        tags.append(run_of(workspace, done.out).data.tags[names.FEATURES])
    # 90 images less those of the test split.
    assert tags[0].startswith("1 per image, 78 images computed in ")
    assert tags[1].startswith("1 per image, 0 images computed in ")
    # The model that was exported is the whole network.
    assert cli("evaluate", "--config", quick).code == 0


def test_augmented_images_pass_the_backbone_anew_unless_views_are_asked_for(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    augment = ("--data.augment", "RandomHorizontalFlip")
    plain = cli("train", "--config", quick, *FROZEN, *augment)
    assert names.FEATURES not in run_of(workspace, plain.out).data.tags
    views = cli("train", "--config", quick, *FROZEN, *augment, "--training.feature_views", "2")
    run = run_of(workspace, views.out)
    assert run.data.tags[names.FEATURES].startswith("2 per image, ")
    shapes = {
        np.load(file).shape[1]
        for file in workspace.prepared.glob("features-*/*.npy")
        if not file.name.endswith(".ids.npy")
    }
    assert shapes == {1, 2}


def test_features_of_another_pillow_are_others(
    cli: Cli, quick: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = (
        "train",
        "--config",
        quick,
        "--model.freeze",
        "backbone",
        "--training.epochs",
        "1",
        "--training.seed",
    )

    def folders() -> int:
        return len(list(workspace.prepared.glob("features-*")))

    assert cli(*train, "1").code == 0
    before = folders()
    assert before > 0 and cli(*train, "1", "--optimizer.lr", "2e-3").code == 0
    assert folders() == before
    monkeypatch.setattr(PIL, "__version__", "99.0.0")
    assert cli(*train, "1", "--optimizer.lr", "4e-3").code == 0
    assert folders() == 2 * before
