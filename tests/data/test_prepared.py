"""Prepared data: manifest, splits and decoded images."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.config import Data
from pipeline.data.prepare_data import prepare
from pipeline.data.prepared import Prepared
from pipeline.data.sources import SPLITS
from pipeline.errors import UserError
from tests.data.conftest import WriteImages, write_image


def data_of(root: Path, **fields: object) -> Data:
    return Data.model_validate({"source": f"folder:{root}", "image_size": 8, **fields})


def check_pixels(prepared: Prepared, data: Data, root: Path) -> None:
    """Check that each row of the manifest has the pixels of its file."""
    store = prepared.images
    assert len(store) == len(prepared.manifest)
    for position, path in enumerate(prepared.manifest["path"]):
        assert np.array_equal(
            store[position], prepared.decoding.resize(prepared.decoding.decode(root / path).image)
        ), path


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Data, Prepared]:
    data = Data(image_size=8)
    return data, prepare(data, tmp_path_factory.mktemp("prepared"))


def test_digits_are_split_and_decoded(digits: tuple[Data, Prepared]) -> None:
    _, prepared = digits
    assert {split: len(prepared.positions(split)) for split in SPLITS} == {
        "train": 1259,
        "val": 269,
        "test": 269,
    }
    assert prepared.classes == list("0123456789")
    assert len(prepared.images) == 1797


def test_positions_are_disjoint_and_complete(digits: tuple[Data, Prepared]) -> None:
    _, prepared = digits
    positions = np.concatenate([prepared.positions(split) for split in SPLITS])
    assert sorted(positions.tolist()) == list(range(1797))


def test_labels_are_indices_of_classes(digits: tuple[Data, Prepared]) -> None:
    _, prepared = digits
    assert [prepared.classes[label] for label in prepared.labels()] == prepared.manifest[
        "label"
    ].tolist()


def test_counts_are_those_of_the_manifest(digits: tuple[Data, Prepared]) -> None:
    _, prepared = digits
    assert sum(sum(of_class.values()) for of_class in prepared.counts().values()) == 1797
    assert prepared.counts()["0"] == {"train": 124, "val": 27, "test": 27}


def test_normalisation_is_that_of_the_training_images(digits: tuple[Data, Prepared]) -> None:
    _, prepared = digits
    store = prepared.images
    pixels = np.stack([store[position] for position in prepared.positions("train")]) / 255
    mean, std = prepared.normalisation()
    assert mean == pytest.approx(pixels.mean(axis=(0, 2, 3)), abs=1e-5)
    assert std == pytest.approx(pixels.std(axis=(0, 2, 3)), abs=1e-5)


def test_blank_images_do_not_divide_by_zero(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        for number in range(3):
            (tmp_path / "photos" / label).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (7, 7, 7)).save(tmp_path / "photos" / label / f"{number}.png")
    data = data_of(tmp_path / "photos", duplicates="ignore")
    assert min(prepare(data, tmp_path / "prepared").normalisation()[1]) > 0


def test_a_folder_is_prepared(photos: WriteImages, tmp_path: Path) -> None:
    root = photos({"cat": 10, "dog": 5})
    data = data_of(root)
    prepared = prepare(data, tmp_path / "prepared")
    assert prepared.folder.parent == tmp_path / "prepared"
    assert prepared.folder.name == f"photos-{prepared.digest[:8]}"
    assert prepared.source == str(root.resolve())
    assert prepared.counts() == {
        "cat": {"train": 6, "val": 2, "test": 2},
        "dog": {"train": 3, "val": 1, "test": 1},
    }
    check_pixels(prepared, data, root)


def test_the_files_describe_the_data(photos: WriteImages, tmp_path: Path) -> None:
    prepared = prepare(data_of(photos({"cat": 5, "dog": 5})), tmp_path / "prepared")
    written = pd.read_csv(prepared.folder / "manifest.csv", dtype=str, keep_default_na=False)
    assert list(written) == ["path", "label", "split", "group", "sha256", "reason"]
    assert list(prepared.manifest) == ["path", "label", "split", "group", "sha256"]
    for column in prepared.manifest:
        assert written[column].tolist() == prepared.manifest[column].tolist()
    assert json.loads((prepared.folder / "classes.json").read_text()) == ["cat", "dog"]
    description = json.loads((prepared.folder / "data.json").read_text())
    assert (description["digest"], description["images"]) == (prepared.digest, prepared.counts())


def test_pictures_of_other_shapes_are_stored_at_their_own(tmp_path: Path) -> None:
    for number, size in enumerate([(8, 8), (30, 10), (10, 30), (200, 2)] * 2):
        write_image(tmp_path / "photos" / ("cat" if number < 4 else "dog") / f"{number}.png", size)
    data = data_of(tmp_path / "photos", store_size=12, interpolation="bicubic")
    check_pixels(prepare(data, tmp_path / "prepared"), data, tmp_path / "photos")


def snapshot(folder: Path) -> dict[str, int]:
    return {
        str(file.relative_to(folder)): file.stat().st_mtime_ns for file in sorted(folder.rglob("*"))
    }


def test_preparing_twice_uses_the_first(photos: WriteImages, tmp_path: Path) -> None:
    data = data_of(photos({"cat": 5, "dog": 5}))
    first = prepare(data, tmp_path / "prepared")
    before = snapshot(tmp_path / "prepared")
    stages: set[str] = set()
    second = prepare(data, tmp_path / "prepared", lambda what, done, total: stages.add(what))
    assert snapshot(tmp_path / "prepared") == before
    assert second.digest == first.digest and second.folder == first.folder
    assert stages == set()


def test_progress_counts_up_to_all(photos: WriteImages, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    prepare(
        data_of(photos({"cat": 3, "dog": 4})),
        tmp_path / "prepared",
        lambda *stage: told.append(stage),
    )
    assert told == [("decoding", done, 7) for done in range(1, 8)]


def test_another_size_is_added_to_the_same_folder(photos: WriteImages, tmp_path: Path) -> None:
    root = photos({"cat": 5, "dog": 5})
    small, large = data_of(root), data_of(root, image_size=16)
    first, second = (
        prepare(small, tmp_path / "prepared"),
        prepare(large, tmp_path / "prepared"),
    )
    assert first.folder == second.folder
    check_pixels(first, small, root)
    check_pixels(second, large, root)


@pytest.mark.parametrize("change", ["image", "label", "seed", "removed"])
def test_other_data_have_another_folder(photos: WriteImages, tmp_path: Path, change: str) -> None:
    root = photos({"cat": 8, "dog": 8})
    first = prepare(data_of(root), tmp_path / "prepared")
    if change == "image":
        write_image(root / "cat" / "000.png", (9, 9))
    elif change == "label":
        (root / "cat" / "000.png").rename(root / "dog" / "new.png")
    elif change == "removed":
        (root / "cat" / "000.png").unlink()
    second = prepare(data_of(root, seed=1 if change == "seed" else 0), tmp_path / "prepared")
    assert second.digest != first.digest and second.folder != first.folder


def test_the_digest_does_not_depend_on_the_place(photos: WriteImages, tmp_path: Path) -> None:
    root = photos({"cat": 5, "dog": 5})
    first = prepare(data_of(root), tmp_path / "prepared")
    root.rename(tmp_path / "moved")
    assert prepare(data_of(tmp_path / "moved"), tmp_path / "prepared").digest == first.digest


@pytest.mark.parametrize(
    ("old", "new"),
    [("val", "Validation"), ("train/cat/000.png", "train/cat/zzz.png")],
    ids=["folder", "file"],
)
def test_renamed_images_keep_their_pixels(
    photos: WriteImages, tmp_path: Path, old: str, new: str
) -> None:
    root = photos({f"{split}/{label}": 3 for split in SPLITS for label in ("cat", "dog")})
    data = data_of(root)
    prepare(data, tmp_path / "prepared")
    (root / old).rename(root / new)
    check_pixels(prepare(data, tmp_path / "prepared"), data, root)


def test_all_unreadable_images_are_listed(photos: WriteImages, tmp_path: Path) -> None:
    root = photos({"cat": 5, "dog": 5})
    (root / "cat" / "001.png").write_bytes(b"")
    (root / "dog" / "002.png").write_text("no picture")
    whole = (root / "dog" / "003.png").read_bytes()
    (root / "dog" / "003.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError) as caught:
        prepare(data_of(root), tmp_path / "prepared")
    assert caught.value.message == (
        f"3 images in {root.resolve()} cannot be read; repair or remove, or leave them out "
        "with data.bad warn"
    )
    assert [finding.partition(":")[0] for finding in caught.value.findings] == [
        "cat/001.png",
        "dog/002.png",
        "dog/003.png",
    ]
    assert caught.value.findings[:2] == ["cat/001.png: empty file", "dog/002.png: not an image"]
    assert "<_io.BytesIO" not in str(caught.value)
    assert not list((tmp_path / "prepared").glob("photos-*"))


def test_one_unreadable_image_is_counted_as_one(photos: WriteImages, tmp_path: Path) -> None:
    root = photos({"cat": 5, "dog": 5})
    (root / "cat" / "001.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"^1 image in "):
        prepare(data_of(root), tmp_path / "prepared")


def test_once_repaired_the_images_are_prepared(photos: WriteImages, tmp_path: Path) -> None:
    root = photos({"cat": 5, "dog": 5})
    (root / "cat" / "001.png").write_bytes(b"")
    with pytest.raises(UserError):
        prepare(data_of(root), tmp_path / "prepared")
    write_image(root / "cat" / "001.png")
    check_pixels(
        prepare(data_of(root), tmp_path / "prepared"),
        data_of(root),
        root,
    )


def prepare_in(data: Data, root: Path) -> str:
    return str(prepare(data, root).folder)


def test_two_processes_may_prepare_at_once(photos: WriteImages, tmp_path: Path) -> None:
    root = photos({"cat": 60, "dog": 60})
    data = data_of(root)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(len, [(), ()], chunksize=1)
        folders = pool.starmap(prepare_in, [(data, tmp_path / "prepared")] * 2, chunksize=1)
    assert len(set(folders)) == 1
    check_pixels(prepare(data, tmp_path / "prepared"), data, root)


@pytest.mark.parametrize("other_size", [8, 16])
def test_another_process_may_prepare_the_same_meanwhile(
    photos: WriteImages, tmp_path: Path, other_size: int
) -> None:
    root = photos({"cat": 5, "dog": 5})
    data = data_of(root)
    processes = []

    def overtake(what: str, done: int, total: int) -> None:
        if done == total:
            arguments = (data_of(root, image_size=other_size), tmp_path / "prepared")
            processes.append(
                multiprocessing.get_context("spawn").Process(target=prepare_in, args=arguments)
            )
            processes[-1].start()
            if other_size != 8:
                processes[-1].join()

    check_pixels(prepare(data, tmp_path / "prepared", overtake), data, root)
    processes[0].join(60)
    assert processes[0].exitcode == 0
    check_pixels(prepare(data, tmp_path / "prepared"), data, root)


def test_without_a_store_the_tensors_are_the_same_to_the_last_bit(
    photos: WriteImages, tmp_path: Path
) -> None:
    root = photos({"cat": 5, "dog": 5})
    write_image(root / "cat" / "wide.png", (90, 33))
    stored = prepare(data_of(root), tmp_path / "stored")
    unstored = prepare(data_of(root, store="none"), tmp_path / "unstored")
    assert not list((tmp_path / "unstored").glob("images-*"))
    assert stored.digest == unstored.digest
    assert all(
        np.array_equal(stored.images[position], unstored.images[position]) for position in range(11)
    )
    assert stored.normalisation() == unstored.normalisation()


def test_folds_take_turns_to_validate_and_share_a_digest(
    photos: WriteImages, tmp_path: Path
) -> None:
    root = photos({"cat": 20, "dog": 20})
    prepared = [
        prepare(data_of(root, folds=4, fold=fold), tmp_path / "prepared") for fold in range(4)
    ]
    assert len({one.digest for one in prepared}) == 1
    assert prepared[0].digest != prepare(data_of(root), tmp_path / "prepared").digest
    validating = np.concatenate([one.positions("val") for one in prepared])
    tested = prepared[0].positions("test")
    assert sorted([*validating.tolist(), *tested.tolist()]) == list(range(40))
    for fold, one in enumerate(prepared):
        assert not set(one.positions("train").tolist()) & set(one.positions("val").tolist())
        assert len(one.positions("train")) + len(one.positions("val")) + len(tested) == 40
        assert (
            one.positions("val").tolist() == prepared[0].with_fold(fold).positions("val").tolist()
        )
    assert len({str(one.normalisation()) for one in prepared}) == 4


@pytest.mark.parametrize("colour", ["blakc", "white5"])
def test_a_colour_that_is_none_is_refused(photos: WriteImages, tmp_path: Path, colour: str) -> None:
    data = Data.model_construct(
        **{
            **Data().model_dump(),
            "source": f"folder:{photos({'cat': 3, 'dog': 3})}",
            "background": colour,
        }
    )
    with pytest.raises(UserError, match=r"unknown data\.background"):
        prepare(data, tmp_path / "prepared")


def test_the_background_shows_below_transparent_pixels(tmp_path: Path) -> None:
    for number in range(6):
        file = tmp_path / "photos" / ("cat" if number < 3 else "dog") / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", (8, 8), (0, 0, 0, number)).save(file)
    data = data_of(tmp_path / "photos", background="#ff0000", duplicates="ignore")
    prepared = prepare(data, tmp_path / "prepared")
    assert prepared.images[0][:, 0, 0].tolist()[0] > 240
    assert prepared.images[0][:, 0, 0].tolist()[1:] == [0, 0]
    white = prepare(data_of(tmp_path / "photos", duplicates="ignore"), tmp_path / "prepared")
    assert min(white.images[0][:, 0, 0].tolist()) > 240


def test_a_full_disk_is_one_line_and_leaves_the_old_store_intact(
    photos: WriteImages, tmp_path: Path
) -> None:
    root = photos({"cat": 8, "dog": 8})
    old = data_of(root)
    prepare(old, tmp_path / "prepared")
    code = (
        "import resource, sys; from pathlib import Path; from pipeline.config import Data; "
        "from pipeline.errors import UserError;from pipeline.data.prepare_data import prepare;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000));"
        f"data = Data(source='folder:{root}', image_size=256, store_size=256)\n"
        f"try: prepare(data, Path({str(tmp_path / 'prepared')!r}))\n"
        "except UserError as error: sys.exit(str(error))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == f"images cannot be stored in {tmp_path / 'prepared'}: File too large\n"
    check_pixels(prepare(old, tmp_path / "prepared"), old, root)
    larger = data_of(root, image_size=256, store_size=256)
    check_pixels(prepare(larger, tmp_path / "prepared"), larger, root)
