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
from pipeline.data.sources import Item, Source, open_source
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
    thumbnails = report_content.make_thumbnails(
        _images(source, items, examined, recipe), items, examined.unreadable
    )
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
        thumbnails = report_content.make_thumbnails(
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
        on_report(report_content.complete_report(prepared, inspection, source, splits), thumbnails)
    return prepared


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
    write_if_changed(
        prepared.folder / "classes.json", json.dumps(prepared.classes, ensure_ascii=False, indent=1)
    )
    write_if_changed(
        prepared.folder / "data.json", json.dumps(description, ensure_ascii=False, indent=1)
    )
    write_if_changed(prepared.folder / "manifest.csv", text)


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


def _assigned(inspection: quality_gate.Inspection, data: Data, source: Source) -> list[str]:
    try:
        return assign_splits(inspection.kept_items, data, inspection.groups[inspection.kept])
    except UserError as error:
        raise findings.build_refusal(
            error.message, error.findings, inspection, data, source.description, source.ignored
        ) from None


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


def _contents(manifest: pd.DataFrame, is_changed: NDArray[np.bool_]) -> list[str]:
    """Return what stands for each image in the digest: of other pixels than release 0.1.0 made of it, something else than there."""
    # Of the version that makes them; it stays when versions follow that leave these images as they are.
    return [
        f"{content}-2" if changed else content
        for content, changed in zip(manifest["sha256"], is_changed, strict=True)
    ]
