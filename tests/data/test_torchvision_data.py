"""Data sets that torchvision reads: small sets in the files of the true format."""

from __future__ import annotations

import gzip
import hashlib
import multiprocessing
import pickle
import shutil
import socket
import struct
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from pipeline.config import Data
from pipeline.data.decode import Decoding
from pipeline.data.sources import Source, open_source, torchvision_data
from pipeline.data.sources.source import Item
from pipeline.data.sources.torchvision_data import open_published
from pipeline.errors import UserError

NAMES = ["MNIST", "FashionMNIST", "CIFAR10", "Flowers102", "OxfordIIITPet"]
Patch = pytest.MonkeyPatch
RNG = np.random.default_rng(0)
GREY = {
    "train": RNG.integers(0, 256, (12, 28, 28), np.uint8),
    "t10k": RNG.integers(0, 256, (5, 28, 28), np.uint8),
}
COLOUR = RNG.integers(0, 256, (6, 4, 3, 32, 32), np.uint8)


def md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()


def write_jpeg(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (20, 30, 3), np.uint8)).save(file)


def write_mnist(name: str, root: Path, monkeypatch: Patch) -> None:
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    for split, images in GREY.items():
        labels = np.arange(len(images), dtype=np.uint8) % 10
        (folder / f"{split}-images-idx3-ubyte").write_bytes(
            struct.pack(">4I", 0x803, *images.shape) + images.tobytes()
        )
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(
            struct.pack(">2I", 0x801, len(labels)) + labels.tobytes()
        )


