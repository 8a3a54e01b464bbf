"""Arrays of images and labels in one .npz."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import resource
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.config import Data
from pipeline.data.decode import Decoding
from pipeline.data.sources import Source, open_source
from pipeline.data.sources.npz_file import open_npz
from pipeline.data.sources.source import Arrays, Item
from pipeline.errors import UserError
from tests.conftest import PROJECT

Layout = dict[str, NDArray[Any]]


def medmnist(
    counts: dict[str, int] | None = None, shape: tuple[int, ...] = (8, 6, 3), classes: int = 3
) -> Layout:
    """Arrays as MedMNIST lays them out, with other pixels in each image."""
    rng = np.random.default_rng(0)
    arrays: Layout = {}
    for split, count in (counts or {"train": 6, "val": 3, "test": 4}).items():
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count, dtype=np.uint8) % classes)[:, None]
    return arrays


def write(
    folder: Path,
    arrays: Layout,
    name: str = "set.npz",
    save: Callable[..., None] = np.savez_compressed,
) -> Path:
    save(folder / name, **arrays)
    return folder / name


def refused(file: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_npz(str(file))
    assert "\n" not in str(caught.value)
    return caught.value.message


def pixels(source: Source, item: Item) -> NDArray[np.uint8]:
    return np.asarray(source.reader.image(source.reader.read(item.path), Decoding()).image)


def unpacked(source: Source) -> list[str]:
    """Names of the arrays that are on disk."""
    assert isinstance(source.reader, Arrays)
    files = [array.file for array in source.reader.arrays.values()]  # type: ignore[attr-defined]
    return sorted(file.name for file in files if file.exists())


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_splits_and_labels_are_the_files(tmp_path: Path, save: Callable[..., None]) -> None:
    source = open_npz(str(write(tmp_path, medmnist(), save=save)))
    assert [(item.split, item.label) for item in source.items] == [
        *(("train", label) for label in "012012"),
        *(("val", label) for label in "012"),
        *(("test", label) for label in "0120"),
    ]
    assert source.items[0].path == "train/000000"
    assert source.items[-1].path == "test/000003"
    assert len({item.path for item in source.items}) == 13
    assert source.description == str(tmp_path / "set.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("shape", [(8, 6, 3), (8, 6), (1, 1), (3, 3), (5, 3)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_images_are_the_files_pixels(
    tmp_path: Path, save: Callable[..., None], shape: tuple[int, ...], order: Any
) -> None:
    arrays = {name: array.copy(order) for name, array in medmnist(shape=shape).items()}
    source = open_npz(str(write(tmp_path, arrays, save=save)))
    for item in source.items:
        split, _, number = item.path.partition("/")
        expected = arrays[f"{split}_images"][int(number)]
        found = pixels(source, item)
        assert found.shape == (*shape[:2], 3)
        assert np.array_equal(
            found, expected if len(shape) == 3 else np.repeat(expected[:, :, None], 3, axis=2)
        )


def test_the_source_is_opened_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, medmnist())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_source(Data(source="npz:~/set.npz")).items == open_npz(str(file)).items


@pytest.mark.parametrize(
    "counts",
    [{"train": 4}, {"train": 4, "val": 2}, {"train": 4, "test": 2}, {"train": 4, "val": 0}],
)
def test_val_and_test_are_optional(tmp_path: Path, counts: dict[str, int]) -> None:
    source = open_npz(str(write(tmp_path, medmnist(counts))))
    assert {split: sum(item.split == split for item in source.items) for split in counts} == counts


def test_splits_may_differ_in_the_size_of_images(tmp_path: Path) -> None:
    arrays = medmnist() | {"val_images": np.zeros((3, 20, 30), np.uint8)}
    source = open_npz(str(write(tmp_path, arrays)))
    assert pixels(source, source.items[0]).shape == (8, 6, 3)
    assert pixels(source, source.items[6]).shape == (20, 30, 3)


def test_labels_sort_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    arrays = medmnist({"train": 10, "test": 11}, classes=11)
    labels = [item.label for item in open_npz(str(write(tmp_path, arrays))).items]
    assert labels[:10] == [f"0{number}" for number in range(10)]
    assert sorted(set(labels)) == [*(f"0{number}" for number in range(10)), "10"]


@pytest.mark.parametrize("dtype", ["u1", "i1", "<i8", ">i4", "<u8"])
@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_labels_of_each_whole_type_and_shape(
    tmp_path: Path, dtype: str, shape: tuple[int, ...]
) -> None:
    arrays = medmnist({"train": 6}) | {
        "train_labels": np.array([5, 0, 3, 3, 0, 5], dtype).reshape(shape)
    }
    assert [item.label for item in open_npz(str(write(tmp_path, arrays))).items] == [
        "5",
        "0",
        "3",
        "3",
        "0",
        "5",
    ]


def test_nothing_is_unpacked_before_an_image_is_read(tmp_path: Path) -> None:
    source = open_npz(str(write(tmp_path, medmnist())))
    assert source.reader.fingerprint(source.items[0].path)
    assert unpacked(source) == []
    source.reader.read("val/000000")
    assert unpacked(source) == ["val_images.npy"]
    source.reader.read("train/000000")
    assert unpacked(source) == ["train_images.npy", "val_images.npy"]


def test_the_same_file_is_unpacked_once(tmp_path: Path) -> None:
    file = write(tmp_path, medmnist())
    open_npz(str(file)).reader.read("train/000000")
    assert unpacked(open_npz(str(file))) == ["train_images.npy"]


def test_a_changed_file_has_another_fingerprint_and_other_pixels(tmp_path: Path) -> None:
    arrays = medmnist()
    first = open_npz(str(write(tmp_path, arrays)))
    before = first.reader.read("train/000000")
    arrays["train_images"] ^= 255
    second = open_npz(str(write(tmp_path, arrays)))
    assert first.reader.fingerprint("train/000000") != second.reader.fingerprint("train/000000")
    assert first.reader.read("train/000000") == before != second.reader.read("train/000000")


def test_a_file_that_changes_between_listing_and_reading_is_refused(tmp_path: Path) -> None:
    source = open_npz(str(write(tmp_path, medmnist())))
    write(tmp_path, medmnist(shape=(9, 9)))
    with pytest.raises(UserError, match=r"set\.npz has changed while it was read"):
        source.reader.read("train/000000")


def test_a_file_that_is_gone_before_reading_is_refused(tmp_path: Path) -> None:
    source = open_npz(str(write(tmp_path, medmnist())))
    (tmp_path / "set.npz").unlink()
    with pytest.raises(
        UserError, match=r"train_images of .*set\.npz cannot be unpacked: .*No such file"
    ):
        source.reader.read("train/000000")
    write(tmp_path, medmnist())


def test_threads_read_the_same(tmp_path: Path) -> None:
    arrays = medmnist({"train": 500})
    source = open_npz(str(write(tmp_path, arrays)))
    with ThreadPoolExecutor(8) as pool:
        contents = list(pool.map(source.reader.read, [item.path for item in source.items]))
    assert [content[12:] for content in contents] == [
        image.tobytes() for image in arrays["train_images"]
    ]


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
@pytest.mark.parametrize("read_before", [True, False])
def test_worker_processes_share_what_is_unpacked(
    tmp_path: Path, method: str, read_before: bool
) -> None:
    source = open_npz(str(write(tmp_path, medmnist())))
    paths = [item.path for item in source.items]
    if read_before:
        source.reader.read(paths[0])
    assert len(pickle.dumps(source.reader)) < 2000
    with multiprocessing.get_context(method).Pool(2) as pool:
        found = pool.map(source.reader.read, paths, chunksize=1)
        pool.close()
        pool.join()
    assert unpacked(source) == ["test_images.npy", "train_images.npy", "val_images.npy"]
    assert found == [source.reader.read(path) for path in paths]


LEAVES = """
import multiprocessing, os, sys
from pipeline.data.sources.npz_file import open_npz

