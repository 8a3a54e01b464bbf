"""Benchmark of training: ``python -m tests.benchmarks.training``.

A training with everything logged against a bare PyTorch loop over the same batches, whose losses
are equal, and against PyTorch Lightning; the measured number and memory format against the plain
one; a frozen backbone against the plain frozen loop; and the time to the first step. Two that are
compared alternate every half second, each in a process of its own. The images are real:
scikit-learn's digits, and its two photographs in crops for 224 pixels. The benchmark prints a
table, and exits 0 if its bounds hold. It takes about half an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as lightning
import torch
from PIL import Image
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import MLFlowLogger
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from pipeline import models
from pipeline.config import Configuration, merge
from pipeline.data.prepare_data import prepare
from pipeline.data.prepared import Prepared
from pipeline.jobs.train import Placement, TrackedTraining
from pipeline.jobs.training_job import Job
from pipeline.tracking.workspace import open_workspace
from tests.benchmarks.measure import Results, sliced

LOOP_BOUND, AUTO_BOUND, AUTO_NEVER_BELOW, FROZEN_BOUND, START_BOUND = 1.05, 1.8, 0.97, 6.0, 2.0
RESNET_ON_DIGITS: dict[str, Any] = {
    "data": {"source": "digits", "image_size": 32, "batch_size": 64},
    "model": {"name": "resnet18"},
    "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4},
    "training": {"epochs": 10, "precision": "fp32", "memory_format": "contiguous", "device": "cpu"},
}


def job_of(raw: dict[str, Any], prepared: Prepared) -> Job:
    configuration = Configuration.model_validate(raw)
    return Job(configuration, models.origin(configuration.model), prepared)


def sgd_of(configuration: Configuration, network: torch.nn.Module) -> torch.optim.SGD:
    given = configuration.optimizer
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return torch.optim.SGD(
        trained, lr=given.lr, momentum=given.momentum, weight_decay=given.weight_decay, fused=True
    )


class BareLoop:
    """What a person would write.

    Images, order, network and optimizer are the same, in memory as tensors, and nothing is logged.
    """

    def __init__(self, configuration: Configuration, prepared: Prepared) -> None:
        self.configuration = configuration
        network = models.build(configuration.model, 10, configuration.data.image_size)
        mean_and_std = network.normalisation or prepared.normalisation()
        self.mean, self.std = (torch.tensor(values).view(1, 3, 1, 1) for values in mean_and_std)
        labels = torch.from_numpy(prepared.labels())
        self.splits = {}
        for split in ("train", "val"):
            positions = prepared.positions(split)
            images = torch.from_numpy(
                np.stack([prepared.images[int(position)] for position in positions])
            )
            self.splits[split] = (images, labels[positions])

    def batches(self, split: str, epoch: int) -> DataLoader[Any]:
        """Return the batches of an epoch; training in the order that the pipeline takes."""
        images, labels = self.splits[split]
        order = np.arange(len(labels))
        if split == "train":
            order = np.random.default_rng((self.configuration.training.seed, epoch)).permutation(
                len(labels)
            )
        size = self.configuration.data.batch_size
        parts = [order[start : start + size] for start in range(0, len(order), size)]
        pairs = [
            (images[part].float().div_(255), labels[part])
            for part in parts
            if len(part) > 1 or split == "val"
        ]
        return DataLoader(pairs, batch_size=None)

    def normalise(self, images: Tensor) -> Tensor:
        """Return the network's input."""
        return (images - self.mean) / self.std

    def __call__(self) -> list[float]:
        """Train; return the mean training loss of each epoch."""
        torch.manual_seed(self.configuration.training.seed)
        network = models.build(
            self.configuration.model, 10, self.configuration.data.image_size
        ).module
        sgd = sgd_of(self.configuration, network)
        losses = []
        for epoch in range(1, self.configuration.training.epochs + 1):
            # A frozen backbone keeps its statistics; nothing needs its gradients.
            network.train(self.configuration.model.freeze == "none")
            total, seen = 0.0, 0
            for images, labels in self.batches("train", epoch):
                sgd.zero_grad(set_to_none=True)
                loss = functional.cross_entropy(network(self.normalise(images)), labels)
                loss.backward()
                sgd.step()
                total, seen = total + loss.item() * len(labels), seen + len(labels)
            network.eval()
            with torch.inference_mode():
                correct = sum(
                    int((network(self.normalise(images)).argmax(1) == labels).sum())
                    for images, labels in self.batches("val", epoch)
                )
            assert correct >= 0
            losses.append(total / seen)
        return losses


