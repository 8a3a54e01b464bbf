"""Benchmark of preparing images and of reading them back: ``python -m tests.benchmarks.data``.

The pictures are real: Debian's tuxpaint stamps, or crops of scikit-learn's two photographs if the
stamps are not installed. They are copied under other names, and each is made a file of its own by a
few bytes behind its end. The benchmark prints a table, and exits 0 if its bounds hold. It takes
about ten minutes on two cores and 2.5 GB in a temporary folder.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pipeline.config import Data
from tests.benchmarks.measure import Results, anonymous_bytes, interleaved, peak_memory, seconds

if TYPE_CHECKING:
    # Each worker process of prepare imports this file anew, as it does what a user starts, and
    # should import neither torch nor pandas for it: they cost four seconds, and half a second.
    from pipeline.data.prepared import Prepared
    from pipeline.data.transforms import Preprocessing

STAMPS = Path("/usr/share/tuxpaint/stamps")
NUM_IMAGES, MANY_IMAGES, NUM_CLASSES = 10_000, 60_000, 10
SIZE = 64
PREPARE_BOUND, EPOCH_BOUND, AGAIN_BOUND, MEMORY_BOUND = 0.75, 5.0, 20.0, 50e6


def originals() -> list[bytes]:
    """Return the encoded pictures that are copied."""
    files = sorted(STAMPS.rglob("*.png"))
    if files:
        return [file.read_bytes() for file in files]
    from sklearn.datasets import load_sample_images

    rng, pictures = random.Random(0), []
    for photograph in load_sample_images().images * 200:
        side = rng.randint(100, 300)
        left, top = rng.randint(0, 640 - side), rng.randint(0, 427 - side)
        buffer = io.BytesIO()
        Image.fromarray(photograph).crop(
            (left, top, left + side, top + rng.randint(80, side))
        ).save(buffer, "JPEG", quality=90)
        pictures.append(buffer.getvalue())
    return pictures


def write_images(root: Path, count: int) -> None:
    """Write so many files into class folders."""
    pictures = originals()
    suffix = ".png" if pictures[0].startswith(b"\x89PNG") else ".jpg"
    for number in range(count):
        file = root / f"class{number % NUM_CLASSES}" / f"{number:06d}{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(pictures[number % len(pictures)] + number.to_bytes(4, "big"))


def data_of(root: Path, **fields: object) -> Data:
    return Data.model_validate(
        {
            "source": f"folder:{root}",
            "image_size": SIZE,
            "batch_size": 64,
            "duplicates": "ignore",
            **fields,
        }
    )


def prepare(data: Data, root: Path) -> Prepared:
    from pipeline.data import prepare_data

    return prepare_data.prepare(data, root)


def decode_and_resize(file: str) -> int:
    """Do with bare Pillow what must be done with every file: decode, compose on white, resize."""
    with Image.open(file) as opened:
        image = opened.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    scale = SIZE / min(image.size)
    image = image.resize(
        (round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR
    )
    return int(np.asarray(image).nbytes)


def benchmark_prepare(root: Path, results: Results) -> None:
    files = sorted(str(file) for file in root.rglob("*.*"))
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("fork")) as pool:

        def bare() -> None:
            sum(pool.map(decode_and_resize, files, chunksize=32))

        def ours() -> None:
            with tempfile.TemporaryDirectory() as folder:
                prepare(data_of(root), Path(folder))

        with tempfile.TemporaryDirectory() as folder:
            prepare(data_of(root, limit=2000), Path(folder))
        sum(pool.map(decode_and_resize, files[:200], chunksize=32))
        own, peer, ratio = interleaved(ours, bare, 4)
    rates = (f"{len(files) / own:.0f} images/s", f"{len(files) / peer:.0f} images/s")
    results.add(
        "prepare, all checks and hashes; against bare Pillow in as many processes",
        *rates,
        f"{ratio:.2f}, bound {PREPARE_BOUND}",
        ratio >= PREPARE_BOUND,
    )


def benchmark_again(root: Path, prepared: Path, results: Results) -> Prepared:
    first = seconds(lambda: prepare(data_of(root), prepared))
    again = statistics.median(seconds(lambda: prepare(data_of(root), prepared)) for _ in range(3))
    ratio = first / again
    results.add(
        "prepare again, nothing changed; against the first time",
        f"{again:.2f} s",
        f"{first:.2f} s",
        f"{ratio:.0f}, bound {AGAIN_BOUND:.0f}",
        ratio >= AGAIN_BOUND,
    )
    return prepare(data_of(root), prepared)


def our_epoch(prepared: Prepared, data: Data, preprocessing: Preprocessing, epoch: int) -> int:
    from pipeline.data.loader import Images, Loader
    from pipeline.data.transforms import build_augmentation

    images = Images(
        prepared.images,
        np.arange(len(prepared.manifest)),
        prepared.labels(),
        SIZE,
        build_augmentation(data),
        0,
    )
    loader = Loader(images, data.batch_size, shuffle_seed=0)
    return sum(len(preprocessing.normalise(batch)) for batch, _ in loader.epoch(epoch))


def benchmark_epoch(root: Path, prepared: Prepared, results: Results) -> None:
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    from pipeline.data.transforms import Preprocessing

    mean, std = prepared.normalisation()
    for augment, what in (
        ([], "an epoch of batches"),
        (["RandomHorizontalFlip"], "the same with random flips"),
    ):
        data = data_of(root, augment=augment)
        preprocessing = Preprocessing.of(data, (mean, std))
        flips = [transforms.RandomHorizontalFlip()] if augment else []
        steps = [
            transforms.Resize(SIZE),
            transforms.CenterCrop(SIZE),
            *flips,
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
        loader = DataLoader(
            ImageFolder(str(root), transforms.Compose(steps)), 64, shuffle=True, num_workers=2
        )

        def folder_epoch(loader: Any = loader) -> int:
            return sum(len(images) for images, _ in loader)

        def store_epoch(data: Data = data, preprocessing: Preprocessing = preprocessing) -> int:
            return our_epoch(prepared, data, preprocessing, 1)

        store_epoch()
        own, peer, ratio = interleaved(store_epoch, folder_epoch, 4)
        count = len(prepared.manifest)
        rates = (f"{count / own:.0f} images/s", f"{count / peer:.0f} images/s")
        results.add(
            f"{what}; against ImageFolder and two workers",
            *rates,
            f"{ratio:.1f}, bound {EPOCH_BOUND:.0f}",
            ratio >= EPOCH_BOUND,
        )


def measure_memory(root: Path) -> None:
    """Print the growth of anonymous memory while preparing, and in one epoch after it, as JSON.

    It is run in a process of its own.
    """
    import torch

    from pipeline.data.transforms import Preprocessing

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        with tempfile.TemporaryDirectory() as warm:
            prepare(data_of(root, limit=2000), Path(warm))
        before = anonymous_bytes()
        with peak_memory() as peak:
            prepared = prepare(data_of(root), Path(folder))
        preparing = peak[0] - before
        with peak_memory() as peak:
            our_epoch(
                prepared,
                data_of(root),
                Preprocessing.of(data_of(root), prepared.normalisation()),
                1,
            )
        print(json.dumps({"preparing": preparing, "epoch": peak[0] - before}))


def benchmark_memory(few: Path, many: Path, results: Results) -> None:
    measured = []
    for root in (few, many):
        command = [sys.executable, "-m", "tests.benchmarks.data", "--memory", str(root)]
        measured.append(
            json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        )
    for phase in ("preparing", "epoch"):
        small, large = (one[phase] / 1e6 for one in measured)
        more = (large - small) * 1e6
        results.add(
            f"anonymous memory, {phase}: {MANY_IMAGES:,} images; against {NUM_IMAGES:,}",
            f"{large:.0f} MB",
            f"{small:.0f} MB",
            (
                f"{more / 1e6:+.0f} MB, {more / (MANY_IMAGES - NUM_IMAGES):.0f} bytes an image, "
                f"bound +{MEMORY_BOUND / 1e6:.0f} MB"
            ),
            more <= MEMORY_BOUND,
        )


def main() -> int:
    """Run all, or the memory measurement of one folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--memory",
        default="",
        help="measure the memory of preparing this folder, and print it as JSON",
    )
    arguments = parser.parse_args()
    if arguments.memory:
        measure_memory(Path(arguments.memory))
        return 0
    results = Results(
        f"Data: {NUM_IMAGES:,} real images of mixed size, {SIZE} pixels, {os.cpu_count()} cores"
    )
    with tempfile.TemporaryDirectory() as temporary:
        few, many, prepared_root = (Path(temporary) / name for name in ("few", "many", "prepared"))
        write_images(few, NUM_IMAGES)
        benchmark_prepare(few, results)
        prepared = benchmark_again(few, prepared_root, results)
        benchmark_epoch(few, prepared, results)
        shutil.rmtree(prepared_root)
        write_images(many, MANY_IMAGES)
        benchmark_memory(few, many, results)
    return results.conclude()


if __name__ == "__main__":
    sys.exit(main())
