"""Prepared data: checked, split and decoded images.

Under ``prepared/NAME-DIGEST/``: ``manifest.csv`` (path, label, split, group, sha256, and the reason for each image that is left
out), ``classes.json``, ``data.json``, and the normalisation of each size. The decoded pixels stand
beside it, shared by all data sets (see `pipeline.data.image_store`).
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageColor

from pipeline.config import Data
from pipeline.data import findings, quality_gate
from pipeline.data.decode import VERSION, Decoding
from pipeline.data.examine import Examined, Progress
from pipeline.data.examine_worker import Recipe
from pipeline.data.image_store import Store, Undecoded
from pipeline.data.picture_warnings import picture_warnings
from pipeline.data.resize import center_crop
from pipeline.data.sources import SPLITS, Item, Source, open_source
from pipeline.data.splits import assign_splits, fold_name, sample_images
from pipeline.data.white_level import examine_or_explain, resolve_white, store_grey
from pipeline.errors import UserError, unknown_name
from pipeline.files import write_whole
from pipeline.identity import data_digest

NORMALISATION_SAMPLE = 2000
"""Training images over which mean and standard deviation are taken, at most."""
SAMPLES_PER_CLASS = 8
THUMBNAIL = 96
"""Shorter side in pixels of the pictures in the report."""

Thumbnails = Callable[[Iterable[str]], dict[str, bytes]]
"""From paths to encoded small pictures; what cannot be shown is left out."""
OnReport = Callable[[findings.Report, Thumbnails], None]


@dataclass(frozen=True)
class Prepared:
    """Labelled images, split and decoded.

    Attributes:
        folder: Where the files are.
        source: Where the images came from.
        digest: 32 hex digits over images, labels and splits or folds.
        classes: Class names; an image's label is an index into them.
        manifest: One row per image that is used: path, label, split, sha256. With folds a split is ``fold 0`` … or ``test``.
        images: The decoded pixels, in the manifest's order.
        data: What they were prepared from; `white` is no longer ``auto``.
        version: Of the decoding.
        fold: The one that validates; without meaning where there are no folds.
    """

    folder: Path
    source: str
    digest: str
    classes: list[str]
    manifest: pd.DataFrame
    images: Store | Undecoded
    data: Data
    version: int = VERSION
    fold: int = 0

    @property
    def decoding(self) -> Decoding:
        """What was made of a file."""
        return Decoding.of(self.data, self.version)

    def first_digest(self) -> str:
        """Return the digest that these images have as release 0.1.0 decoded them, if it could use all of them."""
        return data_digest(
            zip(
                self.manifest["sha256"], self.manifest["label"], self.manifest["split"], strict=True
            )
        )

    def positions(self, split: str) -> NDArray[np.int64]:
        """Return the row numbers of a split's images, which are their places in `images`."""
        given = self.manifest["split"]
        if self.data.folds and split != "test":
            validates = given == fold_name(self.fold)
            return np.flatnonzero(validates if split == "val" else ~validates & (given != "test"))
        return np.flatnonzero(given == split)

    def labels(self) -> NDArray[np.int64]:
        """Return every image's label as an index into `classes`, shape (images,)."""
        return np.asarray(
            pd.Categorical(self.manifest["label"], categories=self.classes).codes, dtype=np.int64
        )

    def counts(self) -> dict[str, dict[str, int]]:
        """Return how many images each class has in each split."""
        found = self.manifest.groupby(["label", "split"], observed=True).size().to_dict()
        return {
            label: {split: int(found.get((label, split), 0)) for split in self.splits}
            for label in self.classes
        }

    @property
    def splits(self) -> list[str]:
        """Names of the splits, in order."""
        return (
            [*map(fold_name, range(self.data.folds)), "test"] if self.data.folds else list(SPLITS)
        )

    def with_fold(self, fold: int) -> Prepared:
        """Return the same images with another fold validating."""
        return replace(self, fold=fold)

    def normalisation(self) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation per channel of the training images, 0 to 1; computed when first asked for."""
        data = self.data
        fold = f"-fold-{self.fold}" if data.folds else ""
        decoding = self.decoding
        file = (
            self.folder
            / f"normalisation-{data.image_size}-{decoding.key}{decoding.grey_key}{fold}.json"
        )
        if not file.is_file():
            mean, std = _normalisation(self.images, self.positions("train"), data.image_size)
            # Kept only so that it is not computed again; where the folder cannot be written to, it is.
            with suppress(OSError):
                _write(file, json.dumps({"mean": mean, "std": std}))
            return mean, std
        statistics = json.loads(file.read_text())
        return statistics["mean"], statistics["std"]


def prepare(
    data: Data,
    root: Path,
    progress: Progress = lambda *_: None,
    on_report: OnReport | None = None,
    version: int = VERSION,
) -> Prepared:
    """Read, check, split and decode the images; what is there already is used again.

    Args:
        data: Which images, their split, size and policies.
        root: Folder that holds all prepared data.
        progress: Told how many images are done.
        on_report: Given the report on the images, also where they are refused.
        version: Of the decoding.

    Raises:
        UserError: Unknown source, wrong lists, too few images, or what a policy refuses (all are listed).
    """
    if data.background[0] != "#" and data.background.lower() not in ImageColor.colormap:
        raise unknown_name("data.background", data.background, ImageColor.colormap)
    source = open_source(data)
    items = sample_images(source.items, data)
    source.items = items
    recipe = Recipe.of(data, root, version)
    examined = examine_or_explain(source, items, recipe, progress)
    inspection = quality_gate.inspect(items, examined, data)
    inspection.warnings += source.warnings
    thumbnails = _thumbnails(_images(source, items, examined, recipe), items, examined.unreadable)
    try:
        findings.refuse(inspection, examined, data, source.description, source.ignored)
        splits = _assigned(inspection, data, source)
    except findings.Refused as refused:
        if on_report:
            on_report(refused.report, thumbnails)
        raise
    if data.white == "auto":
        data = resolve_white(data, inspection, examined, splits)
        recipe = Recipe.of(data, root, version)
        store_grey(source, inspection, examined, recipe, progress)
        thumbnails = _thumbnails(
            _images(source, items, examined, recipe), items, examined.unreadable
        )
    inspection.warnings += picture_warnings(items, inspection.kept, examined, data)
    numbers, manifest = _manifest(inspection, examined, splits)
    digest = data_digest(
        zip(
            _contents(manifest, examined.is_changed[numbers]),
            manifest["label"],
            manifest["split"],
            strict=True,
        )
    )
    prepared = Prepared(
        root / f"{data.name}-{digest[:8]}",
        source.description,
        digest,
        sorted(set(manifest["label"])),
        manifest,
        _images(source, [items[number] for number in numbers], examined, recipe, numbers),
        data,
        version,
        0 if data.fold == "all" else data.fold,
    )
    try:
        _write_lists(prepared, inspection, numbers)
    except OSError as error:
        raise UserError(
            f"images cannot be stored in {prepared.folder}: {error.strerror or error}"
        ) from error
    if on_report:
        on_report(_report(prepared, inspection, source, splits), thumbnails)
    return prepared


def _contents(manifest: pd.DataFrame, is_changed: NDArray[np.bool_]) -> list[str]:
    """Return what stands for each image in the digest: of other pixels than release 0.1.0 made of it, something else than there."""
    # Of the version that makes them; it stays when versions follow that leave these images as they are.
    return [
        f"{content}-2" if changed else content
        for content, changed in zip(manifest["sha256"], is_changed, strict=True)
    ]


def _manifest(
    inspection: quality_gate.Inspection, examined: Examined, splits: Sequence[str]
) -> tuple[NDArray[np.int64], pd.DataFrame]:
    """Return the numbers of the images that are used, in the manifest's order, and the manifest."""
    items, kept = inspection.items, inspection.kept
    contents = [examined.content[number].tobytes() for number in kept]
    # In an order that the digest determines: a renamed file keeps its place, and so its part in training.
    order = sorted(
        range(len(kept)),
        key=lambda place: (
            splits[place],
            items[kept[place]].label,
            contents[place],
            items[kept[place]].path,
        ),
    )
    numbers = np.array([kept[place] for place in order], dtype=np.int64)
    manifest = pd.DataFrame(
        {
            "path": pd.array([items[number].path for number in numbers], dtype="str"),
            "label": pd.Categorical([items[number].label for number in numbers]),
            "split": pd.Categorical([splits[place] for place in order]),
            "sha256": pd.array([contents[place].hex() for place in order], dtype="str"),
        }
    )
    return numbers, manifest


