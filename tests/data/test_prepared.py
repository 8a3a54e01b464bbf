"""Prepared data: manifest, splits and decoded images."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.config import Data
from pipeline.data.decode import decode, resize
from pipeline.data.prepared import Prepared, prepare
from pipeline.data.sources import SPLITS
from pipeline.errors import UserError
from tests.data.conftest import WriteImages, write_image


def data_of(root: Path, **fields: object) -> Data:
    return Data.model_validate({"source": f"folder:{root}", "image_size": 8, **fields})


def check_pixels(prepared: Prepared, data: Data, root: Path) -> None:
    """Check that each row of the manifest has the pixels of its file."""
    store = prepared.store(data)
    assert len(store) == len(prepared.manifest)
    for position, path in enumerate(prepared.manifest["path"]):
        assert np.array_equal(store[position], resize(decode(root / path), data.stored_size, data.interpolation)), path


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Data, Prepared]:
    data = Data(image_size=8)
    return data, prepare(data, tmp_path_factory.mktemp("prepared"))


def test_digits_are_split_and_decoded(digits: tuple[Data, Prepared]) -> None:
    data, prepared = digits
    assert {split: len(prepared.positions(split)) for split in SPLITS} == {"train": 1259, "val": 269, "test": 269}
    assert prepared.classes == list("0123456789")
    assert len(prepared.store(data)) == 1797


def test_positions_are_disjoint_and_complete(digits: tuple[Data, Prepared]) -> None:
    _, prepared = digits
    positions = np.concatenate([prepared.positions(split) for split in SPLITS])
    assert sorted(positions.tolist()) == list(range(1797))


def test_labels_are_indices_of_classes(digits: tuple[Data, Prepared]) -> None:
    _, prepared = digits
    assert [prepared.classes[label] for label in prepared.labels()] == prepared.manifest["label"].tolist()


def test_counts_are_those_of_the_manifest(digits: tuple[Data, Prepared]) -> None:
    _, prepared = digits
    assert sum(sum(of_class.values()) for of_class in prepared.counts().values()) == 1797
    assert prepared.counts()["0"] == {"train": 124, "val": 27, "test": 27}


def test_normalisation_is_that_of_the_training_images(digits: tuple[Data, Prepared]) -> None:
    data, prepared = digits
    store = prepared.store(data)
    pixels = np.stack([store[position] for position in prepared.positions("train")]) / 255
    mean, std = prepared.normalisation(data)
    assert mean == pytest.approx(pixels.mean(axis=(0, 2, 3)), abs=1e-5)
    assert std == pytest.approx(pixels.std(axis=(0, 2, 3)), abs=1e-5)


def test_blank_images_do_not_divide_by_zero(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        for number in range(3):
            (tmp_path / "photos" / label).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (7, 7, 7)).save(tmp_path / "photos" / label / f"{number}.png")
    data = data_of(tmp_path / "photos")
    assert min(prepare(data, tmp_path / "prepared").normalisation(data)[1]) > 0


def test_a_folder_is_prepared(photos: WriteImages, tmp_path: Path) -> None:
    root = photos({"cat": 10, "dog": 5})
    data = data_of(root)
    prepared = prepare(data, tmp_path / "prepared")
    assert prepared.folder.parent == tmp_path / "prepared"
    assert prepared.folder.name == f"photos-{prepared.digest[:8]}"
    assert prepared.source == str(root.resolve())
    assert prepared.counts() == {"cat": {"train": 6, "val": 2, "test": 2}, "dog": {"train": 3, "val": 1, "test": 1}}
    check_pixels(prepared, data, root)


def test_the_files_describe_the_data(photos: WriteImages, tmp_path: Path) -> None:
    prepared = prepare(data_of(photos({"cat": 5, "dog": 5})), tmp_path / "prepared")
    pd.testing.assert_frame_equal(pd.read_csv(prepared.folder / "manifest.csv"), prepared.manifest)
    assert list(prepared.manifest) == ["path", "label", "split", "sha256"]
    assert json.loads((prepared.folder / "classes.json").read_text()) == ["cat", "dog"]
    description = json.loads((prepared.folder / "data.json").read_text())
    assert (description["digest"], description["images"]) == (prepared.digest, prepared.counts())


def test_pictures_of_other_shapes_are_stored_at_their_own(tmp_path: Path) -> None:
    for number, size in enumerate([(8, 8), (30, 10), (10, 30), (200, 2)] * 2):
        write_image(tmp_path / "photos" / ("cat" if number < 4 else "dog") / f"{number}.png", size)
    data = data_of(tmp_path / "photos", store_size=12, interpolation="bicubic")
    check_pixels(prepare(data, tmp_path / "prepared"), data, tmp_path / "photos")


def snapshot(folder: Path) -> dict[str, int]:
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in sorted(folder.rglob("*"))}


def test_preparing_twice_uses_the_first(photos: WriteImages, tmp_path: Path) -> None:
    data = data_of(photos({"cat": 5, "dog": 5}))
    first = prepare(data, tmp_path / "prepared")
    before = snapshot(tmp_path / "prepared")
    stages: set[str] = set()
    second = prepare(data, tmp_path / "prepared", lambda what, done, total: stages.add(what))
    assert snapshot(tmp_path / "prepared") == before
    assert second.digest == first.digest and second.folder == first.folder
    assert stages == {"reading"}


def test_progress_counts_up_to_all(photos: WriteImages, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    prepare(data_of(photos({"cat": 3, "dog": 4})), tmp_path / "prepared", lambda *stage: told.append(stage))
    assert told == [(what, done, 7) for what in ("reading", "decoding") for done in range(1, 8)]


def test_another_size_is_added_to_the_same_folder(photos: WriteImages, tmp_path: Path) -> None:
    root = photos({"cat": 5, "dog": 5})
    small, large = data_of(root), data_of(root, image_size=16)
    first, second = prepare(small, tmp_path / "prepared"), prepare(large, tmp_path / "prepared")
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


@pytest.mark.parametrize(("old", "new"), [("val", "Validation"), ("train/cat/000.png", "train/cat/zzz.png")], ids=["folder", "file"])
def test_renamed_images_keep_their_pixels(photos: WriteImages, tmp_path: Path, old: str, new: str) -> None:
    root = photos({f"{split}/{label}": 3 for split in SPLITS for label in ("cat", "dog")})
    data = data_of(root)
    prepare(data, tmp_path / "prepared")
    (root / old).rename(root / new)
    check_pixels(prepare(data, tmp_path / "prepared"), data, root)


def test_all_unreadable_images_are_listed_and_nothing_is_left_behind(photos: WriteImages, tmp_path: Path) -> None:
    root = photos({"cat": 5, "dog": 5})
    (root / "cat" / "001.png").write_bytes(b"")
    (root / "dog" / "002.png").write_text("no picture")
    whole = (root / "dog" / "003.png").read_bytes()
    (root / "dog" / "003.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError) as caught:
        prepare(data_of(root), tmp_path / "prepared")
    assert caught.value.message == f"3 images in {root.resolve()} cannot be read; repair or remove"
    assert [finding.partition(":")[0] for finding in caught.value.findings] == ["cat/001.png", "dog/002.png", "dog/003.png"]
    assert caught.value.findings[0] == "cat/001.png: not an image"
    assert "<_io.BytesIO" not in str(caught.value)
    assert list((tmp_path / "prepared").iterdir()) == []


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
    check_pixels(prepare(data_of(root), tmp_path / "prepared"), data_of(root), root)


def prepare_in(data: Data, root: Path) -> str:
    return str(prepare(data, root).folder)


def test_two_processes_may_prepare_at_once(photos: WriteImages, tmp_path: Path) -> None:
    root = photos({"cat": 60, "dog": 60})
    data = data_of(root)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(len, [(), ()], chunksize=1)
        folders = pool.starmap(prepare_in, [(data, tmp_path / "prepared")] * 2, chunksize=1)
    assert len(set(folders)) == 1
    assert [str(folder) for folder in (tmp_path / "prepared").iterdir()] == folders[:1]
    check_pixels(prepare(data, tmp_path / "prepared"), data, root)


@pytest.mark.parametrize("other_size", [8, 16])
def test_another_process_may_finish_first(photos: WriteImages, tmp_path: Path, other_size: int) -> None:
    root = photos({"cat": 5, "dog": 5})
    data = data_of(root)

    def overtake(what: str, done: int, total: int) -> None:
        if what == "decoding" and done == total:
            arguments = (data_of(root, image_size=other_size), tmp_path / "prepared")
            process = multiprocessing.get_context("spawn").Process(target=prepare_in, args=arguments)
            process.start()
            process.join()
            assert process.exitcode == 0

    check_pixels(prepare(data, tmp_path / "prepared", overtake), data, root)
