"""What happens to an image between the store and the network: augmentation, crop, normalisation."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from pipeline.config import Data, Fit, parse
from pipeline.data.decode import MAX_PIXELS, VERSION, Decoding
from pipeline.data.resize import center_crop
from pipeline.errors import UserError, first_line, unknown_name

_NOT_FOR_ONE_IMAGE = {
    "Transform",
    "Compose",
    "Identity",
    "Lambda",
    "MixUp",
    "CutMix",
    "Normalize",
    "LinearTransformation",
    "FiveCrop",
    "TenCrop",
    "ToPILImage",
}
_CONTAINERS = {"RandomApply", "RandomChoice", "RandomOrder"}

_NEEDED = {"image_size", "stored_size", "interpolation", "mean", "std"}
"""Names that every preprocessing has. The others have defaults."""

_NAMES_IN_DATA = {"stored_size": "store_size"}
"""Names of a configuration's `data` by those of a preprocessing, if they differ."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input. It is kept with every run and model.

    Attributes:
        image_size: Side of the square input, in pixels.
        stored_size: Length in pixels to which the image is resized before its middle is cut out: of
            the shorter side if `fit` is crop, else of both sides.
        interpolation: Interpolation of that resizing.
        mean: Mean of each channel, for pixels from 0 to 1.
        std: Standard deviation of each channel.
        background: Colour below transparent pixels.
        max_pixels: Images of more pixels are refused.
        white: The level that is white in grey levels of more than 8 bits; see
            `pipeline.data.decode.Decoding`.
        fit: What becomes of pictures that are not square.
        decoding: Version of the rules by which files were decoded.
    """

    image_size: int
    stored_size: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    background: str = "white"
    max_pixels: int = MAX_PIXELS
    white: str | int = "type"
    fit: Fit = "crop"
    decoding: int = VERSION

    @classmethod
    def of(
        cls,
        data: Data,
        normalisation: tuple[Sequence[float], Sequence[float]],
        decoding: int = VERSION,
    ) -> Preprocessing:
        """Combine what a configuration says about images with a normalisation.

        Args:
            data: The part of a configuration about images.
            normalisation: Mean and standard deviation of each channel.
            decoding: Version of the decoding.
        """
        mean, std = normalisation
        return cls(
            data.image_size,
            data.stored_size,
            data.interpolation,
            tuple(map(float, mean)),  # type: ignore[arg-type]
            tuple(map(float, std)),  # type: ignore[arg-type]
            data.background,
            data.max_pixels,
            data.white,
            data.fit,
            decoding,
        )

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Preprocessing:
        """Rebuild a preprocessing from the result of `to_dict`.

        Args:
            raw: What a run or a model has kept. It may be a stranger's.

        Raises:
            UserError: `raw` is no preprocessing, or holds what a configuration may not say.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(raw, dict) or not _NEEDED <= set(raw) <= names:
            raise UserError(
                f"preprocessing: {str(raw)[:200]} given; {', '.join(sorted(names))} are needed"
            )
        # Release 0.1.0 did not record the version: it had only one.
        version = raw.get("decoding", 1)
        if type(version) is not int or not 1 <= version <= VERSION:
            raise UserError(
                f"preprocessing: decoding {str(version)[:200]} given; "
                f"1 to {VERSION} are known to this release"
            )
        data_fields = {
            _NAMES_IN_DATA.get(name, name): value
            for name, value in raw.items()
            if name not in ("mean", "std", "decoding")
        }
        data = parse(Data, data_fields, "preprocessing")
        for name in ("mean", "std"):
            _need_three_numbers(name, raw[name])
        return cls.of(data, (raw["mean"], raw["std"]), version)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @property
    def specification(self) -> Decoding:
        """How a file becomes pixels, the same as for the training images."""
        return Decoding(
            self.stored_size,
            self.interpolation,
            self.background,
            self.white,
            self.fit,
            self.max_pixels,
            self.decoding,
        )

    def pixels(self, file: Path | str | BinaryIO | bytes) -> NDArray[np.uint8]:
        """Return the pixels of a picture's file as the network sees them, before normalisation.

        Returns:
            Pixels of shape (3, image_size, image_size).

        Raises:
            Any of `pipeline.data.decode.UNREADABLE`: The file is no picture, or a damaged one, or
                too large.
        """
        return self.reduced(self.specification.decode(file).image)

    def reduced(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return the same pixels as `pixels`, of a picture that is decoded already."""
        return center_crop(self.specification.resize(image), self.image_size)

    def normalise(self, images: Tensor) -> Tensor:
        """Turn images into the network's input.

        Args:
            images: Pixels of shape (batch, 3, size, size), uint8 or float from 0 to 1.
        """
        scaled = images.float()
        if images.dtype == torch.uint8:
            scaled.div_(255)
        mean = torch.tensor(self.mean, device=images.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, 3, 1, 1)
        return (scaled - mean) / std


def _need_three_numbers(name: str, values: Any) -> None:
    are_numbers = isinstance(values, list | tuple) and all(map(_is_finite, values))
    if not are_numbers or len(values) != 3 or (name == "std" and min(values) <= 0):
        needed = "three numbers above 0" if name == "std" else "three numbers"
        raise UserError(f"preprocessing: {name} {str(values)[:200]} given; {needed} are needed")


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and isfinite(value)
    except OverflowError:
        # JSON has integers of any size.
        return False


def augmentations() -> dict[str, type[v2.Transform]]:
    """Return the torchvision v2 transforms that `data.augment` may name."""
    return {
        name: cls
        for name, cls in vars(v2).items()
        if inspect.isclass(cls)
        and issubclass(cls, v2.Transform)
        and name not in _NOT_FOR_ONE_IMAGE | _CONTAINERS
    }


def build_augmentation(data: Data) -> v2.Transform | None:
    """Build the random part of the training input from `data.augment`; None if there is none.

    Raises:
        UserError: A transform or an argument is unknown, or does not fit the stored images.
    """
    if not data.augment:
        return None
    augmentation = v2.Compose([_build_one(entry, data.image_size) for entry in data.augment])
    size = data.image_size
    black = np.zeros((3, data.stored_size, data.stored_size), np.uint8)
    with torch.random.fork_rng(devices=[]):
        try:
            probe = augment(augmentation, black, size)
        except (ValueError, TypeError, RuntimeError, AttributeError) as error:
            raise UserError(
                f"data.augment does not fit images of {data.stored_size} pixels: "
                f"{first_line(error)}"
            ) from None
    if probe.shape != (3, size, size):
        raise UserError(
            f"data.augment yields images of shape {tuple(probe.shape)}; "
            f"(3, {size}, {size}) is needed"
        )
    return augmentation


def augment(augmentation: v2.Transform, pixels: NDArray[np.uint8], size: int) -> Tensor:
    """Apply the random transforms to one image (3, height, width); return (3, size, size)."""
    image: Tensor = augmentation(torch.from_numpy(pixels.copy()))
    if image.shape[-2:] == (size, size):
        return image
    if min(image.shape[-2:]) < size:
        image = functional.resize(image, [size], antialias=True)
    cropped: Tensor = functional.center_crop(image, [size, size])
    return cropped


def _name_and_arguments(entry: str | dict[str, Any]) -> tuple[str, Any]:
    if isinstance(entry, str):
        return entry, {}
    if len(entry) != 1:
        raise UserError(
            f"data.augment: each entry is a NAME or one {{NAME: arguments}}, got {entry!r}"
        )
    return next(iter(entry.items()))


def _build_one(entry: str | dict[str, Any], image_size: int) -> v2.Transform:
    """Build the transform that an entry of `data.augment` names."""
    name, arguments = _name_and_arguments(entry)
    allowed = augmentations()
    if name not in allowed:
        raise unknown_name("augmentation", name, allowed)
    parameters = inspect.signature(allowed[name]).parameters
    if not isinstance(arguments, dict):
        arguments = {next(iter(parameters)): arguments}
    if name.endswith("Crop") and "size" in parameters:
        arguments = {"size": image_size, **arguments}
    if name == "Grayscale":
        arguments = {"num_output_channels": 3, **arguments}
    try:
        return allowed[name](**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"data.augment: {name}: {first_line(error)}; arguments: {', '.join(parameters)}"
        ) from None
