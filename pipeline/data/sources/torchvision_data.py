"""Data sets that torchvision reads and downloads, in their official splits."""

from __future__ import annotations

import os
import socket
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.sources.source import SPLITS, Arrays, Files, Item, PixelsOnDisk, Source
from pipeline.data.sources.temporary_folder import temporary_folder
from pipeline.errors import UserError, unknown_name
from pipeline.files import new_file

_HALVES = {"train": {"train": True}, "test": {"train": False}}
_ARGUMENTS: dict[str, dict[str, dict[str, Any]]] = {
    "MNIST": _HALVES,
    "FashionMNIST": _HALVES,
    "CIFAR10": _HALVES,
    "Flowers102": {split: {"split": split} for split in SPLITS},
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
}
"""Arguments of torchvision's class, by data set and split."""

_UNUSABLE = (RuntimeError, OSError, ValueError, TypeError, LookupError, AssertionError)
"""What torchvision's classes raise for files that are missing or damaged."""
_NO_DOWNLOAD = (*_UNUSABLE, HTTPException, tarfile.TarError, zlib.error, EOFError)

_TIMEOUT = 10.0
"""Seconds after which a server that does not answer is given up.

torchvision sets no limit, and asks each mirror again at each of its addresses.
"""


def open_published(name: str, root: str) -> Source:
    """Return one of torchvision's data sets; it is downloaded if its files are missing.

    Args:
        name: Name of torchvision's class.
        root: Folder that holds the files as torchvision lays them out; empty: ``datasets`` in
            torch.hub's folder.

    Raises:
        UserError: The name is unknown, or files are missing or damaged and cannot be downloaded.
    """
    if name not in _ARGUMENTS:
        raise unknown_name("data.source torchvision set", name, _ARGUMENTS)
    import torch

    folder = (Path(root).expanduser() if root else Path(torch.hub.get_dir(), "datasets")).resolve()
    if folder.exists() and not folder.is_dir():
        raise UserError(
            f"data.root: {root!r} is a file; "
            f"it must be the folder that holds the files of torchvision:{name}"
        )
    try:
        return _open(name, folder)
    except _UNUSABLE:
        _download(name, folder)
    return _open(name, folder)


def _open(name: str, root: Path, download: bool = False) -> Source:
    from torchvision import datasets

    items: list[Item] = []
    pixels: dict[str, PixelsOnDisk] = {}
    versions = []
    for split, arguments in _ARGUMENTS[name].items():
        # CIFAR10's files are pickles, which can run code. torchvision reads them only after it has
        # compared their MD5 sums with those of the published files, and nobody can make another
        # file of a given sum.
        dataset = getattr(datasets, name)(root, download=download, **arguments)
        if hasattr(dataset, "data"):
            array: NDArray[np.uint8] = np.ascontiguousarray(dataset.data)
            version = f"{zlib.crc32(array.data):08x}"
            folder = temporary_folder(f"torchvision {name} {split} {version}")
            pixels[split] = _store_pixels(array, folder)
            versions.append(version)
            paths = [Arrays.path(split, number) for number in range(len(array))]
            labels = [int(target) for target in dataset.targets]
        else:
            files: Sequence[Path]
            files = dataset._images if name == "OxfordIIITPet" else dataset._image_files
            paths = [file.relative_to(root).as_posix() for file in files]
            labels = dataset._labels
        names = [label.replace("/", "-").strip() for label in dataset.classes]
        for path, label in zip(paths, labels, strict=True):
            items.append(Item(path, names[label], split))
    reader = Arrays(pixels, "-".join(versions)) if pixels else Files(root)
    return Source(f"torchvision {name} in {root}", reader, items)


def _store_pixels(array: NDArray[np.uint8], folder: Path) -> PixelsOnDisk:
    """Write pixels to a file, so that memory and what is sent to worker processes stay small."""
    file = folder / "pixels.bin"
    if not file.is_file():
        with new_file(file) as partial:
            array.tofile(partial)
    return PixelsOnDisk(file, 0, array.shape, "C")


def _download(name: str, root: Path) -> None:
    """Download a data set, or unpack the archives of it that are there.

    If this is broken off, nothing is left behind.
    """
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity

    address, archives = _list_archives(name, getattr(datasets, name))
    existing = next(folder for folder in (root, *root.parents) if folder.is_dir())
    try:
        # Files are unpacked in a folder aside: torchvision would take half unpacked files for whole
        # ones the next time.
        with (
            tempfile.TemporaryDirectory(prefix=".download-", dir=existing) as temporary,
            _limit_waiting(_TIMEOUT),
        ):
            for archive, md5 in archives.items():
                if check_integrity(root / archive, md5):
                    link = Path(temporary, archive)
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.symlink_to(root / archive)
            _open(name, Path(temporary), download=True)
            root.mkdir(parents=True, exist_ok=True)
            _move(Path(temporary), root)
    except _NO_DOWNLOAD as error:
        raise UserError(
            f"data.source: files of torchvision:{name} are missing or damaged in {root} "
            f"and cannot be downloaded ({_reason_of(error)}); "
            f"put {', '.join(archives)} there, from {address}"
        ) from error


def _reason_of(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        # The error's whole text would name the temporary folder.
        return error.strerror
    # torchvision lists what it tried, one try a line, with the last error at the end.
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _list_archives(name: str, kind: Any) -> tuple[str, dict[str, str]]:
    """Return the address of a data set's archives, and their MD5 sums by path below the root."""
    if name == "CIFAR10":
        return kind.url.removesuffix(kind.filename), {kind.filename: kind.tgz_md5}
    if name == "Flowers102":
        return kind._download_url_prefix, {
            f"flowers-102/{file}": md5 for file, md5 in kind._file_dict.values()
        }
    if name == "OxfordIIITPet":
        address = kind._RESOURCES[0][0].rpartition("/")[0] + "/"
        return address, {
            f"oxford-iiit-pet/{url.removeprefix(address)}": md5 for url, md5 in kind._RESOURCES
        }
    return kind.mirrors[0], {f"{name}/raw/{file}": md5 for file, md5 in kind.resources}


def _move(source: Path, target: Path) -> None:
    """Move files and folders into a folder, over what is there.

    Links stay: they lead to what is there already.
    """
    for child in source.iterdir():
        if child.is_dir() and (target / child.name).is_dir():
            _move(child, target / child.name)
        elif not child.is_symlink():
            os.replace(child, target / child.name)


@contextmanager
def _limit_waiting(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