def write_cifar10(root: Path, monkeypatch: Patch) -> None:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ]
    contents: dict[str, Any] = {
        "batches.meta": {"num_cases_per_batch": 4, "label_names": names, "num_vis": 3072}
    }
    for batch, images in zip(
        [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"], COLOUR, strict=True
    ):
        contents[batch] = {
            "batch_label": batch,
            "labels": [3, 0, 9, 3],
            "data": images.reshape(4, 3072),
            "filenames": ["x.png"] * 4,
        }
    for file, content in contents.items():
        (folder / file).write_bytes(pickle.dumps(content, protocol=2))
    # torchvision reads the published files alone, told by their MD5 sums: here those of the small
    # ones.
    monkeypatch.setattr(
        datasets.CIFAR10,
        "train_list",
        [[f"data_batch_{n}", md5(folder / f"data_batch_{n}")] for n in range(1, 6)],
    )
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", md5(folder / "test_batch")]])
    monkeypatch.setattr(
        datasets.CIFAR10, "meta", datasets.CIFAR10.meta | {"md5": md5(folder / "batches.meta")}
    )


def write_flowers102(root: Path, monkeypatch: Patch) -> None:
    folder = root / "flowers-102"
    for number in range(1, 11):
        write_jpeg(folder / "jpg" / f"image_{number:05d}.jpg")
    savemat(
        folder / "imagelabels.mat",
        {"labels": np.array([[1, 1, 1, 2, 2, 2, 102, 102, 102, 70]], np.uint8)},
    )
    savemat(
        folder / "setid.mat", {"trnid": [[1, 4, 7]], "valid": [[2, 5, 8]], "tstid": [[9, 6, 3, 10]]}
    )
    sums = {
        key: (file, md5(folder / file))
        for key, file in (("label", "imagelabels.mat"), ("setid", "setid.mat"))
    }
    # As above.
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", datasets.Flowers102._file_dict | sums)


def write_pets(root: Path, monkeypatch: Patch) -> None:
    folder = root / "oxford-iiit-pet"
    for name in ("Abyssinian_1", "american_bulldog_10", "Abyssinian_2", "american_bulldog_11"):
        write_jpeg(folder / "images" / f"{name}.jpg")
    (folder / "annotations").mkdir()
    (folder / "annotations" / "trainval.txt").write_text(
        "Abyssinian_1 1 1 1\namerican_bulldog_10 2 2 1\n"
    )
    (folder / "annotations" / "test.txt").write_text(
        "american_bulldog_11 2 2 1\nAbyssinian_2 1 1 1\n"
    )


WRITE: dict[str, Callable[[Path, Patch], None]] = {
    "MNIST": partial(write_mnist, "MNIST"),
    "FashionMNIST": partial(write_mnist, "FashionMNIST"),
    "CIFAR10": write_cifar10,
    "Flowers102": write_flowers102,
    "OxfordIIITPet": write_pets,
}
FOLDERS = {
    "CIFAR10": "cifar-10-batches-py",
    "Flowers102": "flowers-102",
    "OxfordIIITPet": "oxford-iiit-pet",
}


def pack(folder: Path, archive: Path) -> str:
    """Write a .tar.gz of a folder, and return its MD5 sum."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    return md5(archive)


def write_archives(name: str, root: Path, monkeypatch: Patch) -> list[Path]:
    """Write the archives that torchvision downloads to where it puts them, and return them."""
    unpacked = root.parent / f"unpacked {name}"
    WRITE[name](unpacked, monkeypatch)
    if name == "CIFAR10":
        monkeypatch.setattr(
            datasets.CIFAR10,
            "tgz_md5",
            pack(unpacked / FOLDERS[name], root / "cifar-10-python.tar.gz"),
        )
    elif name == "Flowers102":
        folder = root / FOLDERS[name]
        digest = pack(unpacked / FOLDERS[name] / "jpg", folder / "102flowers.tgz")
        for file in ("imagelabels.mat", "setid.mat"):
            shutil.copy(unpacked / FOLDERS[name] / file, folder)
        monkeypatch.setattr(
            datasets.Flowers102,
            "_file_dict",
            datasets.Flowers102._file_dict | {"image": ("102flowers.tgz", digest)},
        )
    elif name == "OxfordIIITPet":
        resources = tuple(
            (url, pack(unpacked / FOLDERS[name] / part, root / FOLDERS[name] / f"{part}.tar.gz"))
            for (url, _), part in zip(
                datasets.OxfordIIITPet._RESOURCES, ("images", "annotations"), strict=True
            )
        )
        monkeypatch.setattr(datasets.OxfordIIITPet, "_RESOURCES", resources)
    else:
        (root / name / "raw").mkdir(parents=True)
        for file in (unpacked / name / "raw").iterdir():
            (root / name / "raw" / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        resources = [
            (file, md5(root / name / "raw" / file)) for file, _ in getattr(datasets, name).resources
        ]
        monkeypatch.setattr(getattr(datasets, name), "resources", resources)
    shutil.rmtree(unpacked)
    return files(root)


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if not path.is_dir())


def pixels(source: Source, item: Item) -> NDArray[np.uint8]:
    return np.asarray(source.reader.image(source.reader.read(item.path), Decoding()).image)


def summary(source: Source) -> list[tuple[str, str]]:
    return [(item.split, item.label) for item in source.items]


def refused(name: str, root: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_published(name, str(root))
    assert "\n" not in str(caught.value)
    return caught.value.message


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_mnist_and_its_like(tmp_path: Path, monkeypatch: Patch, name: str) -> None:
    WRITE[name](tmp_path, monkeypatch)
    source = open_published(name, str(tmp_path))
    classes = [label.replace("/", "-") for label in getattr(datasets, name).classes]
    assert summary(source) == [
        *(("train", classes[number % 10]) for number in range(12)),
        *(("test", label) for label in classes[:5]),
    ]
    assert (source.items[0].path, source.items[-1].path) == ("train/000000", "test/000004")
    for item, expected in zip(source.items, [*GREY["train"], *GREY["t10k"]], strict=True):
        assert np.array_equal(pixels(source, item), np.repeat(expected[:, :, None], 3, axis=2))


def test_class_names_have_no_slash(tmp_path: Path, monkeypatch: Patch) -> None:
    WRITE["FashionMNIST"](tmp_path, monkeypatch)
    assert open_published("FashionMNIST", str(tmp_path)).items[0].label == "T-shirt-top"


def test_cifar10(tmp_path: Path, monkeypatch: Patch) -> None:
    write_cifar10(tmp_path, monkeypatch)
    source = open_published("CIFAR10", str(tmp_path))
    assert summary(source) == [
        (split, label)
        for split in ["train"] * 5 + ["test"]
        for label in ("cat", "airplane", "truck", "cat")
    ]
    for item, expected in zip(source.items, COLOUR.reshape(24, 3, 32, 32), strict=True):
        assert np.array_equal(pixels(source, item), expected.transpose(1, 2, 0))


def test_flowers102(tmp_path: Path, monkeypatch: Patch) -> None:
    write_flowers102(tmp_path, monkeypatch)
    source = open_published("Flowers102", str(tmp_path))
    primrose, orchid, lily = "pink primrose", "hard-leaved pocket orchid", "blackberry lily"
    assert summary(source) == [
        *(("train", label) for label in (primrose, orchid, lily)),
        *(("val", label) for label in (primrose, orchid, lily)),
        *(("test", label) for label in (lily, orchid, primrose, "tree poppy")),
    ]
    assert [item.path for item in source.items[:2]] == [
        "flowers-102/jpg/image_00001.jpg",
        "flowers-102/jpg/image_00004.jpg",
    ]
    for item in source.items:
        assert source.reader.read(item.path) == (tmp_path / item.path).read_bytes()
        assert pixels(source, item).shape == (20, 30, 3)


def test_oxford_pets(tmp_path: Path, monkeypatch: Patch) -> None:
    write_pets(tmp_path, monkeypatch)
    source = open_published("OxfordIIITPet", str(tmp_path))
    assert source.items == [
        Item("oxford-iiit-pet/images/Abyssinian_1.jpg", "Abyssinian", "train"),
        Item("oxford-iiit-pet/images/american_bulldog_10.jpg", "American Bulldog", "train"),
        Item("oxford-iiit-pet/images/american_bulldog_11.jpg", "American Bulldog", "test"),
        Item("oxford-iiit-pet/images/Abyssinian_2.jpg", "Abyssinian", "test"),
    ]
    assert (
        source.reader.read(source.items[0].path) == (tmp_path / source.items[0].path).read_bytes()
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_set_is_opened_by_its_name_and_root(
    tmp_path: Path, monkeypatch: Patch, name: str
) -> None:
    WRITE[name](tmp_path / "sets", monkeypatch)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    source = open_source(Data(source=f"torchvision:{name}", root="~/sets"))
    assert source.description == f"torchvision {name} in {tmp_path}/sets"
    assert open_published(name, "sets").items == source.items
    # Without a root, torch.hub's.
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    (tmp_path / "torch" / "hub").mkdir(parents=True)
    (tmp_path / "torch" / "hub" / "datasets").symlink_to(tmp_path / "sets")
    assert open_published(name, "").items == source.items


@pytest.mark.parametrize("name", NAMES)
def test_the_fingerprint_changes_with_the_content_alone(
    tmp_path: Path, monkeypatch: Patch, name: str
) -> None:
    WRITE[name](tmp_path, monkeypatch)
    source = open_published(name, str(tmp_path))
    path = source.items[0].path
    before = source.reader.fingerprint(path)
    assert open_published(name, str(tmp_path)).reader.fingerprint(path) == before
    if name in ("MNIST", "FashionMNIST"):
        file = tmp_path / name / "raw" / "t10k-images-idx3-ubyte"
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    elif name == "CIFAR10":
        return
    else:
        write_jpeg(tmp_path / path)
    assert open_published(name, str(tmp_path)).reader.fingerprint(path) != before


@pytest.mark.parametrize("name", NAMES)
def test_worker_processes_read_the_same(tmp_path: Path, monkeypatch: Patch, name: str) -> None:
    WRITE[name](tmp_path, monkeypatch)
    source = open_published(name, str(tmp_path))
    paths = [item.path for item in source.items]
    assert len(pickle.dumps(source.reader)) < 1000
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(source.reader.read, paths) == [source.reader.read(path) for path in paths]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("MNST", "nearest: MNIST"),
        ("cifar10", "nearest: CIFAR10"),
        ("Flowers", "nearest: Flowers102"),
        ("ImageNet", "allowed: MNIST,"),
    ],
)
def test_a_misspelled_name_is_met_with_the_nearest(
    tmp_path: Path, name: str, expected: str
) -> None:
    message = refused(name, tmp_path)
    assert message.startswith(f"unknown data.source torchvision set {name!r}")
    assert expected in message


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sets").write_text("")
    assert f"data.root: '{tmp_path}/sets' is a file" in refused("MNIST", tmp_path / "sets")


ARCHIVES = {
    "MNIST": [
        f"MNIST/raw/{name}-ubyte.gz"
        for name in (
            "train-images-idx3",
            "train-labels-idx1",
            "t10k-images-idx3",
            "t10k-labels-idx1",
        )
    ],
    "CIFAR10": ["cifar-10-python.tar.gz"],
    "Flowers102": [
        f"flowers-102/{name}" for name in ("102flowers.tgz", "imagelabels.mat", "setid.mat")
    ],
    "OxfordIIITPet": [f"oxford-iiit-pet/{name}.tar.gz" for name in ("images", "annotations")],
}
ARCHIVES["FashionMNIST"] = [path.replace("MNIST", "FashionMNIST") for path in ARCHIVES["MNIST"]]
ADDRESSES = {
    "MNIST": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "FashionMNIST": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "CIFAR10": "https://www.cs.toronto.edu/~kriz/",
    "Flowers102": "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
    "OxfordIIITPet": "https://www.robots.ox.ac.uk/~vgg/data/pets/data/",
}


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", NAMES)
def test_without_network_it_is_said_which_files_to_put_where(tmp_path: Path, name: str) -> None:
    message = refused(name, tmp_path / "not" / "yet")
    assert (
        f"files of torchvision:{name} are missing or damaged in {tmp_path}/not/yet and "
        "cannot be downloaded (<urlopen error"
    ) in message
    assert message.endswith(f"; put {', '.join(ARCHIVES[name])} there, from {ADDRESSES[name]}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(
    not Path("/proc/self").is_dir(), reason="a place that nobody, not even root, can write to"
)
def test_a_place_that_cannot_be_written_to_is_told_without_our_temporary_names(
    tmp_path: Path,
) -> None:
    message = refused("MNIST", Path("/proc/self/sets"))
    assert "and cannot be downloaded (No such file or directory); put" in message
    assert ".download" not in message


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", NAMES)
def test_files_put_where_the_message_says_are_unpacked(
    tmp_path: Path, monkeypatch: Patch, name: str
) -> None:
    archives = write_archives(name, tmp_path / "sets", monkeypatch)
    assert [str(path.relative_to(tmp_path / "sets")) for path in archives] == sorted(ARCHIVES[name])
    source = open_published(name, str(tmp_path / "sets"))
    assert len(source.items) > 3
    assert all(source.reader.read(item.path) for item in source.items)
    assert [
        path for path in tmp_path.rglob("*") if path.is_symlink() or ".download" in path.name
    ] == []
    for archive in archives:
        if not archive.name.endswith(".mat"):
            archive.unlink()
    assert open_published(name, str(tmp_path / "sets")).items == source.items


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_archive_is_neither_unpacked_nor_changed(
    tmp_path: Path, monkeypatch: Patch, name: str
) -> None:
    archives = write_archives(name, tmp_path / "sets", monkeypatch)
    archives[0].write_bytes(archives[0].read_bytes()[:-1])
    before = {path: path.read_bytes() for path in archives}
    assert "are missing or damaged" in refused(name, tmp_path / "sets")
    assert {path: path.read_bytes() for path in files(tmp_path)} == before


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_met_and_nothing_else_touched(
    tmp_path: Path, monkeypatch: Patch, name: str
) -> None:
    WRITE[name](tmp_path, monkeypatch)
    images = {path for path in files(tmp_path) if path.suffix == ".jpg"}
    for missing in set(files(tmp_path)) - images:
        content = missing.read_bytes()
        missing.unlink()
        before = files(tmp_path)
        assert "are missing or damaged" in refused(name, tmp_path)
        assert files(tmp_path) == before
        missing.write_bytes(content)
    assert open_published(name, str(tmp_path)).items


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("length", [0, 1, 3, 4, 7, 10, 15, 16, 17, 500])
@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_file_cut_short_is_refused(
    tmp_path: Path, monkeypatch: Patch, file: str, length: int
) -> None:
    WRITE["MNIST"](tmp_path, monkeypatch)
    path = tmp_path / "MNIST" / "raw" / file
    content = path.read_bytes()[:length]
    if length < len(path.read_bytes()):
        path.write_bytes(content)
        assert "are missing or damaged" in refused("MNIST", tmp_path)


@pytest.mark.usefixtures("no_network")
def test_labels_that_are_too_few_are_refused(tmp_path: Path, monkeypatch: Patch) -> None:
    WRITE["MNIST"](tmp_path, monkeypatch)
    (tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(
        struct.pack(">2I", 0x801, 3) + bytes(3)
    )
    assert "are missing or damaged" in refused("MNIST", tmp_path)


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("file", ["data_batch_2", "test_batch", "batches.meta"])
def test_a_pickle_other_than_the_published_one_is_not_read(
    tmp_path: Path, monkeypatch: Patch, file: str
) -> None:
    write_cifar10(tmp_path, monkeypatch)
    (tmp_path / "cifar-10-batches-py" / file).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    assert "are missing or damaged" in refused("CIFAR10", tmp_path)
    assert not (tmp_path / "sprung").exists()


class Server(ThreadingHTTPServer):
    """Serves the files of one folder, whatever folder is asked for; some are refused."""

    def __init__(self, folder: Path) -> None:
        self.missing: set[str] = set()
        self.cut: set[str] = set()
        server = self

        class Handler(SimpleHTTPRequestHandler):
            def translate_path(self, path: str) -> str:
                name = Path(path).name
                return str(folder / ("missing" if name in server.missing else name))

            def copyfile(self, source: Any, outputfile: Any) -> None:
                content = source.read()
                outputfile.write(
                    content[: len(content) // 2] if Path(self.path).name in server.cut else content
                )

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}/"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: Patch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    with Server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def publish(name: str, tmp_path: Path, address: str, monkeypatch: Patch) -> None:
    """Publish a small set at the address of a local server."""
    for path in write_archives(name, tmp_path / "archives", monkeypatch):
        path.rename(tmp_path / "served" / path.name)
    kind = getattr(datasets, name)
    if name == "CIFAR10":
        monkeypatch.setattr(kind, "url", address + kind.filename)
    elif name == "Flowers102":
        monkeypatch.setattr(kind, "_download_url_prefix", address)
    elif name == "OxfordIIITPet":
        monkeypatch.setattr(
            kind,
            "_RESOURCES",
            tuple((address + url.rpartition("/")[2], digest) for url, digest in kind._RESOURCES),
        )
    else:
        monkeypatch.setattr(kind, "mirrors", [address])


@pytest.mark.parametrize("name", NAMES)
def test_missing_files_are_downloaded(
    tmp_path: Path, monkeypatch: Patch, server: Server, name: str
) -> None:
    publish(name, tmp_path, server.address, monkeypatch)
    root = tmp_path / "not" / "yet"
    source = open_published(name, str(root))
    assert all(source.reader.read(item.path) for item in source.items)
    assert list(tmp_path.rglob(".download*")) == []
    server.shutdown()
    assert open_published(name, str(root)).items == source.items


@pytest.mark.parametrize("fault", ["missing", "cut"])
@pytest.mark.parametrize("name", NAMES)
def test_a_broken_off_download_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: Patch, server: Server, name: str, fault: str
) -> None:
    publish(name, tmp_path, server.address, monkeypatch)
    root = tmp_path / "sets"
    for archive in ARCHIVES[name]:
        getattr(server, fault).add(Path(archive).name)
        message = refused(name, root)
        assert (
            "HTTP Error 404" if fault == "missing" else "File not found or corrupted"
        ) in message
        assert server.address in message
        assert not root.exists()
        getattr(server, fault).clear()
    assert open_published(name, str(root)).items


@pytest.mark.parametrize("name", ["MNIST", "OxfordIIITPet"])
def test_half_unpacked_files_are_replaced(
    tmp_path: Path, monkeypatch: Patch, server: Server, name: str
) -> None:
    publish(name, tmp_path, server.address, monkeypatch)
    WRITE[name](tmp_path / "sets", monkeypatch)
    expected = open_published(name, str(tmp_path / "sets")).items
    if name == "MNIST":
        file = tmp_path / "sets" / "MNIST" / "raw" / "train-images-idx3-ubyte"
        file.write_bytes(file.read_bytes()[:1000])
    else:
        (tmp_path / "sets" / "oxford-iiit-pet" / "annotations" / "trainval.txt").unlink()
    assert open_published(name, str(tmp_path / "sets")).items == expected


def test_a_server_that_does_not_answer_is_given_up(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(torchvision_data, "_TIMEOUT", 0.3)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    before = socket.getdefaulttimeout()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(
            datasets.MNIST, "mirrors", [f"http://127.0.0.1:{silent.getsockname()[1]}/"] * 2
        )
        assert "timed out" in refused("MNIST", tmp_path)
    assert socket.getdefaulttimeout() == before
    assert files(tmp_path) == []
