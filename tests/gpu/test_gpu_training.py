"""Trainings on a GPU.

Number formats, devices, repeatability, several processes, cached features.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import get_worker_info

from pipeline.data.loader import Images, Loader
from pipeline.data.prepared import Prepared
from pipeline.errors import UserError
from pipeline.jobs.precision_choice import choose_precision
from pipeline.training.build_context import open_context
from pipeline.training.callback import Callback
from pipeline.training.device import num_loading_processes, resolve_device
from pipeline.training.distributed import init_group
from pipeline.training.exported_model import load_exported, save_exported
from pipeline.training.feature_cache import Backbone, FeatureCache, hash_contents
from pipeline.training.fit import fit
from pipeline.training.inference import predict_logits
from tests.gpu.conftest import Tell
from tests.gpu.engine import DEVICE, NETWORK, ON_GPU, configuration_of, setting_of, train

CLIP = 0.05


class Norms(Callback):
    """Takes the norm of the gradients and how far the weights have moved, at each step.

    The gradients are taken in true size.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self.parameters = list(module.parameters())
        self.norms: list[float] = []
        self.moved: list[float] = []

    def on_backward(self, epoch: int, step: int) -> None:
        self.norms.append(
            float(torch.nn.utils.get_total_norm([parameter.grad for parameter in self.parameters]))
        )
        self.before = [parameter.detach().clone() for parameter in self.parameters]

    def on_step(self, epoch: int, loss: float, accuracy: float, lr: float) -> None:
        moved = [
            parameter.detach() - before
            for parameter, before in zip(self.parameters, self.before, strict=True)
        ]
        self.moved.append(float(torch.nn.utils.get_total_norm(moved)))


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_each_precision_trains_with_clipping_and_class_weights(
    digits: Prepared, tmp_path: Path, tell: Tell, precision: str, memory_format: str
) -> None:
    lr = 0.5
    configuration = configuration_of(
        optimizer={"name": "sgd", "lr": lr, "momentum": 0.0, "weight_decay": 0.0},
        training={
            "epochs": 3,
            "precision": precision,
            "memory_format": memory_format,
            "class_weights": "balanced",
            "clip_norm": CLIP,
        },
    )
    with setting_of(configuration, digits, tmp_path) as setting:
        assert str(setting.numerics) == f"{precision} {memory_format}"
        norms = Norms(setting.network.module)
        fitted = fit(configuration, setting, [norms])
    losses = [epoch["train/loss"] for epoch in fitted.history]
    tell(
        f"training loss {losses[0]:.3f} to {losses[-1]:.3f}, validation accuracy "
        f"{fitted.best['val/accuracy']:.1%}"
    )
    assert losses[-1] < losses[0]
    assert max(norms.norms) > CLIP
    # In fp16 a step whose scaled gradients overflow is left out: that is how the scale is found.
    moved = [
        (norm, step / lr)
        for norm, step in zip(norms.norms, norms.moved, strict=True)
        if step or precision != "fp16"
    ]
    assert len(moved) > len(norms.moved) / 2
    assert all(step == pytest.approx(min(norm, CLIP), rel=0.02) for norm, step in moved)


def test_auto_measures_and_chooses_a_format_that_trains(
    digits: Prepared, tmp_path: Path, tell: Tell
) -> None:
    configuration = configuration_of(training={"precision": "auto", "memory_format": "auto"})
    with setting_of(configuration, digits, tmp_path) as setting:
        choice = choose_precision(configuration, setting, tmp_path / "numerics.json", "")
        assert choose_precision(configuration, setting, tmp_path / "numerics.json", "") == choice
    measured = ", ".join(
        f"{form} {1000 * seconds:.1f} ms" for form, seconds in choice.seconds.items()
    )
    tell(f"{choice.numerics} of {measured}; refused: {choice.refused or 'none'}")
    assert len(choice.seconds) + len(choice.refused) >= (6 if ON_GPU else 4)
    layout = "channels_last" if choice.numerics.channels_last else "contiguous"
    form = {"precision": choice.numerics.precision, "memory_format": layout}
    trained = train(configuration_of(training=form), digits, tmp_path)
    assert np.isfinite(trained.curve("train/loss")).all()


def test_a_device_may_be_named_by_its_number(digits: Prepared, tmp_path: Path) -> None:
    name = "cuda:0" if ON_GPU else "cpu"
    with setting_of(
        configuration_of(training={"device": name, "epochs": 1}), digits, tmp_path
    ) as setting:
        assert setting.device == torch.device(name)
    trained = train(configuration_of(training={"device": name, "epochs": 1}), digits, tmp_path)
    assert len(trained.fitted.history) == 1
    assert resolve_device("auto").type == torch.device(DEVICE).type or not ON_GPU
    with pytest.raises(UserError, match="this machine has no 'cuda:99'"):
        resolve_device("cuda:99")


class Settings(Callback):
    """Notes at the first step which kernels are allowed."""

    deterministic = False

    def on_backward(self, epoch: int, step: int) -> None:
        self.deterministic = torch.are_deterministic_algorithms_enabled()


def test_deterministic_gives_the_same_bits_and_is_off_again_in_the_next_training(
    digits: Prepared, tmp_path: Path, tell: Tell
) -> None:
    variable = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    told, seen, files = [], [], []
    # A plain one first: it must not keep a later one from being deterministic.
    for number, deterministic in enumerate((False, True, True, False)):
        folder, settings = tmp_path / str(number), Settings()
        folder.mkdir()
        trained = train(
            configuration_of(training={"deterministic": deterministic, "epochs": 2}),
            digits,
            folder,
            [settings],
        )
        seen.append(settings.deterministic)
        told.append([(epoch["train/loss"], epoch["val/loss"]) for epoch in trained.fitted.history])
        files.append(trained.checkpoint.read_bytes())
        assert not torch.are_deterministic_algorithms_enabled()
        assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == variable
    assert seen == [False, ON_GPU, ON_GPU, False]
    assert told[1] == told[2]
    assert files[1] == files[2]
    tell(f"plain trainings are equal too: {files[0] == files[3]}")