def read(reader):
    return reader.read("train/000000")

if __name__ == "__main__":
    source = open_npz(sys.argv[1])
    if sys.argv[2] == "fork by hand":
        source.reader.read("train/000000")
        if os.fork() == 0:
            sys.exit()
        os.wait()
    else:
        with multiprocessing.get_context(sys.argv[2]).Pool(2) as pool:
            pool.map(read, [source.reader] * 2)
            pool.close()
            pool.join()
    folder = source.reader.arrays["train"].file.parent
    assert (folder / "train_images.npy").exists()
    print(folder)
    if sys.argv[3] == "error":
        raise SystemExit(3)
"""


@pytest.mark.parametrize(
    ("method", "end"),
    [("spawn", "success"), ("fork", "success"), ("fork by hand", "success"), ("fork", "error")],
)
def test_what_is_unpacked_is_removed_when_the_process_ends(
    tmp_path: Path, method: str, end: str
) -> None:
    file = write(tmp_path, medmnist())
    (tmp_path / "leaves.py").write_text(LEAVES)
    (tmp_path / "temporary").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "TMPDIR": str(tmp_path / "temporary")}
    ended = subprocess.run(
        [sys.executable, tmp_path / "leaves.py", file, method, end],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0 if end == "success" else 3, "")
    assert Path(ended.stdout.strip()).parent == tmp_path / "temporary"
    assert [
        entry.name
        for entry in (tmp_path / "temporary").iterdir()
        if not entry.name.startswith("pymp-")
    ] == []


KILLED = """
import os, sys, signal
from pipeline.data.sources.npz_file import open_npz

