"""How fast a GPU is fed: ``python -m tests.gpu.speed``.

Images a second of real trainings in bf16 from the store, with crop and flip, and with ColorJitter
too, against the same network on one batch that stays on the device, of which nothing is read back:
the ratio is what data and host cost. It prints a table, and takes about a minute and a half. The
images are real: crops of scikit-learn's two photographs.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from pipeline.config import Configuration
from pipeline.data.loader import Images, Loader
from pipeline.data.prepare_data import prepare
from pipeline.data.prepared import Prepared
from pipeline.data.transforms import build_augmentation
from pipeline.errors import OutOfMemory
from pipeline.training.build_context import open_context
from pipeline.training.callback import Callback
from pipeline.training.context import TrainingContext
from pipeline.training.device import is_out_of_memory
from pipeline.training.fit import fit
from pipeline.training.inference import set_training_mode
from pipeline.training.malloc import clear_frames, settle_memory
from pipeline.training.precision import Numerics
from pipeline.training.stepper import Stepper
from tests.gpu.engine import DEVICE, ON_GPU

CROP_AND_FLIP = ["RandomCrop", "RandomHorizontalFlip"]
COLOR_JITTER = {"ColorJitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}}
BF16 = Numerics("bf16", channels_last=True)


class Size(NamedTuple):
    """How much is done.

    Attributes:
        networks: By name.
        image_size: Side in pixels.
        batch_size: Images.
        crops: Different images in the store.
        seconds: Of measurement.
        warm_up: Steps before it, which choose kernels and fill queues.
    """

    networks: tuple[str, ...]
    image_size: int
    batch_size: int
    crops: int
    seconds: float
    warm_up: int


FULL = Size(("resnet18", "resnet50", "densenet121"), 224, 256, 1500, 6.0, 12)
TRIED = Size(("small_cnn",), 32, 16, 100, 0.5, 3)
"""For trying this program itself without a GPU."""


class Enough(Exception):
    """It has been measured for long enough."""


class Rate(Callback):
    """Measures images a second over steps in the middle of an epoch."""

    def __init__(self, size: Size) -> None:
        self._size, self._steps, self._started = size, 0, 0.0
        self.images_per_second = 0.0

    def on_step(self, epoch: int, loss: float, accuracy: float, lr: float) -> None:
        self._steps += 1
        now, measured = time.perf_counter(), self._steps - self._size.warm_up
        if measured == 0:
            self._started = now
        elif measured > 0 and now - self._started >= self._size.seconds:
            self.images_per_second = measured * self._size.batch_size / (now - self._started)
            raise Enough


def configuration_of(size: Size, network: str, root: Path, augment: list[Any]) -> Configuration:
    """Return the configuration of a training."""
    data = {
        "source": f"folder:{root}",
        "image_size": size.image_size,
        "batch_size": size.batch_size,
        "duplicates": "ignore",
    }
    training = {"device": DEVICE, "precision": "bf16", "checkpoint_seconds": 1000}
    optimizer = {"name": "sgd", "lr": 0.01, "momentum": 0.9}
    raw = {
        "data": {**data, "augment": augment},
        "model": {"name": network},
        "optimizer": optimizer,
        "training": training,
    }
    return Configuration.model_validate(raw)


def write_crops(root: Path, count: int, side: int) -> None:
    """Write crops of scikit-learn's two photographs, one class each."""
    rng = np.random.default_rng(0)
    for name, photograph in zip(("temple", "flower"), load_sample_images().images, strict=True):
        (root / name).mkdir(parents=True)
        picture = Image.fromarray(photograph)
        for number in range(count // 2):
            left, top = rng.integers(0, 640 - side), rng.integers(0, 427 - side)
            picture.crop((left, top, left + side, top + side)).save(
                root / name / f"{number}.jpg", quality=92
            )


def endless(
    setting: TrainingContext, configuration: Configuration, prepared: Prepared
) -> TrainingContext:
    """Return a setting whose epoch is longer than any measurement.

    It has the store's images again and again, each time augmented anew.
    """
    data, positions = configuration.data, prepared.positions("train")
    positions = np.tile(positions, 1 + 100_000 // len(positions))
    images = Images(
        prepared.images, positions, prepared.labels(), data.image_size, build_augmentation(data)
    )
    return replace(
        setting,
        numerics=BF16,
        train=Loader(images, data.batch_size, shuffle_seed=0, workers=setting.train.workers),
    )


def from_the_store(
    configuration: Configuration, prepared: Prepared, size: Size
) -> tuple[float, int]:
    """Return images a second of a training as users run it, and the processes that load."""
    rate = Rate(size)
    with (
        tempfile.TemporaryDirectory() as folder,
        open_context(configuration, prepared, Path(folder) / "best.safetensors") as setting,
    ):
        setting = endless(setting, configuration, prepared)
        try:
            fit(configuration, setting, [rate])
        except Enough as enough:
            clear_frames(enough)
        finally:
            setting.close()
    return rate.images_per_second, setting.train.workers


def on_the_device(configuration: Configuration, prepared: Prepared, size: Size) -> float:
    """Return images a second of the same steps on one batch that stays on the device.

    Nothing is read back.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        open_context(configuration, prepared, Path(folder) / "best.safetensors") as setting,
    ):
        images, labels = next(iter(setting.train.epoch(1)))
        times = -(-size.batch_size // len(labels))
        inputs = setting.inputs(images.repeat(times, 1, 1, 1)[: size.batch_size])
        labels = labels.repeat(times)[: size.batch_size].to(setting.device)
        set_training_mode(setting.network, frozen=False)
        stepper = Stepper(
            configuration, setting.network.module.to(setting.device), BF16, setting.device, None
        )

        def steps(count: int) -> float:
            wait()
            started = time.perf_counter()
            for _ in range(count):
                stepper.backward(stepper.forward(inputs, labels)[0])
                stepper.update(0.01)
            wait()
            return time.perf_counter() - started

        steps(size.warm_up)
        count = max(3, int(size.seconds / 2 / (steps(3) / 3)))
        return count * size.batch_size / steps(count)


def wait() -> None:
    """Wait until the GPU has done all that it was given."""
    if ON_GPU:
        torch.cuda.synchronize()


def measure(size: Size, network: str, root: Path, folder: Path) -> str:
    """Return a row of the table."""
    plain = configuration_of(size, network, root, CROP_AND_FLIP)
    jittered = configuration_of(size, network, root, [*CROP_AND_FLIP, COLOR_JITTER])
    prepared = prepare(plain.data, folder)
    resident = on_the_device(plain, prepared, size)
    flipped, workers = from_the_store(plain, prepared, size)
    colored, more_workers = from_the_store(jittered, prepared, size)
    cells = [
        f"{network:12}",
        f"{size.batch_size:5}",
        f"{workers:3}/{more_workers:<3}",
        f"{resident:10.0f}",
    ]
    return " ".join(
        [
            *cells,
            f"{flipped:14.0f} {flipped / resident:5.2f}",
            f"{colored:17.0f} {colored / resident:5.2f}",
        ]
    )


def main() -> int:
    """Print the table."""
    if ON_GPU and not torch.cuda.is_available():
        print("speed: no CUDA device")
        return 0
    settle_memory()
    size = FULL if ON_GPU else TRIED
    name = torch.cuda.get_device_name() if ON_GPU else "processor"
    print(
        f"{name}, {os.cpu_count()} cores, torch {torch.__version__}; bf16 channels_last, "
        f"{size.image_size} pixels; images a second"
    )
    print(
        (
            f"{'network':12} batch workers {'one batch':>10} {'crop and flip':>14} ratio "
            f"{'with ColorJitter':>17} ratio"
        ),
        flush=True,
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_crops(folder / "crops", size.crops, min(260, 8 * size.image_size))
        for network in size.networks:
            fitting = size
            while True:
                try:
                    print(
                        measure(fitting, network, folder / "crops", folder / "prepared"), flush=True
                    )
                    break
                except (RuntimeError, OutOfMemory) as error:
                    if (
                        not (isinstance(error, OutOfMemory) or is_out_of_memory(error))
                        or fitting.batch_size == 1
                    ):
                        raise
                    clear_frames(error)
                fitting = fitting._replace(batch_size=fitting.batch_size // 2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