class Where(Images):
    """Notes whether a process of its own reads the images."""

    def __getitems__(self, keys: list[Any]) -> Any:
        assert get_worker_info() is not None
        return super().__getitems__(keys)


def test_auto_workers_load_beside_the_gpu_and_change_nothing(
    digits: Prepared, tmp_path: Path, tell: Tell
) -> None:
    augment = [{"RandomRotation": 10}, "RandomHorizontalFlip"]
    histories = []
    for workers in ("auto", 0):
        folder = tmp_path / str(workers)
        folder.mkdir()
        configuration = configuration_of(
            data={"workers": workers, "augment": augment},
            training={"deterministic": True, "epochs": 2},
        )
        with setting_of(configuration, digits, folder) as setting:
            expected = num_loading_processes(configuration.data.workers, setting.device, 1, augment)
            assert setting.train.workers == setting.val.workers == expected
            fitted = fit(configuration, setting)
        histories.append([(epoch["train/loss"], epoch["val/loss"]) for epoch in fitted.history])
        tell(
            f"workers {workers} ({expected}): {fitted.history[-1]['images_per_second']:.0f} "
            "images a second"
        )
    assert histories[0] == histories[1]


def test_processes_that_load_read_the_images(digits: Prepared) -> None:
    images = Where(digits.images, digits.positions("train"), digits.labels(), 32)
    loader = Loader(images, 64, shuffle_seed=0, workers=2)
    try:
        (batch, labels), *_ = list(loader.epoch(1))
    finally:
        loader.close()
    assert batch.is_pinned() == torch.cuda.is_available()
    assert batch.to(DEVICE, non_blocking=True).shape == (64, 3, 32, 32) and len(labels) == 64


def test_one_process_of_a_group_trains_over_nccl_as_alone(
    digits: Prepared, tmp_path: Path, tell: Tell
) -> None:
    # BatchNorm, which such a group takes over all its processes.
    configuration = configuration_of(
        model={"name": "resnet18"}, training={"deterministic": True, "epochs": 2}
    )
    curves = []
    for name in ("alone", "together"):
        (tmp_path / name).mkdir()
        if name == "alone":
            trained = train(configuration, digits, tmp_path / name)
        else:
            group = init_group(init_method=f"file://{tmp_path / 'meet'}", world_size=1, rank=0)
            try:
                trained = train(configuration, digits, tmp_path / name, group=group)
            finally:
                group.close()
        curves.append(trained.curve("train/loss"))
    tell(f"training loss alone {curves[0]}, in a group {curves[1]}")
    assert curves[1] == pytest.approx(curves[0], rel=0.02)


def test_a_head_on_cached_features_learns_what_the_plain_loop_does(
    digits: Prepared, tmp_path: Path, tell: Tell
) -> None:
    configuration = configuration_of(model={"freeze": "backbone"}, training={"epochs": 2})
    folder = tmp_path / "plain"
    folder.mkdir()
    plain = train(configuration, digits, folder)
    folder = tmp_path / "features"
    folder.mkdir()
    with setting_of(configuration, digits, folder) as setting:
        backbone = Backbone(
            setting.network, setting.preprocessing, setting.numerics, setting.device
        )
        loaders = []
        for loader in (setting.train, setting.val):
            assert isinstance(loader.images, Images)
            contents = digits.manifest["sha256"].iloc[loader.images.positions].tolist()
            cache = FeatureCache(folder / "f", backbone, 64, 0, lambda *_: None)
            features, new = cache.load_or_compute(loader.images, hash_contents(contents, False), 1)
            loaders.append(loader.over(features))
        featured = type(setting)(
            **{
                **vars(setting),
                "part": setting.network.head,
                "train": loaders[0],
                "val": loaders[1],
            }
        )
        fitted = fit(configuration, featured)
    assert new == len(loaders[1].images)
    losses = [epoch["train/loss"] for epoch in fitted.history]
    tell(
        f"training loss {losses[-1]:.4f} on features, {plain.curve('train/loss')[-1]:.4f} on images"
    )
    assert losses == pytest.approx(plain.curve("train/loss"), abs=5e-3)
    assert fitted.history[-1]["val/accuracy"] == pytest.approx(
        plain.curve("val/accuracy")[-1], abs=0.02
    )


def test_an_exported_network_answers_as_the_trained_one(
    digits: Prepared, tmp_path: Path, device: torch.device, tell: Tell
) -> None:
    configuration = configuration_of(training={"epochs": 1})
    with open_context(configuration, digits, tmp_path / "best.safetensors") as setting:
        fit(configuration, setting)
        module, preprocessing = setting.network.module, setting.preprocessing
        _, logits = predict_logits(module, setting.val, preprocessing, device)
        images = torch.cat([batch for batch, _ in setting.val.epoch(1)])
        save_exported(module, configuration.data.image_size, tmp_path / "network.pt2")
    exported = load_exported(tmp_path / "network.pt2", device)
    for count in (1, 3, len(images)):
        with torch.inference_mode():
            answers = exported(preprocessing.normalise(images[:count].to(device)))
        assert answers.device.type == device.type
        difference = float((answers.cpu() - torch.from_numpy(logits[:count])).abs().max())
        tell(f"{NETWORK}, {count} images: largest difference of a logit {difference:.1e}")
        assert difference < 0.02 * max(1.0, float(np.abs(logits).max()))
