"""Where labelled images come from."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from pipeline.config import Data
from pipeline.data.decode import EXTENSIONS, Decoding
from pipeline.data.sources import Item, Source
from pipeline.data.sources import open_source as open_source_of
from pipeline.data.sources.source import SPLIT_NAMES
from pipeline.errors import UserError
from pipeline.identity import data_digest
from tests.data.conftest import WriteImages, write_image


def open_source(name: str) -> Source:
    return open_source_of(Data.model_construct(source=name, root="", labels=""))


def test_digits_are_1797_images_of_ten_classes() -> None:
    items = open_source("digits").items
    assert len(items) == len({item.path for item in items}) == 1797
    assert {item.label for item in items} == set("0123456789")
    assert {item.split for item in items} == {""}


def test_digits_are_scikit_learns_pixels() -> None:
    source, digits = open_source("digits"), load_digits()
    for number in (0, 1000, 1796):
        image = source.reader.image(source.reader.read(source.items[number].path), Decoding()).image
        assert image.mode == "RGB"
        assert np.array_equal(
            np.asarray(image)[:, :, 0], np.round(digits.images[number] * 255 / 16)
        )
        assert source.items[number].label == str(digits.target[number])


def test_the_digest_of_digits_never_changes() -> None:
    source = open_source("digits")
    contents = [hashlib.sha256(source.reader.read(item.path)).hexdigest() for item in source.items]
    assert (
        data_digest(
            (content, item.label, "") for content, item in zip(contents, source.items, strict=True)
        )
        == "3ff77068f3c58fd34a2015d21f6abef5"
    )


def test_a_folder_of_class_folders(photos: WriteImages) -> None:
    root = photos({"dog": 1, "cat": 2, "cat/indoors": 1})
    assert open_source(f"folder:{root}").items == [
        Item("cat/000.png", "cat"),
        Item("cat/001.png", "cat"),
        Item("cat/indoors/000.png", "cat"),
        Item("dog/000.png", "dog"),
    ]


def test_read_returns_the_bytes_of_the_file(photos: WriteImages) -> None:
    root = photos({"cat": 1, "dog": 1})
    source = open_source(f"folder:{root}")
    assert source.reader.read(source.items[0].path) == (root / "cat" / "000.png").read_bytes()


def test_what_is_hidden_or_no_image_is_left_out(photos: WriteImages) -> None:
    root = photos({"cat": 1, "dog": 1, ".thumbnails": 1, ".git/cat": 1})
    write_image(root / "cat" / "._000.png")
    write_image(root / "outside.png")
    for name in ("notes.txt", "Thumbs.db", "labels.csv", "noextension"):
        (root / "cat" / name).write_text("no image")
    source = open_source(f"folder:{root}")
    assert [item.path for item in source.items] == ["cat/000.png", "dog/000.png"]
    assert source.ignored == {
        ".txt": 1,
        ".db": 1,
        ".csv": 1,
        "no extension": 1,
        ".png": 1,
        "hidden": 3,
    }
    assert source.warnings == [
        (
            "1 file without extension is not read: 'cat' 50% of all; give them the extension of "
            "their format"
        ),
        "1 image lies in no class folder, and cannot be used: 'outside.png'",
    ]


def test_a_fingerprint_changes_with_the_file_even_where_its_time_is_set_back(
    photos: WriteImages,
) -> None:
    root = photos({"cat": 1, "dog": 1})
    reader, file = open_source(f"folder:{root}").reader, root / "cat" / "000.png"
    before, status, content = reader.fingerprint("cat/000.png"), file.stat(), file.read_bytes()
    assert reader.fingerprint("cat/000.png") == before
    file.write_bytes(content[::-1])
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_size == status.st_size
    assert reader.fingerprint("cat/000.png") != before


@pytest.mark.parametrize("extension", sorted(EXTENSIONS))
def test_each_extension_is_taken_in_either_case(photos: WriteImages, extension: str) -> None:
    root = photos({"cat": 1, "dog": 1})
    for name in (f"x{extension}", f"y{extension.upper()}"):
        (root / "cat" / name).write_bytes(b"taken by its name")
    assert [item.path for item in open_source(f"folder:{root}").items][1:-1] == [
        f"cat/x{extension}",
        f"cat/y{extension.upper()}",
    ]


def test_class_folders_without_images_are_named(photos: WriteImages) -> None:
    root = photos({"cat": 1, "dog": 1})
    (root / "empty").mkdir()
    (root / "texts").mkdir()
    (root / "texts" / "notes.txt").write_text("no image")
    source = open_source(f"folder:{root}")
    assert source.warnings == [
        "class folder 'empty' has no images",
        "class folder 'texts' has no images",
    ]
    assert open_source("digits").warnings == []


def test_images_beside_the_folders_of_splits_and_classes_are_counted(photos: WriteImages) -> None:
    root = photos({"train/cat": 1, "train/dog": 1, "val/cat": 1, "val/dog": 1})
    for name in (
        "a.png",
        "b.jpg",
        "train/c.jfif",
        "val/.hidden.png",
        "README.md",
        "train/labels.csv",
    ):
        (root / name).write_bytes(b"taken by its name")
    (root / "val" / "bird").mkdir()
    source = open_source(f"folder:{root}")
    assert source.ignored == {".png": 1, ".jpg": 1, ".jfif": 1, "hidden": 1}
    assert source.warnings == [
        "2 images lie in no class folder, and cannot be used: 'a.png' and others",
        "1 image lies in no class folder, and cannot be used: 'train/c.jfif'",
        "class folder 'val/bird' has no images",
    ]


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder below which this process, root or not, has nobody's permissions."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_class_folder_that_may_not_be_read_is_named(unprivileged: Path) -> None:
    for label in ("cat", "dog", "locked"):
        write_image(unprivileged / label / "1.png")
    (unprivileged / "locked").chmod(0)
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        with pytest.raises(UserError) as caught:
            open_source(f"folder:{unprivileged}")
    finally:
        os.seteuid(user)
        (unprivileged / "locked").chmod(0o755)
    assert (
        str(caught.value)
        == f"data.source: folder '{unprivileged}/locked' cannot be read: Permission denied"
    )


@pytest.mark.parametrize("spell", [str.lower, str.capitalize, str.upper])
@pytest.mark.parametrize("name", sorted(set(SPLIT_NAMES) - {"train", "training"}))
def test_split_folders_above_the_class_folders(
    photos: WriteImages, name: str, spell: type[str]
) -> None:
    root = photos(
        {
            f"{spell('train')}/cat": 2,
            f"{spell('train')}/dog": 1,
            f"{spell(name)}/cat": 1,
            f"{spell(name)}/dog": 1,
        }
    )
    found = sorted((item.label, item.split) for item in open_source(f"folder:{root}").items)
    split = SPLIT_NAMES[name]
    assert found == sorted(
        [("cat", "train"), ("cat", "train"), ("dog", "train"), ("cat", split), ("dog", split)]
    )


@pytest.mark.parametrize("name", ["train", "training"])
def test_each_name_of_the_training_folder(photos: WriteImages, name: str) -> None:
    root = photos({f"{name}/cat": 1, f"{name}/dog": 1})
    assert [item.split for item in open_source(f"folder:{root}").items] == ["train", "train"]


def test_val_and_test_without_train_are_classes(photos: WriteImages) -> None:
    root = photos({"test": 1, "val": 1})
    assert [(item.label, item.split) for item in open_source(f"folder:{root}").items] == [
        ("test", ""),
        ("val", ""),
    ]


def test_a_home_folder_is_expanded(photos: WriteImages, monkeypatch: pytest.MonkeyPatch) -> None:
    root = photos({"cat": 1, "dog": 1})
    monkeypatch.setenv("HOME", str(root.parent))
    assert len(open_source("folder:~/photos").items) == 2


def test_a_missing_folder_is_named_with_the_nearest(photos: WriteImages) -> None:
    root = photos({"cat": 1, "dog": 1})
    with pytest.raises(
        UserError, match=r"data\.source: folder '.*/photo' does not exist; nearest: .*/photos"
    ):
        open_source(f"folder:{root.parent}/photo")


@pytest.mark.parametrize("content", ["nothing", "no class folders", "no images"])
def test_a_folder_without_images_says_what_is_expected(tmp_path: Path, content: str) -> None:
    if content == "no class folders":
        write_image(tmp_path / "image.png")
    elif content == "no images":
        (tmp_path / "cat").mkdir()
        (tmp_path / "cat" / "image.txt").write_text("")
    with pytest.raises(
        UserError,
        match=r"has no images in class folders; expected .*/CLASS/IMAGE with one of \.avif, \.bmp",
    ):
        open_source(f"folder:{tmp_path}")


def test_one_class_is_not_enough(photos: WriteImages) -> None:
    with pytest.raises(UserError, match=r"has one class only \('cat'\)"):
        open_source(f"folder:{photos({'cat': 3})}")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "digit",
            (
                "unknown data.source 'digit'; nearest: digits; allowed: digits, folder:PATH, "
                "csv:PATH, torchvision:NAME, npz:PATH"
            ),
        ),
        ("folder:", "unknown data.source 'folder:'"),
        ("folders:photos", "unknown data.source 'folders:photos'; nearest: folder:PATH"),
        ("", "unknown data.source ''"),
    ],
)
def test_an_unknown_source_is_named_with_the_nearest(name: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        open_source(name)
    assert expected in caught.value.message


def test_a_bare_path_is_answered_with_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"nearest: folder:{tmp_path}"):
        open_source(str(tmp_path))


@pytest.mark.parametrize(
    "option", ["root", "labels", "image_column", "label_column", "split_column", "group_column"]
)
@pytest.mark.parametrize("kind", ["digits", "folder:PATH", "npz:PATH", "torchvision:MNIST"])
def test_an_option_of_another_source_is_refused(tmp_path: Path, kind: str, option: str) -> None:
    name = kind.replace("PATH", str(tmp_path))
    with pytest.raises(UserError) as caught:
        open_source_of(Data.model_validate({"source": name, option: str(tmp_path)}))
    if option == "root" and kind == "torchvision:MNIST":
        assert "data.root belongs" not in caught.value.message
    else:
        owner = "csv:PATH and torchvision:NAME" if option == "root" else "csv:PATH"
        assert str(caught.value) == f"data.{option} belongs to {owner}, got data.source {name!r}"