def lightning_of(bare: BareLoop) -> Any:
    """Return the module that Lightning's user would write for the same work."""
    configuration = bare.configuration

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = models.build(
                configuration.model, 10, configuration.data.image_size
            ).module
            self.losses: list[float] = []

        def train_dataloader(self) -> DataLoader[Any]:
            return bare.batches("train", self.current_epoch + 1)

        def val_dataloader(self) -> DataLoader[Any]:
            return bare.batches("val", 0)

        def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
            images, labels = batch
            loss = functional.cross_entropy(self.network(bare.normalise(images)), labels)
            self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(labels))
            return loss

        def validation_step(self, batch: tuple[Tensor, Tensor], number: int) -> None:
            images, labels = batch
            logits = self.network(bare.normalise(images))
            self.log("val_loss", functional.cross_entropy(logits, labels), batch_size=len(labels))
            self.log(
                "val_accuracy", (logits.argmax(1) == labels).float().mean(), batch_size=len(labels)
            )

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return sgd_of(configuration, self.network)

    return Classifier()


class Lightning:
    """PyTorch Lightning with its MLflow logger and checkpoint callback, over the same batches."""

    def __init__(self, bare: BareLoop, folder: Path) -> None:
        self.bare, self.folder = bare, folder

    def __call__(self) -> None:
        """Train."""
        torch.manual_seed(self.bare.configuration.training.seed)
        module = lightning_of(self.bare)
        trainer = lightning.Trainer(
            max_epochs=self.bare.configuration.training.epochs,
            accelerator="cpu",
            logger=MLFlowLogger(
                "lightning", tracking_uri=f"sqlite:///{self.folder / 'lightning.db'}"
            ),
            callbacks=[
                ModelCheckpoint(self.folder / "lightning", monitor="val_accuracy", mode="max")
            ],
            reload_dataloaders_every_n_epochs=1,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module)


class Ours:
    """Our training, each time as a run of its own, everything logged."""

    def __init__(self, raw: dict[str, Any], prepared: Prepared) -> None:
        self.workspace = open_workspace("benchmark")
        self.job = job_of(raw, prepared)

    def __call__(self) -> list[float]:
        """Train; return the mean training loss of each epoch."""
        done = TrackedTraining(self.workspace, self.job, Placement("benchmark")).run()
        return [
            metric.value
            for metric in self.workspace.client.get_metric_history(done.run_id, "train/loss")
        ]


