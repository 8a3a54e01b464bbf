"""Prepare the images of a configuration, and check what would be trained on them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from pipeline.config import Configuration, Data
from pipeline.data.catalogue import CATALOGUE
from pipeline.data.decode import VERSION, Decoding
from pipeline.data.examine_worker import Recipe
from pipeline.data.findings import Refused, find_majority
from pipeline.data.prepare_data import prepare
from pipeline.data.prepared import Prepared
from pipeline.data.report_content import Thumbnails
from pipeline.files import write_whole
from pipeline.report import data_report
from pipeline.report.console import Counter, say, say_once
from pipeline.report.format import format_percent
from pipeline.tracking.run_log import RunLog
from pipeline.tracking.tracked_run import TrackedRun
from pipeline.tracking.workspace import Workspace

REPORT = "prepare"
"""Folder of the report on the images, below the outputs and among a run's artifacts."""
_DONE_ABOUT_DUPLICATES = {
    "group": "kept on one side of a split",
    "drop": "copies left out",
    "warn": "nothing done",
    "error": "refused",
}
"""What is said of each policy on duplicates."""
_NOT_PREPARED = {"batch_size", "augment", "workers", "fold"}
"""Fields of `Data` that do not change what is prepared."""
_prepared: WeakKeyDictionary[Workspace, dict[str, Prepared]] = WeakKeyDictionary()
"""Images prepared before, by recipe; they are kept as long as the step that opened the store."""


def prepare_images(
    workspace: Workspace, data: Data, log_images: bool | None = None, version: int = VERSION
) -> Prepared:
    """Read, check, split and decode the images with progress; what is there already is used again.

    Images that this step has prepared before are not looked at again, unless a report is asked for
    or nothing is stored. So a study of 1,000 trainings looks at a million files once.

    Args:
        workspace: The open store; it knows the folders of prepared data and outputs.
        data: Which images, and how they are split and decoded.
        log_images: Whether the report on the images has pictures; None: no report is written.
        version: Version of the rules of decoding.

    Returns:
        The images; `resolve_white` tells what ``data.white auto`` has become.
    """
    before = _prepared.setdefault(workspace, {})
    recipe = f"{version} {data.model_dump_json(exclude=_NOT_PREPARED)}"
    if log_images is None and recipe in before:
        there = before[recipe]
        fold = 0 if data.fold == "all" else data.fold
        return replace(there, data=resolve_white(data, there), fold=fold)
    folder = workspace.outputs / REPORT

    def on_report(report: dict[str, Any], thumbnails: Thumbnails) -> None:
        write_report(folder, report, thumbnails if log_images else lambda _: {})
        _say_findings(report, folder / "report.html")

    if log_images is not None:
        workspace.need_writable(folder)
    if not (workspace.prepared / CATALOGUE).exists():
        # Otherwise all may be there already, and only read.
        workspace.need_writable(workspace.prepared)
    _say_if_decoded_anew(workspace.prepared, data, version)
    with Counter() as counter:
        prepared = prepare(
            data, workspace.prepared, counter, None if log_images is None else on_report, version
        )
    if data.store == "disk":
        before[recipe] = prepared
    say_once(_describe_images(data, prepared))
    return prepared


def _describe_images(data: Data, prepared: Prepared) -> str:
    counts = prepared.counts()
    sizes = []
    for split in prepared.splits:
        size = sum(count[split] for count in counts.values())
        sizes.append(f"{size} {split}")
    white = f"; data.white auto is {prepared.data.white}" if data.white == "auto" else ""
    return (
        f"{len(prepared.manifest)} images of {len(prepared.classes)} classes "
        f"from {prepared.source}: {', '.join(sizes)}; "
        f"data {prepared.digest[:8]} in {prepared.folder}{white}"
    )


def resolve_white(data: Data, prepared: Prepared) -> Data:
    """Return the same data with ``white auto`` replaced by the level that it has become."""
    if data.white != "auto":
        return data
    return data.model_copy(update={"white": prepared.data.white})


def with_white(configuration: Configuration, prepared: Prepared) -> Configuration:
    """Return a configuration with ``data.white auto`` replaced by the level that it has become.

    This level is hashed and recorded.
    """
    return configuration.model_copy(update={"data": resolve_white(configuration.data, prepared)})


def _say_if_decoded_anew(root: Path, data: Data, version: int) -> None:
    """Say once that images which an earlier release has decoded are decoded again."""
    folder = Recipe.of(data, root, version).folder
    before = Recipe.of(data, root, 1).folder
    if version > 1 and data.store == "disk" and not folder.exists() and before.exists():
        say(
            "this release decodes images otherwise (colour profiles are followed): "
            f"they are decoded anew; {before} is only needed to "
            "evaluate or go on with runs of release 0.1.0, and may be deleted"
        )


