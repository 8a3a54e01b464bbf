"""Every image is read once: parallel, interrupted, changed, damaged."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import pytest

from pipeline.config import Data
from pipeline.data import examine as module
from pipeline.data.catalogue import Catalogue
from pipeline.data.decode import VERSION, Decoded, Decoding
from pipeline.data.examine import Examined, examine
from pipeline.data.examine_worker import Recipe
from pipeline.data.image_store import Store
from pipeline.data.sources import open_source
from pipeline.data.sources.source import Files
from pipeline.errors import UserError
from tests.data.conftest import WriteImages, write_image


def recipe(root: Path, prepared: Path) -> Recipe:
    return Recipe.of(Data(source=f"folder:{root}", image_size=8), prepared)


def run(root: Path, prepared: Path, **fields: object) -> tuple[Examined, list[int]]:
    """Examine a folder.

    Return what was found, and how many images were decoded at each call of progress.
    """
    data = Data.model_validate({"source": f"folder:{root}", "image_size": 8, **fields})
    source = open_source(data)
    decoded: list[int] = []
    return examine(
        source,
        source.items,
        Recipe.of(data, prepared),
        lambda what, done, total: decoded.append(done),
    ), decoded


def check(examined: Examined, root: Path, prepared: Path) -> None:
    decoding = recipe(root, prepared).decoding
    store = Store(recipe(root, prepared).folder, examined.shards, examined.index)
    files = [item.path for item in open_source(Data(source=f"folder:{root}")).items]
    assert len(files) == len(store)
    for number, path in enumerate(files):
        assert np.array_equal(store[number], decoding.resize(decoding.decode(root / path).image)), (
            path
        )


@pytest.mark.parametrize("alone", [1e9, 0.0], ids=["this process", "worker processes"])
def test_the_pixels_are_those_of_the_files(
    photos: WriteImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: float
) -> None:
    monkeypatch.setattr(module, "_ALONE_SECONDS", alone)
    root = photos({"cat": 60, "dog": 60})
    examined, decoded = run(root, tmp_path / "prepared")
    assert decoded == list(range(1, 121))
    check(examined, root, tmp_path / "prepared")


def test_a_changed_an_added_and_a_removed_file_cost_only_themselves(
    photos: WriteImages, tmp_path: Path
) -> None:
    root = photos({"cat": 20, "dog": 20})
    run(root, tmp_path / "prepared")
    assert run(root, tmp_path / "prepared")[1] == []
    write_image(root / "cat" / "003.png", (9, 9))
    write_image(root / "dog" / "new.png")
    (root / "cat" / "004.png").unlink()
    examined, decoded = run(root, tmp_path / "prepared")
    assert decoded == [39, 40]
    check(examined, root, tmp_path / "prepared")


def test_a_moved_folder_is_read_but_not_decoded_again(photos: WriteImages, tmp_path: Path) -> None:
    root = photos({"cat": 10, "dog": 10})
    run(root, tmp_path / "prepared")
    stored = sorted((tmp_path / "prepared").glob("images-*/*.bin"))
    root.rename(tmp_path / "moved")
    examined, _ = run(tmp_path / "moved", tmp_path / "prepared")
    assert sorted((tmp_path / "prepared").glob("images-*/*.bin")) == stored
    check(examined, tmp_path / "moved", tmp_path / "prepared")


@pytest.mark.parametrize("damage", ["removed", "truncated"])
def test_lost_pixels_are_decoded_again(photos: WriteImages, tmp_path: Path, damage: str) -> None:
    root = photos({"cat": 10, "dog": 10})
    run(root, tmp_path / "prepared")
    (shard,) = (tmp_path / "prepared").glob("images-*/*.bin")
    if damage == "removed":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-1])
    examined, decoded = run(root, tmp_path / "prepared")
    assert len(decoded) == 20
    check(examined, root, tmp_path / "prepared")


@pytest.mark.parametrize("damage", ["removed", "truncated"])
@pytest.mark.parametrize("change", ["touched", "copied"])
@pytest.mark.parametrize("alone", [1e9, 0.0], ids=["this process", "worker processes"])
def test_lost_pixels_of_files_known_by_their_content_are_decoded_again(
    photos: WriteImages,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
    change: str,
    alone: float,
) -> None:
    monkeypatch.setattr(module, "_ALONE_SECONDS", alone)
    root, prepared = photos({"cat": 40, "dog": 40}), tmp_path / "prepared"
    run(root, prepared)
    for shard in prepared.glob("images-*/*.bin"):
        if damage == "truncated":
            shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
        else:
            shard.unlink()
    if damage == "removed":
        recipe(root, prepared).folder.rmdir()
    other = root
    if change == "touched":
        for file in root.rglob("*.png"):
            os.utime(file)
    else:
        other = Path(shutil.copytree(root, tmp_path / "copied"))
    examined, _ = run(other, prepared)
    check(examined, other, prepared)
    # Of the other folder's, those that are still lost too.
    check(run(root, prepared)[0], root, prepared)
    assert run(root, prepared)[1] == []


def test_pixels_that_a_deleted_catalogue_named_are_removed_a_day_later(
    photos: WriteImages, tmp_path: Path
) -> None:
    root, prepared = photos({"cat": 10, "dog": 10}), tmp_path / "prepared"
    run(root, prepared)
    (old,) = prepared.glob("images-*/*.bin")
    (prepared / "catalogue.sqlite").unlink()
    run(root, prepared)
    assert old.is_file()
    yesterday = time.time() - 25 * 60 * 60
    for shard in prepared.glob("images-*/*.bin"):
        os.utime(shard, (yesterday, yesterday))
    write_image(root / "cat" / "new.png")
    examined, _ = run(root, prepared)
    assert not old.exists()
    check(examined, root, prepared)


def test_another_version_of_the_decoding_has_another_store(
    photos: WriteImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, prepared = photos({"cat": 3, "dog": 3}), tmp_path / "prepared"
    run(root, prepared)
    pillow = PIL.__version__.split(".")[0]
    data = Data(source=f"folder:{root}", image_size=8)
    assert recipe(root, prepared).name == f"8-bilinear-white-{VERSION}-pillow{pillow}"
    assert (
        Recipe.of(data.model_copy(update={"store": "none"}), prepared).name
        == f"none-white-{VERSION}-pillow{pillow}"
    )
    source = open_source(data)
    decoded: list[int] = []
    examine(
        source,
        source.items,
        Recipe.of(data, prepared, 1),
        lambda what, done, total: decoded.append(done),
    )
    assert len(decoded) == 6
    assert {folder.name for folder in prepared.glob("images-*")} == {
        f"images-8-bilinear-white-{one}-pillow{pillow}" for one in (1, VERSION)
    }
    monkeypatch.setattr(PIL, "__version__", "99.0.0")
    examined, decoded = run(root, prepared)
    assert len(decoded) == 6 and len(list(prepared.glob("images-*"))) == 3
    check(examined, root, prepared)


def test_arrays_of_too_many_pixels_are_refused_the_first_time_too(tmp_path: Path) -> None:
    data = Data(source="digits", image_size=8, max_pixels=63)
    source = open_source(data)
    for _ in range(2):
        examined = examine(source, source.items[:5], Recipe.of(data, tmp_path))
        assert examined.unreadable == dict.fromkeys(
            range(5), "8 × 8 pixels, more than data.max_pixels (63)"
        )
    allowed = data.model_copy(update={"max_pixels": 64})
    assert examine(source, source.items[:5], Recipe.of(allowed, tmp_path)).unreadable == {}


@pytest.mark.parametrize("alone", [1e9, 0.0], ids=["this process", "worker processes"])
def test_a_damaged_catalogue_is_told_and_can_be_deleted(
    photos: WriteImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: float
) -> None:
    monkeypatch.setattr(module, "_ALONE_SECONDS", alone)
    root, prepared = photos({"cat": 40, "dog": 40}), tmp_path / "prepared"
    prepared.mkdir()
    (prepared / "catalogue.sqlite").write_bytes(b"garbage" * 1000)
    with pytest.raises(
        OSError, match=r"catalogue\.sqlite: file is not a database; delete that file"
    ):
        run(root, prepared)
    (prepared / "catalogue.sqlite").unlink()
    check(run(root, prepared)[0], root, prepared)


def test_an_unreadable_file_is_tried_again_each_time(photos: WriteImages, tmp_path: Path) -> None:
    root = photos({"cat": 10, "dog": 10})
    (root / "cat" / "003.png").write_bytes(b"no picture")
    examined, _ = run(root, tmp_path / "prepared")
    assert examined.unreadable == {3: "not an image"}
    write_image(root / "cat" / "003.png")
    examined, decoded = run(root, tmp_path / "prepared")
    assert examined.unreadable == {} and decoded == [20]
    check(examined, root, tmp_path / "prepared")


def test_too_many_pixels_are_refused_by_their_header_and_taken_once_allowed(
    photos: WriteImages, tmp_path: Path
) -> None:
    root = photos({"cat": 3, "dog": 3})
    write_image(root / "cat" / "large.png", (100, 50))
    examined, _ = run(root, tmp_path / "prepared", max_pixels=4999)
    assert examined.unreadable == {3: "100 × 50 pixels, more than data.max_pixels (4999)"}
    assert run(root, tmp_path / "prepared", max_pixels=5000)[0].unreadable == {}
    # Stored meanwhile, it is refused again, by its name and by its content.
    assert run(root, tmp_path / "prepared", max_pixels=4999)[0].unreadable == examined.unreadable
    (root / "cat" / "large.png").rename(root / "cat" / "larger.png")
    assert run(root, tmp_path / "prepared", max_pixels=4999)[0].unreadable == examined.unreadable


KILLED = """
import sys
from pathlib import Path
from pipeline.config import Data
from pipeline.data import examine as module
from pipeline.data.sources import open_source
from pipeline.data.sources.source import Files
from pipeline.data.examine_worker import Recipe
from pipeline.errors import UserError
if __name__ == "__main__":
    module._ALONE_SECONDS = float(sys.argv[3])
    module._COMMIT_SECONDS = 0.05
    data = Data(source=f"folder:{sys.argv[1]}", image_size=8)
    source = open_source(data)
    print("started", flush=True)
    module.examine(source, source.items, Recipe.of(data, Path(sys.argv[2])))
