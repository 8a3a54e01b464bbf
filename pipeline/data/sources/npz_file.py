"""Arrays of images and labels in one .npz, in the layout of MedMNIST.

Sets of this kind reach 13 GB, so no array of images is ever in memory. An array is unpacked to disk
when the first of its images is read, and each image is mapped from there.
"""

from __future__ import annotations

import io
import math
import shutil
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import IO, Literal

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from pipeline.data.decode import MAX_PIXELS, why_too_large
from pipeline.data.sources.source import SPLITS, Arrays, Item, PixelsOnDisk, Source
from pipeline.data.sources.temporary_folder import temporary_folder
from pipeline.errors import UserError, first_line, nearest
from pipeline.files import lock, new_file

_NAMES = (
    "train_images",
    "train_labels",
    "val_images",
    "val_labels",
    "test_images",
    "test_labels",
)
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_LONGEST_HEADER = 10_000
"""Most bytes of an array's header.

NumPy has the same limit, but applies it to what it has read already.
"""
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    TokenError,
    SyntaxError,
    TypeError,
    ValueError,
    RuntimeError,
    OSError,
)
"""Errors of zipfile and NumPy for a file that they cannot read.

The file is no .npz, or it is damaged, encrypted or of an unknown compression.
"""


def open_npz(path: str, max_pixels: int = MAX_PIXELS) -> Source:
    """List the images of an .npz file.

    It holds ``train_images`` and ``train_labels``, and perhaps the same for val and test. What the
    file claims about itself is checked before anything is unpacked; it may be as large as it likes.

    Args:
        path: Path of the file.
        max_pixels: Images of more pixels are refused.

    Raises:
        UserError: The file is missing or no .npz, or an array is missing or has the wrong type or
            shape.
    """
    file = Path(path).expanduser()
    if not file.exists():
        siblings = []
        if file.parent.is_dir():
            siblings = [str(other) for other in file.parent.glob("*.npz")]
        raise UserError(f"data.source: file {path!r} does not exist{nearest(str(file), siblings)}")
    if not file.is_file():
        raise UserError(f"data.source: {path!r} cannot be read as an .npz file: not a regular file")
    try:
        version = _read_version(file)
        with zipfile.ZipFile(file) as archive:
            return _open(archive, file.resolve(), version, max_pixels)
    except _DAMAGED as error:
        raise UserError(
            f"data.source: {path!r} cannot be read as an .npz file: {first_line(error)}"
        ) from error


def _read_version(file: Path) -> str:
    status = file.stat()
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}"


def _open(archive: zipfile.ZipFile, file: Path, version: str, max_pixels: int) -> Source:
    packed = [
        member.filename
        for member in archive.infolist()
        if member.compress_type not in _COMPRESSIONS
    ]
    if packed:
        # Other methods make gigabytes out of a few bytes; NumPy writes none of them.
        raise UserError(
            f"data.source: {file}: {packed[0]} is packed by another method than deflate; "
            "numpy.savez_compressed writes that"
        )
    names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    splits = _find_splits(names, file)
    pixels = {}
    for split in splits:
        pixels[split] = _open_pixels(archive, f"{split}_images", file, version, max_pixels)
    labels = {split: _read_labels(archive, split, file, pixels[split].shape[0]) for split in splits}
    largest = max(max(numbers, default=0) for numbers in labels.values())
    # All labels have the same width, so that as text they sort in the order of the numbers.
    width = len(str(largest))
    items = []
    for split, numbers in labels.items():
        for place, label in enumerate(numbers):
            items.append(Item(Arrays.path(split, place), f"{label:0{width}d}", split))
    return Source(str(file), Arrays(pixels, version), items)


def _find_splits(names: list[str], file: Path) -> list[str]:
    """Return the splits that the file has arrays of, train first."""
    for name in names:
        if name.endswith(("_images", "_labels")) and name not in _NAMES:
            raise UserError(
                f"data.source: {file}: unknown array {name!r}{nearest(name, _NAMES)}; "
                f"allowed: {', '.join(_NAMES)}"
            )
    splits = []
    missing = []
    for split in SPLITS:
        own = [f"{split}_images", f"{split}_labels"]
        if split == "train" or not set(own).isdisjoint(names):
            splits.append(split)
            missing += [name for name in own if name not in names]
    if missing:
        raise UserError(
            f"data.source: {file} has no {' and no '.join(missing)}; "
            f"arrays: {', '.join(names) or 'none'}"
        )
    return splits


