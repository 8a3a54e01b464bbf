"""What the quality gate has found: as a report, as warnings, and as the error where a policy refuses it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pipeline.config import Data
from pipeline.data.examine import Examined
from pipeline.data.leaks import find_leaks, warn_of_divided_groups
from pipeline.data.quality_gate import FEW, Inspection
from pipeline.data.sources.source import SPLITS
from pipeline.data.splits import fold_name
from pipeline.errors import UserError
from pipeline.natural_order import natural_key

MOST_LISTED = 1000
"""Sets of duplicates, or leaking pairs, that the report lists; it counts all."""

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
    """Return what is thin in the classes' counts per split."""
    warnings = []
    for label, count in sorted(counts.items(), key=lambda item: natural_key(item[0])):
        missing = [split for split, number in count.items() if not number]
        if missing:
            warnings.append(f"class {label!r} has no images in {' and '.join(missing)}")
        folds = [number for split, number in count.items() if split not in ("train", "val", "test")]
        # Of folds all but one train; where the fullest validates, fewest are left.
        train = sum(folds) - max(folds) if folds else count["train"]
        if 0 < train < FEW:
            warnings.append(f"class {label!r} has {train} training image{'s' * (train != 1)}")
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
    given = [split for split in SPLITS if any(item.split == split for item in items)]
    names = given if all(item.split for item in items) else [*given, "not split yet"]
    found = Counter((item.label, item.split or "not split yet") for item in items)
    classes = sorted({item.label for item in inspection.items})
    report = build_report(inspection, data, source, ignored, None) | {
        "refused": message,
        "digest": "",
        "classes": classes,
        "splits": names,
        "counts": {label: {name: found[label, name] for name in names} for label in classes},
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
        splits: Of the images kept, or None where they are not assigned yet.
    """
    items = inspection.items
    of = dict(zip(inspection.kept, splits, strict=True)) if splits is not None else {}

    def split_of(number: int) -> str:
        return of.get(number, items[number].split)

    folds = [fold_name(fold) for fold in range(data.folds)] if splits is not None else []
    pairs = find_leaks(inspection, split_of, [*folds, *SPLITS])

    def entry(number: int) -> dict[str, Any]:
        item = items[number]
        return {
            "path": item.path,
            "label": item.label,
            "split": split_of(number),
            "kept": number not in inspection.quarantined,
        }

    def is_equal(members: list[int]) -> bool:
        return len({int(inspection.equal[number]) for number in members}) == 1

    def conflict(members: list[int]) -> bool:
        return len({items[number].label for number in members}) > 1

    def across(members: list[int]) -> bool:
        return (
            len({split_of(number) for number in members if number not in inspection.quarantined})
            > 1
        )

    ordered = sorted(
        inspection.duplicates,
        key=lambda members: (not conflict(members), not across(members), -len(members), members),
    )
    return {
        "name": data.name,
        "source": source,
        "num_images": len(inspection.kept),
        "policies": {
            "bad": data.bad,
            "duplicates": data.duplicates,
            "near_distance": data.near_distance,
        },
        "quarantined": [
            {"path": items[number].path, "label": items[number].label, "reason": why}
            for number, why in sorted(inspection.quarantined.items())
        ],
        "duplicates": {
            "num_groups": len(ordered),
            "num_images": sum(map(len, ordered)),
            "under_two_labels": sum(map(conflict, ordered)),
            "across_splits": sum(map(across, ordered)),
            "groups": [
                {
                    "kind": "equal" if is_equal(members) else "near",
                    "images": [entry(number) for number in members],
                }
                for members in ordered[:MOST_LISTED]
            ],
        },
        "num_leaks": len(pairs),
        "leaks": pairs[:MOST_LISTED],
        "warnings": [*inspection.warnings, *warn_of_divided_groups(inspection, split_of)],
        "ignored": ignored,
    }


def refuse(
    inspection: Inspection, examined: Examined, data: Data, source: str, ignored: dict[str, int]
) -> None:
    """Stop where a policy is ``error``.

    Raises:
        Refused: With every finding of the kind that is refused.
    """
    bad = [
        f"{inspection.items[number].path}: {why}"
        for number, why in sorted(examined.unreadable.items())
    ]
    if bad and data.bad == "error":
        count = "1 image" if len(bad) == 1 else f"{len(bad)} images"
        message = f"{count} in {source} cannot be read; repair or remove, or leave them out with data.bad warn"
        raise build_refusal(message, sorted(bad), inspection, data, source, ignored)
    if inspection.duplicates and data.duplicates == "error":
        images = sum(map(len, inspection.duplicates))
        lines = [describe_duplicates(members, inspection) for members in inspection.duplicates]
        message = f"{images} images in {source} are copies or nearly so, in {len(lines)} sets; data.duplicates is error (or group, warn, drop)"
        raise build_refusal(message, lines, inspection, data, source, ignored)
    if len({inspection.items[number].label for number in inspection.kept}) < 2:
        message = f"{source} has fewer than two classes with images that can be used"
        raise build_refusal(message, sorted(bad), inspection, data, source, ignored)


def describe_duplicates(members: Sequence[int], inspection: Inspection) -> str:
    """Return a set of duplicates as one line."""
    items = [inspection.items[number] for number in members]
    kind = (
        "equal"
        if len({int(inspection.equal[number]) for number in members}) == 1
        else "nearly equal"
    )
    labels = sorted({item.label for item in items})
    under = f", under {len(labels)} labels: {', '.join(labels)}" if len(labels) > 1 else ""
    paths = ", ".join(item.path for item in items[:4])
    return f"{kind}{under}: {paths}{f' and {len(items) - 4} more' if len(items) > 4 else ''}"


def find_majority(counts: dict[str, dict[str, int]]) -> tuple[str, float]:
    """Return the class with most training images, and its share of the validation images: what always answering it would score."""
    train = {
        label: sum(number for split, number in count.items() if split not in ("val", "test"))
        for label, count in counts.items()
    }
    largest = max(sorted(train), key=train.__getitem__)
    chosen = {label: count.get("val", train[label]) for label, count in counts.items()}
    total = sum(chosen.values())
    return largest, chosen[largest] / total if total else 0.0