def shortened(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration with one epoch.

    A contestant trains it first, so that what happens once has happened.
    """
    return merge(raw, {"training": {"epochs": 1}})


def prepared_of(raw: dict[str, Any], folder: Path) -> Prepared:
    return prepare(Configuration.model_validate(raw).data, folder / "prepared")


def make_ours(raw: dict[str, Any], folder: Path, name: str) -> Ours:
    """Return our training, in a folder and with a store of its own."""
    # What is done once so many seconds: half of them it is stopped.
    os.environ["MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL"] = "20"
    raw = merge(raw, {"training": {"checkpoint_seconds": 120}})
    own = folder / name
    own.mkdir(exist_ok=True)
    os.chdir(own)
    prepared = prepared_of(raw, folder)
    Ours(shortened(raw), prepared)()
    return Ours(raw, prepared)


def make_bare(raw: dict[str, Any], folder: Path) -> BareLoop:
    prepared = prepared_of(raw, folder)
    BareLoop(Configuration.model_validate(shortened(raw)), prepared)()
    return BareLoop(Configuration.model_validate(raw), prepared)


def make_lightning(raw: dict[str, Any], folder: Path) -> Lightning:
    prepared = prepared_of(raw, folder)
    Lightning(BareLoop(Configuration.model_validate(shortened(raw)), prepared), folder)()
    return Lightning(BareLoop(Configuration.model_validate(raw), prepared), folder)


def make_ours_with_features_anew(raw: dict[str, Any], folder: Path) -> Callable[[], list[float]]:
    """Return our training of a frozen backbone that finds no features kept from an earlier one."""
    ours = make_ours(raw, folder, "frozen")

    def anew() -> list[float]:
        for features in (folder / "prepared").glob("features-*"):
            shutil.rmtree(features)
        return ours()

    return anew


def compare_with_loop(results: Results, folder: Path, rounds: int) -> None:
    raw = RESNET_ON_DIGITS
    own, other, ratio, losses = sliced(
        partial(make_ours, raw, folder, "loop"), partial(make_bare, raw, folder), rounds
    )
    assert np.allclose(*losses, rtol=1e-4), "the loss curves differ: not the same work"
    measured = f"{1 / ratio:.3f} times as long, at most {LOOP_BOUND}"
    what = f"resnet18 on the digits, {raw['training']['epochs']} epochs, everything logged"
    results.add(what, f"{own:.1f} s", f"bare loop {other:.1f} s", measured, 1 / ratio <= LOOP_BOUND)


def compare_with_lightning(results: Results, folder: Path, rounds: int) -> None:
    raw = RESNET_ON_DIGITS
    own, other, ratio, _ = sliced(
        partial(make_ours, raw, folder, "against"), partial(make_lightning, raw, folder), rounds
    )
    measured = f"{1 / ratio:.3f} times as long, less than 1"
    results.add(
        "the same against Lightning",
        f"{own:.1f} s",
        f"Lightning {other:.1f} s",
        measured,
        ratio > 1,
    )


def compare_frozen(results: Results, folder: Path, rounds: int) -> None:
    raw = merge(RESNET_ON_DIGITS, {"data": {"image_size": 64}, "model": {"freeze": "backbone"}})
    own, other, ratio, losses = sliced(
        partial(make_ours_with_features_anew, raw, folder), partial(make_bare, raw, folder), rounds
    )
    assert np.allclose(*losses, rtol=1e-4), "the loss curves differ: not the same work"
    measured = f"{ratio:.1f} times as fast, at least {FROZEN_BOUND}"
    results.add(
        "frozen resnet18 at 64, 10 epochs",
        f"{own:.1f} s",
        f"plain frozen loop {other:.1f} s",
        measured,
        ratio >= FROZEN_BOUND,
    )


def write_crops(root: Path, count: int) -> Path:
    """Write crops of scikit-learn's two photographs, one class each."""
    rng = np.random.default_rng(0)
    for name, photograph in zip(("temple", "flower"), load_sample_images().images, strict=True):
        (root / name).mkdir(parents=True)
        for number in range(count // 2):
            left, top = rng.integers(0, 640 - 260), rng.integers(0, 427 - 260)
            Image.fromarray(photograph).crop((left, top, left + 260, top + 260)).save(
                root / name / f"{number}.jpg", quality=92
            )
    return root


def compare_numerics(results: Results, folder: Path, rounds: int) -> None:
    data = {
        "source": f"folder:{write_crops(folder / 'crops', 120)}",
        "image_size": 224,
        "batch_size": 16,
        "duplicates": "ignore",
    }
    raw = {
        "data": data,
        "model": {"name": "resnet18"},
        "optimizer": {"name": "sgd", "lr": 1e-3},
        "training": {"epochs": 1, "device": "cpu"},
    }
    plain = merge(raw, {"training": {"precision": "fp32", "memory_format": "contiguous"}})
    prepared_of(raw, folder)  # Which a contestant, that must not start processes, then finds.
    # Chooses in the training that warms up: once per study.
    own, other, ratio, _ = sliced(
        partial(make_ours, raw, folder, "auto"), partial(make_ours, plain, folder, "plain"), rounds
    )
    has_amx = "amx_bf16" in Path("/proc/cpuinfo").read_text()
    bound = AUTO_BOUND if has_amx else AUTO_NEVER_BELOW
    where = "with AMX" if has_amx else "without AMX"
    measured = f"{ratio:.2f} times as fast, at least {bound} {where}"
    results.add(
        "resnet18 at 224, batch 16, auto",
        f"{own:.1f} s",
        f"fp32 contiguous {other:.1f} s",
        measured,
        ratio >= bound,
    )


FIRST_STEP = """
import sys, time
import mlflow, mlflow.store.tracking.sqlalchemy_store, mlflow.data.meta_dataset
import torch, torchvision, sklearn.metrics, sklearn.datasets, pandas, matplotlib.figure
import torch.utils.tensorboard, safetensors.torch, psutil
from pipeline.__main__ import main
import pipeline.steps.train, pipeline.jobs.train, pipeline.tracking.ui_views
from pipeline.training.callback import Callback
from pipeline.report.console import TrainingProgress

def on_step(self, epoch, loss, accuracy, lr):
    print("SECONDS", time.perf_counter() - started, flush=True)
    raise KeyboardInterrupt

TrainingProgress.on_step = on_step
started = time.perf_counter()
main(sys.argv[1:])
"""


def time_to_first_step(results: Results, folder: Path) -> None:
    """Run the command in a new process.

    Imports are done before the clock starts; store and prepared data exist.
    """
    options = [
        f"--{section}.{name}={json.dumps(value) if not isinstance(value, str) else value}"
        for section, fields in RESNET_ON_DIGITS.items()
        for name, value in fields.items()
    ]
    experiment = folder / "first.yaml"
    experiment.write_text("experiment: first\n")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    times = []
    for seed in range(4):
        arguments = [
            sys.executable,
            "-c",
            FIRST_STEP,
            "train",
            "--config",
            str(experiment),
            *options,
            "--training.seed",
            str(seed),
        ]
        out = subprocess.run(
            arguments, capture_output=True, text=True, cwd=folder, env=environment, check=False
        ).stdout
        times.append(
            next(float(line.split()[1]) for line in out.splitlines() if line.startswith("SECONDS"))
        )
    # The first one makes the store and prepares.
    taken = float(np.median(times[1:]))
    results.add(
        "from command to first step, beyond imports",
        f"{taken:.2f} s",
        "",
        f"{taken:.2f} s, at most {START_BOUND} s",
        taken <= START_BOUND,
    )


def main() -> int:
    """Run all; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4, help="pairs of trainings that are timed")
    parser.add_argument(
        "--only", choices=["start", "loop", "lightning", "auto", "frozen"], help="one row"
    )
    arguments = parser.parse_args()
    results = Results("Training, on the CPU")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.chdir(folder)
        started = time.perf_counter()
        rounds, fewer = arguments.rounds, max(arguments.rounds // 2, 2)
        rows: dict[str, Callable[[], None]] = {
            "start": lambda: time_to_first_step(results, folder),
            "loop": lambda: compare_with_loop(results, folder, rounds),
            "lightning": lambda: compare_with_lightning(results, folder, rounds),
            "auto": lambda: compare_numerics(results, folder, rounds),
            "frozen": lambda: compare_frozen(results, folder, fewer),
        }
        for name, measure in rows.items():
            if arguments.only in (None, name):
                measure()
        print(f"{time.perf_counter() - started:.0f} s")
        os.chdir("/")
    return results.conclude()


if __name__ == "__main__":
    sys.exit(main())
