"""What the quality gate has found: a report, warnings, and the error if a policy refuses it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pipeline.config import Data
from pipeline.data.examine import Examined
from pipeline.data.leaks import SplitOf, find_leaks, warn_of_divided_groups
from pipeline.data.quality_gate import FEW, Inspection
from pipeline.data.sources.source import SPLITS
from pipeline.data.splits import fold_name
from pipeline.errors import UserError
from pipeline.natural_order import natural_key

MOST_LISTED = 1000
"""Sets of duplicates, or leaking pairs, that the report lists; it counts all."""
_NOT_SPLIT = "not split yet"
"""Column of the images without a split, in the report on images that are refused."""

Report = dict[str, Any]


class Refused(UserError):
    """A policy is ``error``, and there is something to refuse.

    Attributes:
        report: What was found, as in report.json.
    """

    def __init__(self, message: str, findings: Sequence[str], report: Report) -> None:
        super().__init__(message, findings)
        self.report = report


def class_warnings(counts: dict[str, dict[str, int]]) -> list[str]:
    """Return warnings about classes that have few images, or none in a split.

    Args:
        counts: Number of images by class and split.
    """
    warnings = []
    for label, count in sorted(counts.items(), key=lambda item: natural_key(item[0])):
        missing = [split for split, number in count.items() if not number]
        if missing:
            warnings.append(f"class {label!r} has no images in {' and '.join(missing)}")
        folds = [number for split, number in count.items() if split not in ("train", "val", "test")]
        if folds:
            # All folds but one train. When the fullest fold validates, the fewest images are left.
            train = sum(folds) - max(folds)
        else:
            train = count["train"]
        if 0 < train < FEW:
            noun = "image" if train == 1 else "images"
            warnings.append(f"class {label!r} has {train} training {noun}")
    return warnings


def build_refusal(
    message: str,
    findings: Sequence[str],
    inspection: Inspection,
    data: Data,
    source: str,
    ignored: dict[str, int],
) -> Refused:
    """Return the error for images that are refused; its report has counts, but no splits yet."""
    items = inspection.kept_items
    given = {item.split for item in items}
    names = [split for split in SPLITS if split in given]
    if "" in given:
        names.append(_NOT_SPLIT)
    found = Counter((item.label, item.split or _NOT_SPLIT) for item in items)
    classes = sorted({item.label for item in inspection.items})
    counts = {}
    for label in classes:
        counts[label] = {name: found[label, name] for name in names}
    report = build_report(inspection, data, source, ignored, None) | {
        "refused": message,
        "digest": "",
        "classes": classes,
        "splits": names,
        "counts": counts,
        "samples": {},
    }
    return Refused(message, findings, report)


def build_report(
    inspection: Inspection,
    data: Data,
    source: str,
    ignored: dict[str, int],
    splits: Sequence[str] | None,
) -> Report:
    """Return what report.json holds, without digest, counts and samples.

    Args:
        inspection: What was found.
        data: The policies.
        source: Description of the source.
        ignored: Files passed over, counted by extension.
        splits: Splits of the images that are kept; None if they are not assigned yet.
    """
    split_of = _split_each(inspection, splits).__getitem__
    order = list(SPLITS)
    if splits is not None:
        order = [*map(fold_name, range(data.folds)), *SPLITS]
    leaks = find_leaks(inspection, split_of, order)
    return {
        "name": data.name,
        "source": source,
        "num_images": len(inspection.kept),
        "policies": {
            "bad": data.bad,
            "duplicates": data.duplicates,
            "near_distance": data.near_distance,
        },
        "quarantined": _report_quarantined(inspection),
        "duplicates": _report_duplicates(inspection, split_of),
        "num_leaks": len(leaks),
        "leaks": leaks[:MOST_LISTED],
        "warnings": [*inspection.warnings, *warn_of_divided_groups(inspection, split_of)],
        "ignored": ignored,
    }


def _split_each(inspection: Inspection, splits: Sequence[str] | None) -> list[str]:
    """Return the split of every image; an image that is left out has its source's, or none."""
    result = [item.split for item in inspection.items]
    if splits is not None:
        for number, split in zip(inspection.kept, splits, strict=True):
            result[number] = split
    return result


def _report_quarantined(inspection: Inspection) -> list[Report]:
    quarantined = []
    for number, why in sorted(inspection.quarantined.items()):
        item = inspection.items[number]
        quarantined.append({"path": item.path, "label": item.label, "reason": why})
    return quarantined