@dataclass(frozen=True)
class _Header:
    """What the .npy file of an array says about it.

    Attributes:
        dtype: Type of the numbers.
        shape: Shape of the array.
        order: C, or F if the first index varies fastest.
        offset: Place in the file where the numbers begin, in bytes.
    """

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    offset: int

    @classmethod
    def read(cls, stream: IO[bytes]) -> _Header:
        version = npy.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version[0]}.{version[1]} of the .npy format")
        sized = stream.read(2 if version == (1, 0) else 4)
        length = int.from_bytes(sized, "little")
        if length > _LONGEST_HEADER:
            raise ValueError(f"a header of {length} bytes, more than {_LONGEST_HEADER}")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, is_fortran, dtype = read(io.BytesIO(sized + stream.read(length)))
        if any(side < 0 for side in shape):
            raise ValueError(f"the shape {shape}")
        return cls(dtype, shape, "F" if is_fortran else "C", stream.tell())

    def describe(self) -> str:
        return f"{self.dtype} of shape {self.shape}"

    def check_size(self, size: int) -> None:
        expected = self.offset + math.prod(self.shape) * self.dtype.itemsize
        if size != expected:
            raise ValueError(f"{size} bytes where its header says {expected}")


def _open_pixels(
    archive: zipfile.ZipFile, name: str, file: Path, version: str, max_pixels: int
) -> _Unpacked:
    with archive.open(f"{name}.npy") as stream:
        header = _Header.read(stream)
    rank = len(header.shape)
    has_image_shape = rank == 3 or (rank == 4 and header.shape[3] == 3)
    if header.dtype != np.uint8 or not has_image_shape or min(header.shape[1:]) < 1:
        raise UserError(
            f"data.source: {file}: {name} is {header.describe()}; "
            "allowed: uint8 of shape (n, height, width) or (n, height, width, 3)"
        )
    problem = why_too_large(header.shape[2], header.shape[1], max_pixels)
    if problem:
        raise UserError(f"data.source: {file}: {name} is {header.describe()}: {problem}")
    if name == "train_images" and not header.shape[0]:
        raise UserError(f"data.source: {file}: {name} holds no image")
    header.check_size(archive.getinfo(f"{name}.npy").file_size)
    unpacked = temporary_folder(f"{file} {version}") / f"{name}.npy"
    return _Unpacked(unpacked, header.offset, header.shape, header.order, file, version)


def _read_labels(archive: zipfile.ZipFile, split: str, file: Path, count: int) -> list[int]:
    name = f"{split}_labels"
    with archive.open(f"{name}.npy") as stream:
        header = _Header.read(stream)
    if len(header.shape) == 2 and header.shape[1] > 1:
        raise UserError(
            f"data.source: {file}: {name} has {header.shape[1]} labels an image; "
            "allowed: one, of shape (n,) or (n, 1)"
        )
    if header.dtype.kind not in "iu" or header.shape[1:] not in ((), (1,)) or not header.shape:
        raise UserError(
            f"data.source: {file}: {name} is {header.describe()}; "
            "allowed: whole numbers of shape (n,) or (n, 1)"
        )
    if header.shape[0] != count:
        raise UserError(
            f"data.source: {file}: {count} {split}_images, but {header.shape[0]} {split}_labels"
        )
    header.check_size(archive.getinfo(f"{name}.npy").file_size)
    with archive.open(f"{name}.npy") as stream:
        labels: NDArray[np.integer] = npy.read_array(stream, allow_pickle=False)
    if labels.size and labels.min() < 0:
        raise UserError(
            f"data.source: {file}: {name} has the label {labels.min()}; allowed: 0 and above"
        )
    return [int(label) for label in labels.ravel()]


@dataclass(frozen=True)
class _Unpacked(PixelsOnDisk):
    """One array of an .npz. The first process that reads from it unpacks it for all processes.

    Attributes:
        archive: The .npz file.
        version: Version of the file, which must not change while it is read.
    """

    archive: Path
    version: str

    def __getitem__(self, number: int, /) -> NDArray[np.uint8]:
        if not self.file.is_file():
            with lock(self.file):
                if not self.file.is_file():
                    self._unpack()
        return super().__getitem__(number)

    def _unpack(self) -> None:
        # All errors become a UserError: an OSError would be taken for one unreadable image, and
        # raised again for each of the others.
        try:
            with zipfile.ZipFile(self.archive) as archive:
                if _read_version(self.archive) != self.version:
                    raise UserError(f"data.source: {self.archive} has changed while it was read")
                size = archive.getinfo(self.file.name).file_size
                free = shutil.disk_usage(self.file.parent).free
                if size > free:
                    raise UserError(
                        f"data.source: {self.archive}: {self.file.stem} takes {size} bytes "
                        f"unpacked, {tempfile.gettempdir()} has {free}; "
                        "set TMPDIR to a folder with more room"
                    )
                with (
                    archive.open(self.file.name) as packed,
                    new_file(self.file) as partial,
                    partial.open("wb") as unpacked,
                ):
                    shutil.copyfileobj(packed, unpacked, 1 << 20)
        except _DAMAGED as error:
            raise UserError(
                f"data.source: {self.file.stem} of {self.archive} cannot be unpacked: "
                f"{first_line(error)}"
            ) from error