source = open_npz(sys.argv[1])
source.reader.read("train/000000")
print(source.reader.arrays["train"].file.parent, flush=True)
if sys.argv[2] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
sys.stdin.read()
"""


def test_what_a_killed_process_has_unpacked_is_removed_by_the_next(tmp_path: Path) -> None:
    file = write(tmp_path, medmnist())
    (tmp_path / "temporary").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "TMPDIR": str(tmp_path / "temporary")}

    def started(end: str) -> tuple[subprocess.Popen[str], Path]:
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, file, end],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    living, kept = started("living")
    killed, abandoned = started("killed")
    killed.communicate()
    assert abandoned.is_dir() and abandoned != kept
    last, _ = started("killed")
    last.communicate()
    assert not abandoned.exists()
    assert (kept / "train_images.npy").is_file()
    living.communicate()
    assert living.returncode == 0 and not kept.exists()


MEMORY = """
import sys
import time
from pathlib import Path
from pipeline.data.sources.npz_file import open_npz

def peak():
    # Not ru_maxrss, which begins with that of the process that started this one.
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])

source = open_npz(sys.argv[1])
before = peak()
for item in source.items:
    source.reader.read(item.path)
print(len(source.items), peak() - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(),
    reason="the peak of a process's memory is read as Linux tells it",
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_memory_does_not_grow_with_the_images(tmp_path: Path, save: Callable[..., None]) -> None:
    images = np.zeros((1000, 224, 224), np.uint8)
    images[:] = np.arange(1000, dtype=np.uint16)[:, None, None] % 251
    file = write(tmp_path, {"train_images": images, "train_labels": np.arange(1000) % 2}, save=save)
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "TMPDIR": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-c", MEMORY, file],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    count, kilobytes = map(int, ended.stdout.split())
    assert count == 1000
    # The array has 50 MB.
    assert kilobytes < 20_000


def test_without_room_to_unpack_it_is_said_where_room_is_needed(tmp_path: Path) -> None:
    """A header and a directory of the .zip that promise more than the disk has."""
    header = io.BytesIO()
    shape = (2, 10**7, 10**8)
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    size = len(header.getvalue()) + int(np.prod(shape))
    file = tmp_path / "set.npz"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("train_images.npy", header.getvalue())
        archive.writestr("train_labels.npy", npy(np.zeros(shape[0], np.uint8)))
        archive.getinfo("train_images.npy").file_size = size
    source = open_npz(str(file), 10**16)
    with pytest.raises(
        UserError,
        match=(
            rf"train_images takes {size} bytes unpacked, .* has \d+; set TMPDIR to a folder with "
            "more room"
        ),
    ):
        source.reader.read("train/000000")


def test_a_full_disk_is_one_line_and_leaves_no_half_array(tmp_path: Path) -> None:
    file = write(tmp_path, medmnist({"train": 2000}))
    source = open_npz(str(file))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A limit on the size of files ends a write as a full disk does; SIGXFSZ is ignored by Python.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(
            UserError, match=r"train_images of .* cannot be unpacked: .*File too large"
        ):
            source.reader.read("train/000000")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert unpacked(source) == []
    assert source.reader.read("train/000000")
    assert isinstance(source.reader, Arrays)
    file = source.reader.arrays["train"].file  # type: ignore[attr-defined]
    assert not list(file.parent.glob("*.partial"))


def npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_a_damaged_array_is_met_when_it_is_unpacked(tmp_path: Path) -> None:
    file = write(tmp_path, medmnist({"train": 200}), save=np.savez)
    content = bytearray(file.read_bytes())
    content[5000] ^= 255
    file.write_bytes(content)
    source = open_npz(str(file))
    with pytest.raises(UserError, match=r"train_images of .* cannot be unpacked: Bad CRC-32"):
        source.reader.read("train/000000")


def test_a_missing_file_is_named_with_the_nearest(tmp_path: Path) -> None:
    file = write(tmp_path, medmnist(), name="bloodmnist.npz")
    assert (
        refused(tmp_path / "bloodmnist_.npz")
        == f"data.source: file '{tmp_path}/bloodmnist_.npz' does not exist; nearest: {file}"
    )
    assert (
        refused(tmp_path / "no" / "set.npz")
        == f"data.source: file '{tmp_path}/no/set.npz' does not exist"
    )


@pytest.mark.parametrize("content", [b"", b"no archive", npy(np.zeros(3)), b"PK\x03\x04"])
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "set.npz").write_bytes(content)
    assert refused(tmp_path / "set.npz") == (
        f"data.source: '{tmp_path}/set.npz' cannot be read as an .npz file: File is not a zip file"
    )


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert "cannot be read as an .npz file: not a regular file" in refused(tmp_path)


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        (
            ["train_images"],
            (
                "has no train_images; arrays: train_labels, val_images, val_labels, test_images, "
                "test_labels"
            ),
        ),
        (["train_labels"], "has no train_labels; arrays: train_images, val_images,"),
        (
            ["train_images", "train_labels"],
            "has no train_images and no train_labels; arrays: val_images,",
        ),
        (["val_labels"], "has no val_labels; arrays: train_images,"),
        (["test_images"], "has no test_images; arrays: train_images,"),
    ],
)
def test_missing_arrays_are_named_with_those_there_are(
    tmp_path: Path, missing: list[str], expected: str
) -> None:
    arrays = {name: array for name, array in medmnist().items() if name not in missing}
    assert expected in refused(write(tmp_path, arrays))


