"""Read, check, split and decode the images of a configuration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import ImageColor

from pipeline.config import Data
from pipeline.data import findings, quality_gate, report_content
from pipeline.data.decode import VERSION
from pipeline.data.examine import Examined, Progress
from pipeline.data.examine_worker import Recipe
from pipeline.data.image_store import Store, Undecoded
from pipeline.data.picture_warnings import picture_warnings
from pipeline.data.prepared import Prepared, write_if_changed
from pipeline.data.sources import Source, open_source
from pipeline.data.splits import assign_splits, sample_images
from pipeline.data.white_level import examine_or_explain, resolve_white, store_grey
from pipeline.errors import UserError, unknown_name
from pipeline.identity import data_digest


def prepare(
    data: Data,
    root: Path,
    progress: Progress = lambda *_: None,
    on_report: report_content.OnReport | None = None,
    version: int = VERSION,
) -> Prepared:
    """Read, check, split and decode the images; what is there already is used again.

    Args:
        data: Which images, their split, size and policies.
        root: Folder that holds all prepared data.
        progress: Called with the number of finished images.
        on_report: Called with the report on the images, also if they are refused.
        version: Version of the decoding.

    Raises:
        UserError: The source is unknown, lists are wrong, images are too few, or a policy refuses
            something. All findings are listed.
    """
    if data.background[0] != "#" and data.background.lower() not in ImageColor.colormap:
        raise unknown_name("data.background", data.background, ImageColor.colormap)
    source = open_source(data)
    source.items = sample_images(source.items, data)
    recipe = Recipe.of(data, root, version)
    examined = examine_or_explain(source, source.items, recipe, progress)
    inspection = quality_gate.inspect(source.items, examined, data)
    inspection.warnings += source.warnings
    try:
        findings.refuse(inspection, examined, data, source.description, source.ignored)
        splits = _assign_splits(inspection, data, source)
    except findings.Refused as refused:
        if on_report:
            on_report(refused.report, _make_thumbnails(source, examined, recipe))
        raise
    if data.white == "auto":
        data = resolve_white(data, inspection, examined, splits)
        recipe = Recipe.of(data, root, version)
        store_grey(source, inspection, examined, recipe, progress)
    inspection.warnings += picture_warnings(source.items, inspection.kept, examined, data)
    numbers, manifest = _make_manifest(inspection, examined, splits)
    images = _open_images(source, examined, recipe, numbers)
    digest = _compute_digest(manifest, examined.is_changed[numbers])
    prepared = _assemble(data, recipe, source.description, manifest, images, digest)
    _write_lists(prepared, inspection)
    if on_report:
        report = report_content.complete_report(prepared, inspection, source, splits)
        on_report(report, _make_thumbnails(source, examined, recipe))
    return prepared


def _assign_splits(inspection: quality_gate.Inspection, data: Data, source: Source) -> list[str]:
    try:
        return assign_splits(inspection.kept_items, data, inspection.groups[inspection.kept])
    except UserError as error:
        raise findings.build_refusal(
            error.message, error.findings, inspection, data, source.description, source.ignored
        ) from None


def _make_thumbnails(
    source: Source, examined: Examined, recipe: Recipe
) -> report_content.Thumbnails:
    images = _open_images(source, examined, recipe, np.arange(len(source.items)))
    return report_content.make_thumbnails(images, source.items, examined.unreadable)


def _open_images(
    source: Source, examined: Examined, recipe: Recipe, numbers: NDArray[np.int64]
) -> Store | Undecoded:
    # Images of more than 8 bits are not stored before it is known which level is white.
    if recipe.stores and recipe.decoding.white != "auto":
        return Store(recipe.folder, examined.shards, examined.index[numbers])
    paths = [source.items[number].path for number in numbers]
    return Undecoded(source.reader, paths, recipe.decoding)


def _make_manifest(
    inspection: quality_gate.Inspection, examined: Examined, splits: Sequence[str]
) -> tuple[NDArray[np.int64], pd.DataFrame]:
    """Return the numbers of the images that are used, in the manifest's order, and the manifest."""
    items = inspection.items
    kept = inspection.kept
    contents = [examined.content[number].tobytes() for number in kept]

    def sort_key(place: int) -> tuple[str, str, bytes, str]:
        item = items[kept[place]]
        return splits[place], item.label, contents[place], item.path

    # The digest determines the order: a renamed file keeps its place, and so its part in training.
    order = sorted(range(len(kept)), key=sort_key)
    numbers = np.array([kept[place] for place in order], dtype=np.int64)
    paths = [items[number].path for number in numbers]
    labels = [items[number].label for number in numbers]
    hashes = [contents[place].hex() for place in order]
    groups = [items[number].group for number in numbers]
    manifest = pd.DataFrame(
        {
            "path": pd.array(paths, dtype="str"),
            "label": pd.Categorical(labels),
            "split": pd.Categorical([splits[place] for place in order]),
            "group": pd.Categorical(groups),
            "sha256": pd.array(hashes, dtype="str"),
        }
    )
    return numbers, manifest


def _compute_digest(manifest: pd.DataFrame, is_changed: NDArray[np.bool_]) -> str:
    """Return the digest over images, labels and splits.

    Images of which release 0.1.0 made other pixels have another digest than there.
    """
    contents = manifest["sha256"].to_list()
    # 2 is the version that makes these pixels. It stays 2 if later versions do not change them.
    for place in np.flatnonzero(is_changed).tolist():
        contents[place] += "-2"
    return data_digest(zip(contents, manifest["label"], manifest["split"], strict=True))


def _assemble(
    data: Data,
    recipe: Recipe,
    source: str,
    manifest: pd.DataFrame,
    images: Store | Undecoded,
    digest: str,
) -> Prepared:
    return Prepared(
        folder=recipe.root / f"{data.name}-{digest[:8]}",
        source=source,
        digest=digest,
        classes=sorted(set(manifest["label"])),
        manifest=manifest,
        images=images,
        data=data,
        version=recipe.decoding.version,
        fold=0 if data.fold == "all" else data.fold,
    )


def _write_lists(prepared: Prepared, inspection: quality_gate.Inspection) -> None:
    """Write the manifest and what describes it; files that would be equal stay as they are.

    Raises:
        UserError: The files cannot be written.
    """
    description = {
        "source": prepared.source,
        "digest": prepared.digest,
        "seed": prepared.data.seed,
        "images": prepared.counts(),
    }
    contents = {
        "classes.json": json.dumps(prepared.classes, ensure_ascii=False, indent=1),
        "data.json": json.dumps(description, ensure_ascii=False, indent=1),
        # The manifest is written last: if it is there, the rest is.
        "manifest.csv": _format_manifest(prepared, inspection),
    }
    try:
        prepared.folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_if_changed(prepared.folder / name, content)
    except OSError as error:
        raise UserError(
            f"images cannot be stored in {prepared.folder}: {error.strerror or error}"
        ) from error


def _format_manifest(prepared: Prepared, inspection: quality_gate.Inspection) -> str:
    """Return manifest.csv: the images that are used, then those that are left out, with reasons."""
    columns = ["path", "label", "split", "group", "sha256", "reason"]
    used = prepared.manifest.assign(reason="")
    left_out = []
    for number, why in sorted(inspection.quarantined.items()):
        item = inspection.items[number]
        left_out.append((item.path, item.label, "quarantined", item.group, "", why))
    below = pd.DataFrame(left_out, columns=columns)
    return used[columns].to_csv(index=False) + below.to_csv(index=False, header=False)