"""


def started(*command: str | Path) -> subprocess.Popen[str]:
    project = str(Path(__file__).resolve().parents[2])
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": project},
    )
    assert process.stdout is not None and process.stdout.readline() == "started\n"
    return process


@pytest.mark.slow
@pytest.mark.parametrize("alone", ["1e9", "0"], ids=["this process", "worker processes"])
def test_killed_at_any_moment_the_next_goes_on_from_what_is_done(
    photos: WriteImages, tmp_path: Path, alone: str
) -> None:
    root = photos({"cat": 400, "dog": 400})
    for number in range(8):
        write_image(root / "cat" / f"slow{number}.png", (600, 600))
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    rng = np.random.default_rng(0)
    left = 809
    for _ in range(4):
        process = started(script, root, tmp_path / "prepared", alone)
        time.sleep(float(rng.uniform(0.1, 0.6)) + (0.8 if alone == "0" else 0))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        known = _num_known(root, tmp_path / "prepared")
        assert 808 - known <= left
        left = 808 - known
    assert left < 808
    examined, decoded = run(root, tmp_path / "prepared")
    assert len(decoded) == left
    check(examined, root, tmp_path / "prepared")


@dataclass(frozen=True)
class Deadly(Files):
    """Files of which one takes its process along, always or the first time."""

    only_once: bool

    def image(self, content: bytes, decoding: Decoding) -> Decoded:
        decoded = super().image(content, decoding)
        killed = self.root.parent / "killed"
        if (
            decoded.image.size == (41, 41)
            and multiprocessing.parent_process()
            and not (self.only_once and killed.exists())
        ):
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return decoded


@pytest.mark.parametrize("only_once", [False, True])
def test_an_image_that_a_process_is_killed_over_is_named_and_one_killed_by_chance_is_nothing(
    photos: WriteImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only_once: bool
) -> None:
    monkeypatch.setattr(module, "_ALONE_SECONDS", 0.0)
    root = photos({"cat": 200, "dog": 200})
    write_image(root / "cat" / "003.png", (41, 41))
    source = open_source(Data(source=f"folder:{root}"))
    source.reader = Deadly(root, only_once)
    kept = recipe(root, tmp_path / "prepared")
    if not only_once:
        with pytest.raises(
            UserError,
            match=(
                r"^cat/003\.png: the process that decodes it is killed; perhaps memory does not "
                "suffice"
            ),
        ):
            examine(source, source.items, kept)
        return
    examined = examine(source, source.items, kept)
    assert (root.parent / "killed").exists()
    assert examined.unreadable == {} and (examined.sizes > 0).all() and len(examined.sizes) == 400


def _num_known(root: Path, prepared: Path) -> int:
    catalogue = Catalogue(prepared)
    source = open_source(Data(source=f"folder:{root}"))
    fingerprints = {item.path: source.reader.fingerprint(item.path) for item in source.items}
    known = catalogue.of_files(source.description, fingerprints, recipe(root, prepared).names)
    catalogue.close()
    return len(known)


@pytest.mark.slow
def test_worker_processes_die_with_their_parent(photos: WriteImages, tmp_path: Path) -> None:
    root = photos({"cat": 2, "dog": 2})
    for number in range(100):
        write_image(root / "cat" / f"slow{number}.png", (400, 400))
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    process = started(script, root, tmp_path / "prepared", "0")
    group = _descendants(process.pid)
    deadline = time.monotonic() + 20
    while len(group) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
        group = _descendants(process.pid)
    assert len(group) >= 3, "the forkserver and its workers have not started"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    while group and time.monotonic() < deadline:
        time.sleep(0.05)
        group = {
            pid
            for pid in group
            if Path(f"/proc/{pid}").exists()
            and "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
        }
    assert group == set()


def _descendants(pid: int) -> set[int]:
    try:
        children = {
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        }
    except OSError:
        return set()
    return children.union(*map(_descendants, children)) if children else children