def _assigned(inspection: quality_gate.Inspection, data: Data, source: Source) -> list[str]:
    try:
        return assign_splits(inspection.kept_items, data, inspection.groups[inspection.kept])
    except UserError as error:
        raise findings.build_refusal(
            error.message, error.findings, inspection, data, source.description, source.ignored
        ) from None


def _images(
    source: Source,
    items: Sequence[Item],
    examined: Examined,
    recipe: Recipe,
    numbers: NDArray[np.int64] | None = None,
) -> Store | Undecoded:
    # Before it is known which level is white, images of more than 8 bits are not stored.
    if recipe.stores and recipe.decoding.white != "auto":
        return Store(
            recipe.folder,
            examined.shards,
            examined.index if numbers is None else examined.index[numbers],
        )
    return Undecoded(source.reader, [item.path for item in items], recipe.decoding)


def _thumbnails(
    images: Store | Undecoded, items: Sequence[Item], unreadable: Container[int]
) -> Thumbnails:
    def encoded(paths: Iterable[str]) -> dict[str, bytes]:
        wanted = set(paths)
        pictures = {}
        for number, item in enumerate(items):
            if item.path in wanted and number not in unreadable:
                image = Image.fromarray(images[number].transpose(1, 2, 0))
                scale = THUMBNAIL / min(image.size)
                image = image.resize(
                    (round(image.width * scale), round(image.height * scale)),
                    Image.Resampling.BICUBIC,
                )
                buffer = io.BytesIO()
                image.save(buffer, "JPEG", quality=85)
                pictures[item.path] = buffer.getvalue()
        return pictures

    return encoded


