"""Which files of a folder are images."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.config import Data
from pipeline.data.prepare_data import prepare
from pipeline.data.sources import Source, open_source
from pipeline.data.sources.folder_listing import LEFTOVERS, UNREAD
from pipeline.errors import UserError
from pipeline.jobs.predict import list_images
from tests.data.conftest import WriteImages, write_image


def opened(root: Path) -> Source:
    return open_source(Data(source=f"folder:{root}"))


def used(root: Path) -> list[str]:
    return [item.path for item in opened(root).items]


def predicted(root: Path) -> list[str]:
    return list_images(str(root)).paths


@pytest.mark.parametrize(
    "name", sorted({*LEFTOVERS, "__MACOSX", "@eaDir", ".hidden", "$RECYCLE.BIN", "Lost+Found"})
)
@pytest.mark.parametrize("splits", [False, True])
def test_leftovers_are_passed_over_wherever_they_lie_and_counted(
    photos: WriteImages, name: str, splits: bool
) -> None:
    classes = ["train/cat", "train/dog", "val/cat", "val/dog"] if splits else ["cat", "dog"]
    root = photos(dict.fromkeys(classes, 2))
    before = used(root)
    places = [
        root,
        root / classes[0],
        root / classes[0] / "deeper",
        *([root / "train"] if splits else []),
    ]
    write_image(root / classes[0] / "deeper" / "x.png")
    before = used(root)
    for place in places:
        write_image(place / name / "a.png")
        write_image(place / name / "cat" / "b.png")
    source = opened(root)
    assert [item.path for item in source.items] == before
    assert sorted(predicted(root)) == sorted(before)
    assert source.ignored == {"hidden" if name == ".hidden" else f"folder {name}": len(places)}
    assert source.warnings == []


def test_a_file_named_like_a_thumbnail_database_is_no_image(photos: WriteImages) -> None:
    root = photos({"cat": 1, "dog": 1})
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._000.png"):
        (root / "cat" / name).write_bytes(b"x")
    assert used(root) == predicted(root) == ["cat/000.png", "dog/000.png"]
    assert opened(root).ignored == {".db": 1, ".ini": 1, "hidden": 2}


@pytest.mark.parametrize(
    "extension",
    sorted({extension for kind in UNREAD for extension in kind.extensions} - {"no extension"}),
)
def test_pictures_that_are_not_read_are_said_with_their_share_of_each_class(
    photos: WriteImages, extension: str
) -> None:
    root = photos({"cat": 4, "dog": 9, "owl": 5})
    for name in ("cat/a", "cat/b", "cat/c", "cat/d", "dog/a"):
        (root / f"{name}{extension.upper()}").write_bytes(b"not read")
    (line,) = opened(root).warnings
    assert (
        line.startswith("5 ")
        and f"({extension})" in line.lower()
        and "'cat' 50%, 'dog' 10% of all; " in line
        and "owl" not in line
    )
    assert "magick" not in line or line.endswith(f"*{extension.upper()}")


def test_what_is_not_read_is_said_on_the_console_and_where_nothing_else_is_there(
    photos: WriteImages, capsys: pytest.CaptureFixture[str]
) -> None:
    root = photos({"cat": 3, "dog": 3})
    for number in range(3):
        (root / "cat" / f"{number}.heic").write_bytes(b"not read")
    list_images(str(root))
    assert (
        "warning: 3 HEIF files (.heic) are not read: 33% of all; convert them with ImageMagick"
        in capsys.readouterr().out
    )
    for file in root.rglob("*.png"):
        file.unlink()
    for attempt in (lambda: opened(root), lambda: list_images(str(root))):
        with pytest.raises(UserError) as caught:
            attempt()
        assert (
            caught.value.findings
            and "3 HEIF files (.heic) are not read" in caught.value.findings[0]
        )


def link(place: Path, target: str) -> None:
    place.symlink_to(target, target_is_directory=True)


def test_links_to_class_folders_are_followed_by_prepare_and_predict_alike(
    photos: WriteImages,
) -> None:
    root = photos({"cat": 2, "dog": 1, "dog/hounds": 1})
    link(root / "puppy", "dog")
    link(root / "cat" / "more", "../dog/hounds")
    assert used(root) == [
        "cat/000.png", "cat/001.png", "cat/more/000.png", "dog/000.png", "dog/hounds/000.png",
        "puppy/000.png", "puppy/hounds/000.png",
    ]  # fmt: skip
    assert predicted(root) == used(root)
    assert opened(root).warnings == []


@pytest.mark.parametrize(
    ("place", "target", "why"),
    [
        ("all", ".", " itself: it is not followed"),
        ("all", "..", "which is not below"),
        ("all", "../elsewhere", "which is not below"),
        ("all", "/", "which is not below"),
        ("cat/up", "..", " itself: it is not followed"),
        ("cat/up", ".", "back to a folder that it stands in"),
        ("cat/deep/er/up", "..", "back to a folder that it stands in"),
        ("cat/deep/er/up", "../..", "back to a folder that it stands in"),
    ],
)
def test_links_that_lead_up_out_or_in_a_circle_are_not_followed(
    photos: WriteImages, tmp_path: Path, place: str, target: str, why: str
) -> None:
    root = photos({"cat": 2, "cat/deep/er": 1, "dog": 1})
    write_image(tmp_path / "elsewhere" / "secret" / "x.png")
    before = used(root)
    link(root / place, target)
    source = opened(root)
    assert [item.path for item in source.items] == predicted(root) == before
    (line,) = source.warnings
    assert line.startswith(f"link {place!r} leads ") and why in line
    assert source.ignored == {"link": 1}


def test_two_links_in_a_circle_end(photos: WriteImages) -> None:
    root = photos({"cat": 1, "dog": 1})
    link(root / "cat" / "to dog", "../dog")
    link(root / "dog" / "to cat", "../cat")
    assert (
        used(root)
        == predicted(root)
        == ["cat/000.png", "cat/to dog/000.png", "dog/000.png", "dog/to cat/000.png"]
    )


def test_folders_that_are_all_linked_with_one_another_end(photos: WriteImages) -> None:
    names = [f"class{number}" for number in range(12)]
    root = photos(dict.fromkeys(names, 1))
    for name in names:
        for other in names:
            if other != name:
                link(root / name / f"to {other}", f"../{other}")
    started = time.process_time()
    assert len(used(root)) == 12 * 12 and time.process_time() - started < 5
    assert opened(root).ignored == {"link in a linked folder": 12 * 11 * 11}


def test_a_link_back_through_another_ends(photos: WriteImages) -> None:
    root = photos({"a/b/c": 1, "dog": 1})
    link(root / "a" / "b" / "c" / "up", "..")
    link(root / "short", "a/b/c")
    assert used(root) == ["a/b/c/000.png", "dog/000.png", "short/000.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_what_never_ends_is_no_picture(photos: WriteImages, tmp_path: Path) -> None:
    root = photos({"cat": 12, "dog": 12})
    os.mkfifo(root / "cat" / "pipe.png")
    (root / "cat" / "device.png").symlink_to("/dev/zero")
    (root / "cat" / "folder.png").mkdir()
    with (root / "dog" / "sparse.png").open("wb") as file:
        file.truncate(40 * 2**30)
    found: list[str] = []

    def run() -> None:
        try:
            prepare(Data(source=f"folder:{root}", image_size=8), tmp_path / "prepared")
        except UserError as error:
            found.extend(error.findings)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    assert found == [
        "cat/device.png: not a regular file",
        "cat/pipe.png: not a regular file",
        "dog/sparse.png: 42949672960 bytes, more than 1073741824",
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such links")
def test_a_root_that_is_a_link_itself_is_followed(photos: WriteImages, tmp_path: Path) -> None:
    root = photos({"cat": 1, "dog": 1})
    link(tmp_path / "linked", str(root))
    assert used(tmp_path / "linked") == used(root)
    shutil.rmtree(root / "dog")
    link(root / "dog", "cat")
    assert used(tmp_path / "linked") == ["cat/000.png", "dog/000.png"]
