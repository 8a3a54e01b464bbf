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
"""By data set and split, what torchvision's class is called with."""

_UNUSABLE = (RuntimeError, OSError, ValueError, TypeError, LookupError, AssertionError)
"""What torchvision's classes raise for files that are missing or damaged."""
_NO_DOWNLOAD = (*_UNUSABLE, HTTPException, tarfile.TarError, zlib.error, EOFError)

_TIMEOUT = 10.0
"""Seconds without an answer; torchvision sets none, and asks each mirror again at each of its addresses."""


def open_published(name: str, root: str) -> Source:
    """Return one of torchvision's data sets, downloaded where its files are missing.

    Args:
        name: Of torchvision's class.
        root: Folder that holds the files as torchvision lays them out; empty: ``datasets`` in torch.hub's folder.

    Raises:
        UserError: Unknown name, or files that are missing or damaged and cannot be downloaded.
    """
    if name not in _ARGUMENTS:
        raise unknown_name("data.source torchvision set", name, _ARGUMENTS)
    import torch

    folder = (Path(root).expanduser() if root else Path(torch.hub.get_dir(), "datasets")).resolve()
    if folder.exists() and not folder.is_dir():
        raise UserError(
            f"data.root: {root!r} is a file; it must be the folder that holds the files of torchvision:{name}"
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
        # CIFAR10's files are pickles, which can run code: torchvision reads them after their MD5 sums have been compared
        # with those of the published files, and nobody can make another file of a given sum.
        dataset = getattr(datasets, name)(root, download=download, **arguments)
        if hasattr(dataset, "data"):
            array: NDArray[np.uint8] = np.ascontiguousarray(dataset.data)
            version = f"{zlib.crc32(array.data):08x}"
            pixels[split] = _on_disk(
                array, temporary_folder(f"torchvision {name} {split} {version}")
            )
            versions.append(version)
            paths = [Arrays.path(split, number) for number in range(len(array))]
            labels = [int(target) for target in dataset.targets]
        else:
            files: Sequence[Path] = (
                dataset._images if name == "OxfordIIITPet" else dataset._image_files
            )
            paths = [file.relative_to(root).as_posix() for file in files]
            labels = dataset._labels
        names = [label.replace("/", "-").strip() for label in dataset.classes]
        items += [
            Item(path, names[label], split) for path, label in zip(paths, labels, strict=True)
        ]
    reader = Arrays(pixels, "-".join(versions)) if pixels else Files(root)
    return Source(f"torchvision {name} in {root}", reader, items)


def _on_disk(array: NDArray[np.uint8], folder: Path) -> PixelsOnDisk:
    """Keep pixels in a file, so that memory and what worker processes are given stay small."""
    file = folder / "pixels.bin"
    if not file.is_file():
        with new_file(file) as partial:
            array.tofile(partial)
    return PixelsOnDisk(file, 0, array.shape, "C")


def _download(name: str, root: Path) -> None:
    """Download a data set, or unpack what archives of it are there; a broken off attempt leaves nothing behind."""
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity

    address, archives = _archives(name, getattr(datasets, name))
    existing = next(folder for folder in (root, *root.parents) if folder.is_dir())
    try:
        # Aside, since torchvision takes half unpacked files for whole ones the next time.
        with (
            tempfile.TemporaryDirectory(prefix=".download-", dir=existing) as temporary,
            _timeout(_TIMEOUT),
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
            f"data.source: files of torchvision:{name} are missing or damaged in {root} and cannot be downloaded ({_reason(error)}); "
            f"put {', '.join(archives)} there, from {address}"
        ) from error


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        # Its text would name the temporary folder.
        return error.strerror
    # torchvision lists what it tried in lines of their own, the last error at the end.
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _archives(name: str, kind: Any) -> tuple[str, dict[str, str]]:
    """Return where a data set's archives come from, and by their path below the root their MD5 sums."""
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
    """Move files and folders into a folder, over what is there, but for links to what is there."""
    for child in source.iterdir():
        if child.is_dir() and (target / child.name).is_dir():
            _move(child, target / child.name)
        elif not child.is_symlink():
            os.replace(child, target / child.name)


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