def _report_duplicates(inspection: Inspection, split_of: SplitOf) -> Report:
    """Return the number of sets of duplicates, how many of them are doubtful, and a list of them.

    Sets under several labels stand first, then sets in several splits, then large sets.
    """

    def has_two_labels(members: list[int]) -> bool:
        return len(_labels_of(members, inspection)) > 1

    def is_across_splits(members: list[int]) -> bool:
        found = {split_of(number) for number in members if number not in inspection.quarantined}
        return len(found) > 1

    def sort_key(members: list[int]) -> tuple[bool, bool, int, list[int]]:
        return not has_two_labels(members), not is_across_splits(members), -len(members), members

    ordered = sorted(inspection.duplicates, key=sort_key)
    return {
        "num_groups": len(ordered),
        "num_images": sum(map(len, ordered)),
        "under_two_labels": sum(map(has_two_labels, ordered)),
        "across_splits": sum(map(is_across_splits, ordered)),
        "groups": [_report_set(members, inspection, split_of) for members in ordered[:MOST_LISTED]],
    }


def _report_set(members: list[int], inspection: Inspection, split_of: SplitOf) -> Report:
    images = []
    for number in members:
        item = inspection.items[number]
        images.append(
            {
                "path": item.path,
                "label": item.label,
                "split": split_of(number),
                "kept": number not in inspection.quarantined,
            }
        )
    return {"kind": "equal" if _is_equal(members, inspection) else "near", "images": images}


def _is_equal(members: Sequence[int], inspection: Inspection) -> bool:
    """Whether all images of a set have equal pixels."""
    return len({int(inspection.equal[number]) for number in members}) == 1


def _labels_of(members: Sequence[int], inspection: Inspection) -> list[str]:
    return sorted({inspection.items[number].label for number in members})


def refuse(
    inspection: Inspection, examined: Examined, data: Data, source: str, ignored: dict[str, int]
) -> None:
    """Raise an error if a policy is ``error`` and has something to refuse.

    Raises:
        Refused: The error lists every finding of the kind that is refused.
    """
    bad = [
        f"{inspection.items[number].path}: {why}"
        for number, why in sorted(examined.unreadable.items())
    ]
    if bad and data.bad == "error":
        count = "1 image" if len(bad) == 1 else f"{len(bad)} images"
        message = (
            f"{count} in {source} cannot be read; "
            "repair or remove, or leave them out with data.bad warn"
        )
        raise build_refusal(message, sorted(bad), inspection, data, source, ignored)
    if inspection.duplicates and data.duplicates == "error":
        images = sum(map(len, inspection.duplicates))
        lines = [describe_duplicates(members, inspection) for members in inspection.duplicates]
        message = (
            f"{images} images in {source} are copies or nearly so, in {len(lines)} sets; "
            "data.duplicates is error (or group, warn, drop)"
        )
        raise build_refusal(message, lines, inspection, data, source, ignored)
    if len(_labels_of(inspection.kept, inspection)) < 2:
        message = f"{source} has fewer than two classes with images that can be used"
        raise build_refusal(message, sorted(bad), inspection, data, source, ignored)


def describe_duplicates(members: Sequence[int], inspection: Inspection) -> str:
    """Return a set of duplicates as one line."""
    line = "equal" if _is_equal(members, inspection) else "nearly equal"
    labels = _labels_of(members, inspection)
    if len(labels) > 1:
        line += f", under {len(labels)} labels: {', '.join(labels)}"
    line += f": {', '.join(inspection.items[number].path for number in members[:4])}"
    if len(members) > 4:
        line += f" and {len(members) - 4} more"
    return line


def find_majority(counts: dict[str, dict[str, int]]) -> tuple[str, float]:
    """Return the class with most training images, and its share of the validation images.

    The share is the score of a network that always answers with this class.

    Args:
        counts: Number of images by class and split.
    """
    train = {}
    for label, count in counts.items():
        own = [number for split, number in count.items() if split not in ("val", "test")]
        train[label] = sum(own)
    largest = max(sorted(train), key=train.__getitem__)
    validated = {label: count.get("val", train[label]) for label, count in counts.items()}
    total = sum(validated.values())
    return largest, validated[largest] / total if total else 0.0
