"""Learning curves of a grid of configurations on the digits.

They were recorded once, are kept as a file, and are looked up by the benchmark of searching.

    python -m tests.benchmarks.curves FOLDER

trains the grid anew with one thread in each of two processes, about three hours on two cores.
FOLDER keeps a file for each training, so that a recording that was stopped goes on; at its end
``curves.csv.gz`` is written.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.data.prepare_data import prepare
from pipeline.files import write_whole
from pipeline.training.callback import Callback

FILE = Path(__file__).with_name("curves.csv.gz")
EPOCHS = 9


@dataclass(frozen=True, order=True)
class Point:
    """A configuration of the grid."""

    seed: int
    schedule: str
    lr: float
    model: str


MODELS = ("small_cnn", "squeezenet1_1", "shufflenet_v2_x0_5", "timm/resnet10t")
LRS = tuple(float(f"{lr:.3g}") for lr in np.geomspace(1e-4, 3e-2, 8))
SCHEDULES = ("none", "exponential", "cosine")
SEEDS = (0, 1)
GRID = [Point(*values) for values in itertools.product(SEEDS, SCHEDULES, LRS, MODELS)]


def train(
    point: Point, prepared_in: Path, callbacks: Sequence[Callback] = ()
) -> list[tuple[float, float]]:
    """Return validation accuracy and loss of each epoch of a training.

    It is shorter if the loss is not finite.
    """
    import torch

    from pipeline.config import Configuration
    from pipeline.errors import LossNotFinite
    from pipeline.training.build_context import open_context
    from pipeline.training.fit import fit
    from pipeline.training.fit_result import result_of

    torch.set_num_threads(1)
    raw = {
        "data": {"source": "digits", "image_size": 32, "batch_size": 64, "workers": 0},
        "model": {"name": point.model},
        "optimizer": {"name": "adamw", "lr": point.lr, "weight_decay": 1e-4},
        "schedule": {"name": point.schedule, "gamma": 0.6, "warmup_epochs": 1},
        "training": {
            "epochs": EPOCHS,
            "seed": point.seed,
            "device": "cpu",
            "precision": "fp32",
            "memory_format": "contiguous",
        },
    }
    configuration = Configuration.model_validate(raw)
    prepared = prepare(configuration.data, prepared_in)
    with (
        tempfile.TemporaryDirectory() as folder,
        open_context(configuration, prepared, Path(folder) / "best.safetensors") as setting,
    ):
        try:
            fitted = fit(configuration, setting, callbacks)
        except LossNotFinite as error:
            print(f"{point}: {error}", flush=True)
            fitted = result_of(error)
            assert fitted is not None
    return [(values["val/accuracy"], values["val/loss"]) for values in fitted.history]


def _train_into(given: tuple[Point, Path]) -> None:
    point, folder = given
    file = folder / ("-".join(map(str, asdict(point).values())).replace("/", "_") + ".json")
    if not file.exists():
        write_whole(
            file, json.dumps({**asdict(point), "epochs": train(point, folder / "prepared")})
        )


def record(folder: Path, grid: Sequence[Point] = GRID, processes: int = 2) -> None:
    """Train what is missing of the grid, and write the file."""
    (folder / "prepared").mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        for number, _ in enumerate(pool.map(_train_into, [(point, folder) for point in grid]), 1):
            print(f"{number} of {len(grid)}", flush=True)
    pack(folder)


def pack(folder: Path) -> None:
    """Write the file from what has been trained."""
    trainings = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    rows = [
        {
            **training,
            "epochs": None,
            "epoch": epoch,
            "val_accuracy": round(accuracy, 6),
            "val_loss": round(loss, 5),
        }
        for training in trainings
        for epoch, (accuracy, loss) in enumerate(training["epochs"], 1)
    ]
    table = (
        pd.DataFrame(rows)
        .drop(columns="epochs")
        .sort_values(["model", "schedule", "lr", "seed", "epoch"])
    )
    table.to_csv(FILE, index=False, compression={"method": "gzip", "mtime": 0})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    record(parser.parse_args().folder)
    sys.exit(0)