def test_an_archive_of_other_files_has_no_arrays(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("train_images", b"")
        archive.writestr("cat.png", b"")
    assert "has no train_images and no train_labels; arrays: none" in refused(tmp_path / "set.npz")


def test_a_misspelled_array_is_named_with_the_nearest(tmp_path: Path) -> None:
    arrays = medmnist({"train": 4}) | {"valid_images": np.zeros((2, 8, 6), np.uint8)}
    assert (
        "unknown array 'valid_images'; nearest: val_images; allowed: train_images, train_labels,"
        in refused(write(tmp_path, arrays))
    )


def test_other_arrays_are_of_no_concern(tmp_path: Path) -> None:
    arrays = medmnist({"train": 4}) | {"class_names": np.array(["a", "b"], dtype=object)}
    assert len(open_npz(str(write(tmp_path, arrays))).items) == 4


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (np.zeros((6, 8, 8), np.float32), "train_images is float32 of shape (6, 8, 8)"),
        (np.zeros((6, 8, 8), np.int8), "train_images is int8 of shape (6, 8, 8)"),
        (np.zeros((6, 8, 8), np.bool_), "train_images is bool of shape (6, 8, 8)"),
        (np.zeros((6, 8, 8), object), "train_images is object of shape (6, 8, 8)"),
        (np.zeros((6, 8, 8), [("a", "u1")]), "train_images is [('a', 'u1')] of shape (6, 8, 8)"),
        (np.zeros(6, np.uint8), "train_images is uint8 of shape (6,)"),
        (np.zeros((), np.uint8), "train_images is uint8 of shape ()"),
        (np.zeros((6, 64), np.uint8), "train_images is uint8 of shape (6, 64)"),
        (np.zeros((6, 8, 8, 4), np.uint8), "train_images is uint8 of shape (6, 8, 8, 4)"),
        (np.zeros((6, 3, 8, 8), np.uint8), "train_images is uint8 of shape (6, 3, 8, 8)"),
        (np.zeros((6, 8, 8, 8, 3), np.uint8), "train_images is uint8 of shape (6, 8, 8, 8, 3)"),
        (np.zeros((6, 0, 8), np.uint8), "train_images is uint8 of shape (6, 0, 8)"),
    ],
)
def test_images_of_another_type_or_shape_are_refused(
    tmp_path: Path, images: NDArray[Any], expected: str
) -> None:
    message = refused(write(tmp_path, medmnist() | {"train_images": images}))
    assert (
        f"{expected}; allowed: uint8 of shape (n, height, width) or (n, height, width, 3)"
        in message
    )


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (
            np.zeros(6, np.float64),
            "train_labels is float64 of shape (6,); allowed: whole numbers of shape (n,) or (n, 1)",
        ),
        (np.zeros(6, np.bool_), "train_labels is bool of shape (6,)"),
        (np.array(["cat"] * 6), "train_labels is <U3 of shape (6,)"),
        (np.array(["cat"] * 6, object), "train_labels is object of shape (6,)"),
        (np.zeros((), np.uint8), "train_labels is uint8 of shape ()"),
        (np.zeros((6, 1, 1), np.uint8), "train_labels is uint8 of shape (6, 1, 1)"),
        (np.zeros((6, 0), np.uint8), "train_labels is uint8 of shape (6, 0)"),
        (
            np.zeros((6, 14), np.uint8),
            "train_labels has 14 labels an image; allowed: one, of shape (n,) or (n, 1)",
        ),
        (np.array([0, 1, -1, 0, 1, 0]), "train_labels has the label -1; allowed: 0 and above"),
        (np.zeros(5, np.uint8), "6 train_images, but 5 train_labels"),
        (np.zeros((7, 1), np.uint8), "6 train_images, but 7 train_labels"),
    ],
)
def test_labels_of_another_type_shape_or_count_are_refused(
    tmp_path: Path, labels: NDArray[Any], expected: str
) -> None:
    assert expected in refused(write(tmp_path, medmnist() | {"train_labels": labels}))