def _write_lists(
    prepared: Prepared, inspection: quality_gate.Inspection, numbers: NDArray[np.int64]
) -> None:
    groups = [inspection.items[number].group for number in numbers]
    used = prepared.manifest.assign(group=groups, reason="")
    left_out = [
        {
            "path": item.path,
            "label": item.label,
            "split": "quarantined",
            "group": item.group,
            "sha256": "",
            "reason": why,
        }
        for item, why in (
            (inspection.items[number], why)
            for number, why in sorted(inspection.quarantined.items())
        )
    ]
    columns = ["path", "label", "split", "group", "sha256", "reason"]
    text = used[columns].to_csv(index=False) + pd.DataFrame(left_out, columns=columns).to_csv(
        index=False, header=False
    )
    description = {
        "source": prepared.source,
        "digest": prepared.digest,
        "seed": prepared.data.seed,
        "images": prepared.counts(),
    }
    prepared.folder.mkdir(parents=True, exist_ok=True)
    # The manifest last: where it is, the rest is.
    _write(
        prepared.folder / "classes.json", json.dumps(prepared.classes, ensure_ascii=False, indent=1)
    )
    _write(prepared.folder / "data.json", json.dumps(description, ensure_ascii=False, indent=1))
    _write(prepared.folder / "manifest.csv", text)


def _write(file: Path, text: str) -> None:
    """Write a file whole or not at all; an equal one stays as it is."""
    if file.is_file() and file.read_text(encoding="utf-8") == text:
        return
    write_whole(file, text)


def _report(
    prepared: Prepared, inspection: quality_gate.Inspection, source: Source, splits: Sequence[str]
) -> findings.Report:
    counts = prepared.counts()
    inspection.warnings += findings.class_warnings(counts)
    largest, share = findings.find_majority(counts)
    report: dict[str, Any] = findings.build_report(
        inspection, prepared.data, prepared.source, source.ignored, splits
    )
    report |= {
        "digest": prepared.digest,
        "classes": prepared.classes,
        "splits": prepared.splits,
        "counts": counts,
    }
    report |= {"majority": {"class": largest, "share": share}, "samples": _samples(prepared)}
    return report


def _samples(prepared: Prepared) -> dict[str, list[str]]:
    """Return for each class some of its training images, evenly spread."""
    train = prepared.positions("train")
    labels = prepared.labels()[train]
    paths = prepared.manifest["path"].to_numpy()
    chosen = {}
    for number, name in enumerate(prepared.classes):
        own = train[labels == number]
        places = np.unique(
            np.linspace(0, len(own) - 1, min(len(own), SAMPLES_PER_CLASS)).astype(int)
        )
        chosen[name] = paths[own[places]].tolist()
    return chosen


def _normalisation(
    images: Store | Undecoded, positions: NDArray[np.int64], size: int
) -> tuple[list[float], list[float]]:
    chosen = positions[
        np.linspace(0, len(positions) - 1, min(len(positions), NORMALISATION_SAMPLE)).astype(int)
    ]
    total, squares = np.zeros(3), np.zeros(3)
    for position in chosen.tolist():
        crop = center_crop(images[position], size).reshape(3, -1).astype(np.float64) / 255
        total += crop.mean(axis=1)
        squares += (crop**2).mean(axis=1)
    mean = total / len(chosen)
    # A channel that never varies (all images blank) must not divide by zero.
    std = np.sqrt(np.maximum(squares / len(chosen) - mean**2, 1e-6))
    return mean.round(6).tolist(), std.round(6).tolist()
