"""Augmentation and normalisation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from pipeline.config import Data
from pipeline.data.prepare_data import prepare
from pipeline.data.transforms import Preprocessing, augment, augmentations, build_augmentation
from pipeline.errors import UserError

NAMED: dict[str, Any] = {
    "RandomRotation": 20,
    "RandomHorizontalFlip": {"p": 1.0},
    "RandomVerticalFlip": {"p": 1.0},
    "ColorJitter": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1},
    "RandomResizedCrop": {"scale": [0.5, 0.9]},
    "RandomCrop": {},
    "Grayscale": {},
}


def data_of(*entries: Any, image_size: int = 24, store_size: int = 32) -> Data:
    return Data.model_validate(
        {"augment": list(entries), "image_size": image_size, "store_size": store_size}
    )


def picture(height: int = 32, width: int = 32) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (3, height, width), dtype=np.uint8)


def applied(data: Data, pixels: np.ndarray[Any, np.dtype[np.uint8]], seed: int = 0) -> torch.Tensor:
    augmentation = build_augmentation(data)
    assert augmentation is not None
    torch.manual_seed(seed)
    return augment(augmentation, pixels, data.image_size)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 80), (96, 32)])
@pytest.mark.parametrize("name", sorted(NAMED))
def test_each_augmentation_gives_the_networks_size(name: str, height: int, width: int) -> None:
    image = applied(data_of({name: NAMED[name]}), picture(height, width))
    assert (image.shape, image.dtype) == ((3, 24, 24), torch.uint8)


@pytest.mark.parametrize("name", sorted(NAMED))
def test_each_augmentation_changes_the_image(name: str) -> None:
    plain = torch.from_numpy(picture()[:, 4:28, 4:28].copy())
    assert any(
        not torch.equal(applied(data_of({name: NAMED[name]}), picture(), seed), plain)
        for seed in range(3)
    )


@pytest.mark.parametrize(
    "name", sorted({"RandomRotation", "ColorJitter", "RandomResizedCrop", "RandomCrop"})
)
def test_each_random_augmentation_depends_on_the_seed_alone(name: str) -> None:
    data = data_of({name: NAMED[name]})
    assert torch.equal(applied(data, picture(), 1), applied(data, picture(), 1))
    assert not torch.equal(applied(data, picture(), 1), applied(data, picture(), 2))


def test_flips_mirror_the_image() -> None:
    pixels = picture(24, 24)
    assert torch.equal(
        applied(data_of({"RandomHorizontalFlip": 1.0}), pixels),
        torch.from_numpy(pixels[:, :, ::-1].copy()),
    )
    assert torch.equal(
        applied(data_of({"RandomVerticalFlip": 1.0}), pixels),
        torch.from_numpy(pixels[:, ::-1].copy()),
    )


def test_grayscale_keeps_three_equal_channels() -> None:
    image = applied(data_of("Grayscale"), picture())
    assert torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])


def test_a_crop_takes_the_size_of_the_image_by_itself() -> None:
    pixels = picture()
    image = applied(data_of("RandomCrop"), pixels).numpy()
    places = [(top, left) for top in range(9) for left in range(9)]
    assert any(
        np.array_equal(image, pixels[:, top : top + 24, left : left + 24]) for top, left in places
    )


def test_a_smaller_crop_is_enlarged_to_the_size_of_the_image() -> None:
    assert applied(data_of({"RandomCrop": {"size": 10}}), picture()).shape == (3, 24, 24)


def test_augmentations_are_applied_in_order() -> None:
    # A transform that is certain twice is none, a crop before it is.
    pixels = picture(24, 24)
    assert torch.equal(
        applied(data_of({"RandomHorizontalFlip": 1.0}, {"RandomHorizontalFlip": 1.0}), pixels),
        torch.from_numpy(pixels),
    )
    cropped = applied(data_of({"CenterCrop": 24}, {"Pad": 1}), pixels)
    padded = applied(data_of({"Pad": 1}, {"CenterCrop": 26}, "Grayscale"), pixels)
    assert cropped.shape == padded.shape == (3, 24, 24)
    assert not torch.equal(cropped, padded)


def test_no_augmentation_is_none() -> None:
    assert build_augmentation(Data()) is None


def test_the_stored_pixels_stay_as_they_are() -> None:
    pixels = picture()
    before = pixels.copy()
    applied(data_of(*({name: NAMED[name]} for name in sorted(NAMED))), pixels)
    assert np.array_equal(pixels, before)


def test_building_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    build_augmentation(data_of("RandomCrop", {"ColorJitter": {"hue": 0.1}}))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("name", sorted(augmentations()))
def test_each_name_of_torchvision_is_built_or_refused(name: str) -> None:
    data = data_of(name)
    try:
        image = applied(data, picture())
    except UserError as error:
        assert "data.augment" in error.message
    else:
        assert image.shape == (3, 24, 24)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("RandomRotate", "unknown augmentation 'RandomRotate'; nearest: RandomRotation"),
        ("Normalize", "unknown augmentation 'Normalize'"),
        ("MixUp", "unknown augmentation 'MixUp'"),
        ("Compose", "unknown augmentation 'Compose'"),
        (
            {"RandomHorizontalFlip": {"prob": 0.5}},
            "data.augment: RandomHorizontalFlip: .*'prob'; arguments: p",
        ),
        ({"RandomRotation": {}}, "data.augment: RandomRotation: .*degrees.*; arguments: degrees, "),
        ({"RandomRotation": -3}, "data.augment: RandomRotation: "),
        ({"RandomHorizontalFlip": 2}, "data.augment: RandomHorizontalFlip: "),
        ({"ColorJitter": {"hue": 0.9}}, "data.augment: ColorJitter: "),
        (
            {"RandomHorizontalFlip": 0.5, "RandomVerticalFlip": 0.5},
            "each entry is a NAME or one {NAME: arguments}",
        ),
        ({}, "each entry is a NAME or one {NAME: arguments}"),
        ({"RandomCrop": {"size": 100}}, "data.augment does not fit images of 32 pixels"),
        (
            {"Grayscale": 1},
            r"data.augment yields images of shape \(1, 24, 24\); \(3, 24, 24\) is needed",
        ),
    ],
)
def test_a_wrong_augmentation_is_refused(entry: Any, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        build_augmentation(data_of(entry))


def test_containers_are_no_augmentations() -> None:
    assert not {
        "Transform",
        "Compose",
        "RandomApply",
        "RandomChoice",
        "RandomOrder",
        "Lambda",
    } & set(augmentations())
    assert set(NAMED) <= set(augmentations())
    assert all(issubclass(kind, v2.Transform) for kind in augmentations().values())


PREPROCESSING = Preprocessing(24, 32, "bilinear", (0.5, 0.25, 0.0), (0.5, 0.25, 1.0))


def test_pixels_are_normalised_per_channel() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    normalised = PREPROCESSING.normalise(images)
    assert normalised.shape == (2, 3, 4, 4)
    assert normalised[0, :, 0, 0].tolist() == [-1.0, -1.0, 0.0]
    assert normalised[1, :, 0, 0].tolist() == [1.0, 3.0, 1.0]


def test_floats_are_normalised_like_bytes() -> None:
    images = torch.arange(48, dtype=torch.uint8).view(1, 3, 4, 4)
    assert torch.allclose(
        PREPROCESSING.normalise(images.float() / 255), PREPROCESSING.normalise(images)
    )


def test_normalising_leaves_the_images_as_they_are() -> None:
    images = torch.rand(1, 3, 4, 4)
    before = images.clone()
    PREPROCESSING.normalise(images)
    assert torch.equal(images, before)


def test_preprocessing_survives_json() -> None:
    assert Preprocessing.from_dict(json.loads(json.dumps(PREPROCESSING.to_dict()))) == PREPROCESSING


def test_preprocessing_of_a_configuration() -> None:
    data = Data(image_size=64, interpolation="bicubic")
    assert Preprocessing.of(data, ([0, 0, 0], [1, 1, 1])) == Preprocessing(
        64, 64, "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    )


def test_one_image_is_resized_and_cropped_as_the_stored_ones(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        for number in range(3):
            file = tmp_path / "photos" / label / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(40, 90).transpose(1, 2, 0) // (number + 1)).save(file)
    data = Data(
        source=f"folder:{tmp_path / 'photos'}", duplicates="ignore", image_size=24, store_size=32
    )
    prepared = prepare(data, tmp_path / "prepared")
    pixels = Preprocessing.of(data, prepared.normalisation()).pixels(
        tmp_path / "photos" / prepared.manifest["path"][1]
    )
    assert pixels.shape == (3, 24, 24)
    stored = prepared.images[1]
    left = (stored.shape[2] - 24) // 2
    assert np.array_equal(pixels, stored[:, 4:28, left : left + 24])


@pytest.mark.parametrize("value", [10**400, float("nan"), "0.5", None])
@pytest.mark.parametrize("name", ["mean", "std"])
def test_a_strangers_mean_and_deviation_are_three_finite_numbers(name: str, value: object) -> None:
    raw = {**PREPROCESSING.to_dict(), name: [0.5, value, 0.5]}
    with pytest.raises(UserError, match=f"preprocessing: {name} .* three numbers"):
        Preprocessing.from_dict(raw)