def test_counts_of_other_splits_are_compared_too(tmp_path: Path) -> None:
    arrays = medmnist() | {"test_labels": np.zeros(5, np.uint8)}
    assert "4 test_images, but 5 test_labels" in refused(write(tmp_path, arrays))


def test_a_set_without_training_images_is_refused(tmp_path: Path) -> None:
    assert "train_images holds no image" in refused(
        write(tmp_path, medmnist({"train": 0, "test": 3}))
    )


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("name", ["train_images", "train_labels", "val_labels", "other"])
def test_nothing_is_unpickled(tmp_path: Path, name: str) -> None:
    trap = np.array([Trap(tmp_path / "sprung")] * 6, dtype=object)
    file = write(tmp_path, medmnist() | {name: trap})
    if name == "other":
        source = open_npz(str(file))
        assert all(source.reader.read(item.path) for item in source.items)
    else:
        assert f"{name} is object of shape (6,)" in refused(file)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["train_images", "train_labels"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: content[:20],
        lambda content: b"",
        lambda content: content.replace(b"'shape'", b"'shade'"),
        lambda content: content.replace(b"{", b"("),
        lambda content: content.replace(b"(6,", b"(06"),
        lambda content: content.replace(b"(6,", b"(9,"),
        lambda content: content.replace(b"(6,", b"-6,,"),
        lambda content: content.replace(b"'descr'", b"b'desc'"),
        lambda content: content[:6] + b"\x03" + content[7:],
        lambda content: content[:6] + b"\x09" + content[7:],
    ],
)
def test_a_damaged_header_is_one_line(
    tmp_path: Path, name: str, damage: Callable[[bytes], bytes]
) -> None:
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        for other, array in medmnist().items():
            archive.writestr(f"{other}.npy", damage(npy(array)) if other == name else npy(array))
    message = refused(tmp_path / "set.npz")
    assert (
        "cannot be read as an .npz file" in message
        or f"{name} is " in message
        or "6 train_images, but 9 train_labels" in message
    )


