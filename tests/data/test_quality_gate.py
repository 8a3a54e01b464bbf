"""The quality gate: what is found, and what each policy makes of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.config import Data
from pipeline.data.findings import Refused, Report
from pipeline.data.prepare_data import prepare
from pipeline.data.prepared import Prepared
from pipeline.data.sources import SPLITS
from tests.data.conftest import WriteImages, write_image
from tests.data.test_duplicates import drawing

POLICIES = ["group", "warn", "drop", "ignore"]


def gated(root: Path, **fields: Any) -> tuple[Prepared, Report, dict[str, bytes]]:
    """Prepare a folder; return the report with it, and the pictures of all images that it names."""
    reports: list[tuple[Report, dict[str, bytes]]] = []
    data = Data.model_validate({"source": f"folder:{root}", "image_size": 8, **fields})
    paths = [str(file.relative_to(root)) for file in root.rglob("*.*")]
    prepared = prepare(
        data,
        root.parent / "prepared",
        on_report=lambda report, show: reports.append((report, show(paths))),
    )
    ((report, pictures),) = reports
    return prepared, report, pictures


def split_of(prepared: Prepared) -> dict[str, str]:
    return dict(zip(prepared.manifest["path"], prepared.manifest["split"], strict=True))


@pytest.fixture
def given_splits(photos: WriteImages) -> Path:
    """Given splits, with copies.

    One training picture stands in test too, another in val, and a third twice in training.
    """
    root = photos({f"{split}/{label}": 12 for split in SPLITS for label in ("cat", "dog")})
    shutil.copyfile(root / "test/cat/000.png", root / "train/cat/leak.png")
    shutil.copyfile(root / "val/cat/000.png", root / "train/cat/leak2.png")
    shutil.copyfile(root / "train/dog/001.png", root / "train/dog/zcopy.png")
    return root


def test_leaks_across_given_splits_are_reported_by_pair(given_splits: Path) -> None:
    _, report, _ = gated(given_splits)
    assert report["num_leaks"] == 2
    assert {
        (pair["first"], pair["first_split"], pair["second"], pair["second_split"], pair["kind"])
        for pair in report["leaks"]
    } == {
        ("train/cat/leak.png", "train", "test/cat/000.png", "test", "equal"),
        ("train/cat/leak2.png", "train", "val/cat/000.png", "val", "equal"),
    }
    assert (report["duplicates"]["num_groups"], report["duplicates"]["across_splits"]) == (3, 2)


def test_drop_removes_the_copy_from_training_never_from_test(given_splits: Path) -> None:
    prepared, report, _ = gated(given_splits, duplicates="drop")
    assert {path for path in split_of(prepared) if path.startswith("test/")} == {
        f"test/{label}/{number:03d}.png" for label in ("cat", "dog") for number in range(12)
    }
    assert {entry["path"]: entry["reason"] for entry in report["quarantined"]} == {
        "train/cat/leak.png": "copy of test/cat/000.png",
        "train/cat/leak2.png": "copy of val/cat/000.png",
        "train/dog/zcopy.png": "copy of train/dog/001.png",
    }
    assert [(leak["first"], leak["second"], leak["removed"]) for leak in report["leaks"]] == [
        ("train/cat/leak.png", "test/cat/000.png", True),
        ("train/cat/leak2.png", "val/cat/000.png", True),
    ]
    manifest = pd.read_csv(prepared.folder / "manifest.csv", keep_default_na=False)
    left_out = manifest[manifest["split"] == "quarantined"]
    assert dict(zip(left_out["path"], left_out["reason"], strict=True)) == {
        entry["path"]: entry["reason"] for entry in report["quarantined"]
    }


def test_two_copies_within_test_both_stay(given_splits: Path) -> None:
    shutil.copyfile(given_splits / "test/dog/000.png", given_splits / "test/dog/zcopy.png")
    prepared, _, _ = gated(given_splits, duplicates="drop")
    assert (
        split_of(prepared)["test/dog/zcopy.png"] == split_of(prepared)["test/dog/000.png"] == "test"
    )


@pytest.mark.parametrize("policy", ["warn", "ignore", "group"])
def test_other_policies_keep_every_image(given_splits: Path, policy: str) -> None:
    prepared, report, _ = gated(given_splits, duplicates=policy)
    assert len(prepared.manifest) == 75
    assert report["quarantined"] == []
    assert report["duplicates"]["num_groups"] == (0 if policy == "ignore" else 3)


@pytest.fixture
def copied(photos: WriteImages) -> Path:
    """Twelve pictures per class.

    One of each class is there eight times, and one under both labels.
    """
    root = photos({"cat": 20, "dog": 20})
    for label in ("cat", "dog"):
        for number in range(7):
            shutil.copyfile(root / label / "000.png", root / label / f"copy{number}.png")
    shutil.copyfile(root / "cat" / "001.png", root / "dog" / "cat.png")
    return root


@pytest.mark.parametrize("seed", range(8))
def test_group_keeps_copies_on_one_side(copied: Path, seed: int) -> None:
    prepared, _, _ = gated(copied, seed=seed)
    splits = split_of(prepared)
    for label in ("cat", "dog"):
        assert (
            len(
                {
                    split
                    for path, split in splits.items()
                    if path == f"{label}/000.png" or path.startswith(f"{label}/copy")
                }
            )
            == 1
        )
    assert splits["cat/001.png"] == splits["dog/cat.png"]


def test_warn_lets_them_fall_apart(copied: Path) -> None:
    assert any(
        len(
            {
                split
                for path, split in split_of(gated(copied, seed=seed, duplicates="warn")[0]).items()
                if "copy" in path
            }
        )
        > 1
        for seed in range(3)
    )


@pytest.mark.parametrize("policy", ["group", "warn", "drop"])
def test_equal_pictures_under_two_labels_are_listed_first(copied: Path, policy: str) -> None:
    _, report, _ = gated(copied, duplicates=policy)
    assert report["duplicates"]["under_two_labels"] == 1
    assert {image["path"] for image in report["duplicates"]["groups"][0]["images"]} == {
        "cat/001.png",
        "dog/cat.png",
    }


def test_error_refuses_duplicates_and_still_reports(copied: Path) -> None:
    reports: list[Report] = []
    data = Data(source=f"folder:{copied}", image_size=8, duplicates="error")
    with pytest.raises(Refused) as caught:
        prepare(
            data, copied.parent / "prepared", on_report=lambda report, show: reports.append(report)
        )
    assert caught.value.message.startswith(
        f"18 images in {copied.resolve()} are copies or nearly so, in 3 sets; data.duplicates is "
        "error"
    )
    assert "equal, under 2 labels: cat, dog: cat/001.png, dog/cat.png" in caught.value.findings
    (report,) = reports
    assert report["refused"] == caught.value.message
    assert report["duplicates"]["num_groups"] == 3
    assert report["counts"] == {"cat": {"not split yet": 27}, "dog": {"not split yet": 28}}
    assert not list((copied.parent / "prepared").glob("photos-*"))


def test_nearly_equal_pictures_are_kept_together_and_named_near(tmp_path: Path) -> None:
    for label, offset in (("cat", 0), ("dog", 100)):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(8):
            drawing(offset + number).save(tmp_path / "photos" / label / f"{number}.png")
    drawing(3).resize((120, 120)).save(tmp_path / "photos" / "cat" / "small.jpg")
    prepared, report, _ = gated(tmp_path / "photos")
    assert [
        (group["kind"], [image["path"] for image in group["images"]])
        for group in report["duplicates"]["groups"]
    ] == [("near", ["cat/3.png", "cat/small.jpg"])]
    assert split_of(prepared)["cat/3.png"] == split_of(prepared)["cat/small.jpg"]
    assert gated(tmp_path / "photos", near_distance=-1)[1]["duplicates"]["num_groups"] == 0


BAD = {
    "empty.png": (b"", "empty file"),
    "text.jpg": (b"this is no picture", "not an image"),
    "header.png": (b"\x89PNG\r\n\x1a\n", "not an image"),
}


@pytest.fixture
def bad(photos: WriteImages) -> Path:
    root = photos({"cat": 8, "dog": 8})
    for name, (content, _) in BAD.items():
        (root / "cat" / name).write_bytes(content)
    whole = (root / "dog" / "003.png").read_bytes()
    (root / "dog" / "cut.png").write_bytes(whole[: len(whole) // 2])
    write_image(root / "dog" / "bomb.png", (300, 200))
    (root / "dog" / "gone.png").symlink_to(root / "nowhere.png")
    (root / "dog" / "notes.txt").write_text("passed over")
    return root


@pytest.mark.parametrize("policy", ["warn", "drop"])
def test_unreadable_images_are_left_out_and_listed_with_their_reasons(
    bad: Path, policy: str
) -> None:
    before = {file: file.lstat().st_mtime_ns for file in bad.rglob("*")}
    prepared, report, pictures = gated(bad, bad=policy, max_pixels=50_000)
    reasons = {entry["path"]: entry["reason"] for entry in report["quarantined"]}
    assert {f"cat/{name}": reason for name, (_, reason) in BAD.items()}.items() <= reasons.items()
    assert "truncated" in reasons["dog/cut.png"]
    assert reasons["dog/gone.png"] == "No such file or directory"
    assert reasons["dog/bomb.png"] == "300 × 200 pixels, more than data.max_pixels (50000)"
    assert len(prepared.manifest) == 16
    assert report["ignored"] == {".txt": 1}
    assert set(pictures) == set(prepared.manifest["path"])
    assert {file: file.lstat().st_mtime_ns for file in bad.rglob("*")} == before


def test_unreadable_images_are_refused_by_default_and_reported(bad: Path) -> None:
    reports: list[Report] = []
    with pytest.raises(
        Refused,
        match=(
            r"^5 images in .* cannot be read; repair or remove, or leave them out with data\.bad "
            "warn"
        ),
    ):
        prepare(
            Data(source=f"folder:{bad}", image_size=8),
            bad.parent / "prepared",
            on_report=lambda report, show: reports.append(report),
        )
    assert len(reports[0]["quarantined"]) == 5


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("cat", "Cat", True), ("black cat", "black_cat", True), ("black cat", "black-cat", True),
        ("1", "01", True), ("1", "1.0", True), ("1,5", "1.50", True), ("１", "1", True),
        ("caf\u00e9", "cafe\u0301", True), ("1", "-1", False), ("1", "2", False),
        ("12", "1-2", False),
        ("cat", "cats", False), ("1", "1a", False), ("-", "_", False), ("1e3", "1000", False),
    ],
)  # fmt: skip
def test_labels_that_are_probably_one_class_are_warned_of(
    tmp_path: Path, one: str, other: str, alike: bool
) -> None:
    rows = [("image", "label")]
    for number in range(24):
        write_image(tmp_path / f"{number}.png")
        rows.append((f"{number}.png", f'"{one if number % 2 else other}"'))
    (tmp_path / "table.csv").write_text(
        "".join(",".join(row) + "\n" for row in rows), encoding="utf-8"
    )
    reports: list[dict[str, Any]] = []
    prepare(
        Data(source=f"csv:{tmp_path / 'table.csv'}", image_size=8),
        tmp_path / "prepared",
        on_report=lambda report, _: reports.append(report),
    )
    assert any("one class in 2 spellings?" in line for line in reports[0]["warnings"]) == alike


def test_classes_are_warned_of(photos: WriteImages) -> None:
    root = photos(
        {
            "train/Cat": 12,
            "train/cat ": 12,
            "train/dog": 3,
            "val/dog": 1,
            "test/dog": 2,
            "test/Cat": 2,
            "test/cat ": 2,
        }
    )
    warnings = gated(root)[1]["warnings"]
    assert (
        "classes 'Cat' and 'cat ' differ only in how they are written: one class in 2 spellings?"
        in warnings
    )
    assert "class 'Cat' has no images in val" in warnings
    assert "class 'dog' has 3 training images" in warnings


def test_the_majority_rate_is_what_always_answering_the_largest_class_scores(
    photos: WriteImages,
) -> None:
    prepared, report, _ = gated(photos({"cat": 10, "dog": 30}))
    labels, val = prepared.manifest["label"].to_numpy(), prepared.positions("val")
    assert report["majority"] == {"class": "dog", "share": (labels[val] == "dog").mean()}
    _, report, _ = gated(photos({"cat": 10, "dog": 30}), folds=3)
    assert report["majority"]["share"] == pytest.approx(0.75, abs=0.02)


def test_groups_of_a_csv_are_not_divided_whatever_the_policy(
    photos: WriteImages, tmp_path: Path
) -> None:
    root = photos({"cat": 40, "dog": 40})
    rows = [
        (f"{label}/{number:03d}.png", label, f"{label}{number // 4}")
        for label in ("cat", "dog")
        for number in range(40)
    ]
    pd.DataFrame(rows, columns=["image", "label", "group"]).to_csv(root / "list.csv", index=False)
    for policy in POLICIES:
        source = f"csv:{root / 'list.csv'}"
        data = Data(source=source, image_size=8, duplicates=policy)  # type: ignore[arg-type]
        prepared = prepare(data, tmp_path / "prepared")
        manifest = pd.read_csv(prepared.folder / "manifest.csv")
        assert (manifest.groupby("group")["split"].nunique() == 1).all()
        assert manifest["group"].nunique() == 20


def test_a_group_that_the_given_splits_divide_is_warned_of(photos: WriteImages) -> None:
    root = photos({"cat": 20, "dog": 20})
    rows = [
        (f"{label}/{n:03d}.png", label, "test" if n < 5 else "train", f"p{n // 4}{label}")
        for label in ("cat", "dog")
        for n in range(20)
    ]
    pd.DataFrame(rows, columns=["image", "label", "split", "group"]).to_csv(
        root / "list.csv", index=False
    )
    reports: list[Report] = []
    prepare(
        Data(source=f"csv:{root / 'list.csv'}", image_size=8),
        root.parent / "prepared",
        on_report=lambda report, _: reports.append(report),
    )
    assert [warning for warning in reports[0]["warnings"] if warning.startswith("group")] == [
        "group 'p1cat' stands in test and train",
        "group 'p1dog' stands in test and train",
    ]


@pytest.mark.parametrize(("num_alike", "warned"), [(30, True), (4, False)])
def test_one_large_set_of_nearly_equal_images_is_doubted(
    tmp_path: Path, num_alike: int, warned: bool
) -> None:
    for label, offset in (("cat", 0), ("dog", 100)):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(30):
            drawing(offset + number).save(tmp_path / "photos" / label / f"{number}.png")
    for number in range(num_alike):
        drawing(0).resize((150 + number, 150 + number)).save(
            tmp_path / "photos" / "cat" / f"alike{number}.png"
        )
    warnings = gated(tmp_path / "photos")[1]["warnings"]
    assert [
        warning.startswith(f"{num_alike + 1} of {60 + num_alike} images are one set")
        for warning in warnings
    ] == [True] * warned


def test_thumbnails_are_small_pictures_of_the_files(photos: WriteImages) -> None:
    root = photos({"cat": 6, "dog": 6})
    Image.new("RGB", (50, 20), (200, 30, 40)).save(root / "cat" / "red.png")
    _, _, pictures = gated(root)
    (root.parent / "red.jpg").write_bytes(pictures["cat/red.png"])
    with Image.open(root.parent / "red.jpg") as picture:
        assert min(picture.size) == 96
        assert np.abs(np.asarray(picture).mean(axis=(0, 1)) - (200, 30, 40)).max() < 4


def test_copies_that_our_own_splits_separate_are_leaks_too(copied: Path) -> None:
    _, report, _ = gated(copied, duplicates="warn")
    assert report["num_leaks"] > 0
    assert all(leak["first_split"] != leak["second_split"] for leak in report["leaks"])


def test_an_image_without_a_split_follows_its_copy_in_test(given_splits: Path) -> None:
    files = sorted(given_splits.rglob("*.png"))
    rows = [
        (
            file.relative_to(given_splits),
            file.parent.name,
            file.parts[-3] if file.parts[-3] == "test" else "",
        )
        for file in files
    ]
    pd.DataFrame(rows, columns=["image", "label", "split"]).to_csv(
        given_splits / "list.csv", index=False
    )
    reports: list[Report] = []
    data = Data(source=f"csv:{given_splits / 'list.csv'}", image_size=8)
    prepared = prepare(
        data, given_splits.parent / "prepared", on_report=lambda report, _: reports.append(report)
    )
    splits = split_of(prepared)
    assert splits["train/cat/leak.png"] == splits["test/cat/000.png"] == "test"
    assert splits["train/cat/leak2.png"] == splits["val/cat/000.png"]
    assert reports[0]["num_leaks"] == 0


def test_a_leak_is_shown_with_its_equal_copy(tmp_path: Path) -> None:
    for split in SPLITS:
        for label, offset in (("cat", 0), ("dog", 100)):
            folder = tmp_path / "photos" / split / label
            folder.mkdir(parents=True)
            for number in range(4):
                drawing(1000 * SPLITS.index(split) + offset + number).save(folder / f"{number}.png")
    root = tmp_path / "photos"
    drawing(0).resize((170, 170)).save(root / "test/cat/a near.png")
    shutil.copyfile(root / "train/cat/0.png", root / "test/cat/b equal.png")
    _, report, _ = gated(root)
    assert [(leak["first"], leak["second"], leak["kind"]) for leak in report["leaks"]] == [
        ("train/cat/0.png", "test/cat/b equal.png", "equal")
    ]


def test_classes_that_differ_by_composed_accents_are_doubted(photos: WriteImages) -> None:
    _, report, _ = gated(photos({"caf\u00e9": 12, "cafe\u0301": 12}))
    assert [warning for warning in report["warnings"] if "differ only" in warning]


def test_a_class_that_is_small_beside_its_validating_fold_is_warned_of(photos: WriteImages) -> None:
    _, report, _ = gated(photos({"cat": 40, "dog": 13}), folds=3)
    assert "class 'dog' has 7 training images" in report["warnings"]