def prepare_as_recorded(workspace: Workspace, data: Data, digest: str, version: int) -> Prepared:
    """Prepare the images of a run that has recorded their digest, by the run's rules of decoding.

    The present rules are tried first. If they make the same of all images, nothing needs to be
    decoded again.

    Args:
        workspace: The open store; it knows the folder of prepared data.
        data: Which images, and how they are split and decoded.
        digest: Digest of the images that the run has recorded; empty: unknown.
        version: Version of the rules by which the run has decoded them.
    """
    prepared = prepare_images(workspace, data)
    if version == VERSION or prepared.digest == digest:
        return prepared
    return prepare_images(workspace, data, version=version)


def write_report(folder: Path, report: dict[str, Any], thumbnails: Thumbnails) -> None:
    """Write ``report.json``, and ``report.html`` with the pictures that `thumbnails` has."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, ensure_ascii=False, indent=1)
    page = data_report.to_html(report, thumbnails(data_report.paths_shown(report)))
    write_whole(folder / "report.json", text)
    write_whole(folder / "report.html", page)


def _say_findings(report: dict[str, Any], page: Path) -> None:
    """Print what a person should know before training."""
    _say_unusable(report)
    _say_duplicates(report)
    _say_leaks(report)
    for warning in report["warnings"][:20]:
        say(f"warning: {warning}")
    if len(report["warnings"]) > 20:
        say(f"and {len(report['warnings']) - 20} more warnings")
    if "majority" in report:
        largest = report["majority"]["class"]
        share = format_percent(report["majority"]["share"])
        say(f"always answering {largest!r} would be right in {share} of the validation images")
    say(f"report on the images: {page}")


def _say_unusable(report: dict[str, Any]) -> None:
    policy = report["policies"]["bad"]
    bad = [entry for entry in report["quarantined"] if not entry["reason"].startswith("copy of ")]
    if not bad or policy == "error":
        return
    what = "image cannot be used and is" if len(bad) == 1 else "images cannot be used and are"
    if policy != "warn":
        say(f"{len(bad)} {what} left out")
        return
    say(f"{len(bad)} {what} left out:")
    for entry in bad:
        say(f"  {entry['path']}: {entry['reason']}")


def _say_duplicates(report: dict[str, Any]) -> None:
    duplicates = report["duplicates"]
    if not duplicates["num_groups"]:
        return
    under = ""
    if duplicates["under_two_labels"]:
        under = f", {duplicates['under_two_labels']} of them under several labels"
    done = _DONE_ABOUT_DUPLICATES[report["policies"]["duplicates"]]
    say(
        f"{duplicates['num_images']} images are equal or nearly so, "
        f"in {duplicates['num_groups']} sets{under}: {done}"
    )


def _say_leaks(report: dict[str, Any]) -> None:
    if not report["num_leaks"]:
        return
    have = "images have" if report["num_leaks"] > 1 else "image has"
    pair = _pair(report["leaks"][0])
    done = "; the copies are left out" if report["policies"]["duplicates"] == "drop" else ""
    say(f"{report['num_leaks']} {have} a copy in another split, such as {pair}{done}")


def _pair(leak: dict[str, str]) -> str:
    return f"{leak['first']} ({leak['first_split']}) and {leak['second']} ({leak['second_split']})"


def prepare_variant(workspace: Workspace, data: Data, prepared: Prepared) -> Prepared:
    """Return the images as `data` wants them.

    For another size, shape or interpolation they are decoded first.
    """
    is_same_size = data.image_size == prepared.data.image_size
    if is_same_size and Decoding.of(data, prepared.version) == prepared.decoding:
        return prepared
    return prepare_images(workspace, data, version=prepared.version).with_fold(prepared.fold)


def log_preparation(workspace: Workspace, data: Data, log_images: bool) -> Prepared:
    """Prepare the images in a run of its own, with manifest, classes, report and dataset input."""
    refused: Refused | None = None
    try:
        prepared = prepare_images(workspace, data, log_images)
    except Refused as error:
        refused = error
    with TrackedRun(workspace, "prepare", f"prepare {data.name}", single=True) as run:
        run.params({f"data.{name}": value for name, value in data.model_dump(mode="json").items()})
        if refused:
            _log_pages(run)
            raise refused
        log_dataset(run, prepared, data)
        log_report(run, prepared)
        run.metrics({"majority_rate": majority_rate(prepared)})
    return prepared


def log_report(run: RunLog, prepared: Prepared) -> None:
    """Log the report on the images, and the manifest."""
    for name in ("manifest.csv", "classes.json", "data.json"):
        run.file(prepared.folder / name, REPORT)
    _log_pages(run)


def _log_pages(run: RunLog) -> None:
    for name in ("report.html", "report.json"):
        run.file(run.workspace.outputs / REPORT / name, REPORT)


def majority_rate(prepared: Prepared) -> float:
    """Return how often always answering the largest class would be right, from 0 to 1.

    This is the share of the validation images; with folds it is the share of all images.
    """
    return find_majority(prepared.counts())[1]


def log_dataset(run: TrackedRun, prepared: Prepared, data: Data) -> None:
    """Log the images as dataset inputs of a run."""
    run.dataset(data.name, prepared.source, prepared.digest, ["training", "validation"])