def packed(file: Path, method: int, arrays: dict[str, np.ndarray]) -> Path:
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            archive.writestr(f"{name}.npy", buffer.getvalue())
    return file


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_methods_of_packing_are_refused_before_anything_is_unpacked(
    tmp_path: Path, method: int
) -> None:
    arrays = {
        "train_images": np.zeros((40, 1000, 1000), np.uint8),
        "train_labels": np.arange(40) % 2,
    }
    file = packed(tmp_path / "bomb.npz", method, arrays)
    assert file.stat().st_size < 60_000
    started = time.process_time()
    with pytest.raises(
        UserError, match=r"train_images\.npy is packed by another method than deflate"
    ):
        open_npz(str(file))
    assert time.process_time() - started < 5
    assert (
        len(open_npz(str(packed(tmp_path / "good.npz", zipfile.ZIP_DEFLATED, arrays))).items) == 40
    )


def test_images_of_too_many_pixels_are_refused_by_the_header(tmp_path: Path) -> None:
    file = packed(
        tmp_path / "x.npz",
        zipfile.ZIP_DEFLATED,
        {"train_images": np.zeros((2, 30, 40), np.uint8), "train_labels": np.arange(2)},
    )
    with pytest.raises(UserError, match=r"40 × 30 pixels, more than data.max_pixels \(1199\)"):
        open_npz(str(file), 1199)
    assert len(open_npz(str(file), 1200).items) == 2


def header(shape: str, length: int | None = None) -> bytes:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return (
        b"\x93NUMPY\x02\0" + (len(text) if length is None else length).to_bytes(4, "little") + text
    )


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (header("(2, 8, 8)", 4_000_000_000), "a header of 4000000000 bytes, more than 10000"),
        (header("(2000000000, 8, 8)"), "bytes where its header says"),
        (header("(-2, 8, 8)"), "the shape"),
        (header("(2, 60000, 60000)"), "more than data.max_pixels"),
        (header("(2, 8, 8)") + bytes(127), "bytes where its header says"),
    ],
)
def test_what_a_header_claims_is_checked_first(tmp_path: Path, content: bytes, why: str) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train_images.npy", content)
        archive.writestr("train_labels.npy", header("(2,)") + b"\0\1")
    with pytest.raises(UserError, match=why):
        open_npz(str(tmp_path / "x.npz"))


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(UserError, match="not a regular file"):
        open_npz(str(tmp_path / "pipe.npz"))
