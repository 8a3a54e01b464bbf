"""Which files below a folder are images: the one rule for prepare, predict and init."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.data.decode import EXTENSIONS

LEFTOVERS = frozenset(
    {
        "__macosx",
        "@eadir",
        "@tmp",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "lost+found",
        "system volume information",
    }
)
"""Folders that archives, file servers and systems leave behind, in lower case; what begins with a dot is passed over too."""


class Kind(NamedTuple):
    """Pictures that are not read.

    Attributes:
        name: Of the format.
        extensions: In lower case.
        way: How to convert them.
    """

    name: str
    extensions: tuple[str, ...]
    way: str


_MAGICK = "convert them with ImageMagick: magick mogrify -format png *{}"
NO_EXTENSION = "no extension"
_NIFTI_PACKED = ".nii.gz"
UNREAD = (
    Kind("HEIF", (".heic", ".heif", ".hif"), _MAGICK),
    Kind(
        "DICOM",
        (".dcm", ".dicom", ".ima"),
        "convert them with DCMTK: dcm2img --write-png FILE{} FILE.png",
    ),
    Kind("JPEG 2000", (".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc"), _MAGICK),
    Kind("JPEG XL", (".jxl",), _MAGICK),
    Kind(
        "camera raw",
        (".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw", ".raw"),
        "convert them with darktable: darktable-cli FILE{} FILE.png",
    ),
    Kind("Photoshop", (".psd", ".psb"), _MAGICK),
    Kind("SVG", (".svg", ".svgz"), _MAGICK),
    Kind("Targa", (".tga",), _MAGICK),
    Kind("OpenEXR", (".exr",), _MAGICK),
    Kind("NIfTI", (".nii", _NIFTI_PACKED), "write their slices as PNG files"),
    Kind("FITS", (".fits", ".fit", ".fts"), "write them as TIFF files"),
    Kind("NumPy", (".npy",), "write them as PNG files, or all of them as one .npz"),
    Kind("nameless", (NO_EXTENSION,), "give them the extension of their format"),
)
"""What people have, and Pillow does not read or is not asked to."""


def extension_of(path: str) -> str:
    """Return a file's extension in lower case with its dot, or ``no extension``."""
    # As text: as a path it takes ten times as long, for every file.
    extension = os.path.splitext(path)[1].lower()  # noqa: PTH122
    return (
        _NIFTI_PACKED
        if extension == ".gz" and path.lower().endswith(_NIFTI_PACKED)
        else extension or NO_EXTENSION
    )


def is_utf8(path: str) -> bool:
    """Whether a name can be written into a text: Linux takes any bytes for one."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


class Listing:
    """Lists folders below a root, and keeps account of what is passed over.

    Args:
        root: An existing folder.

    Attributes:
        ignored: What was passed over, counted by extension, or by what it is.
        warnings: On links that were not followed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ignored: Counter[str] = Counter()
        self.warnings: list[str] = []
        self._real_root = os.path.realpath(root)
        self._counted: set[str] = set()

    def folders(self, folder: str) -> list[str]:
        """Return the names of a folder's subfolders, sorted; `folder` is relative to the root, empty for the root itself."""
        way = [self._real(folder)]
        return sorted(
            entry.name
            for entry in self._entries(folder)
            if entry.is_dir() and self._next(_joined(folder, entry.name), entry, way)
        )

    def files(self, folder: str) -> list[str]:
        """Return the names of the files that lie in a folder itself, sorted."""
        return sorted(entry.name for entry in self._entries(folder) if not entry.is_dir())

    def below(self, folder: str) -> list[str]:
        """Return all files below a folder, images or not, as paths relative to the root, sorted."""
        return sorted(self._walk(folder, [self._real(folder)]))

    def only_images(self, paths: Iterable[str]) -> list[str]:
        """Return the images among files; the others are counted."""
        found = []
        for path in paths:
            extension = extension_of(path)
            if extension in EXTENSIONS:
                found.append(path)
            else:
                self.ignored[extension] += 1
        return found

    def _path(self, folder: str) -> str:
        return f"{self.root}{os.sep}{folder}" if folder else str(self.root)

    def _real(self, folder: str) -> str:
        return os.path.realpath(self._path(folder))

    def _entries(self, folder: str) -> Iterator[os.DirEntry[str]]:
        """Yield what stands in a folder but for what systems and programs have left there, which is counted once."""
        is_new = folder not in self._counted
        self._counted.add(folder)
        with os.scandir(self._path(folder)) as entries:
            for entry in entries:
                is_hidden = entry.name.startswith(".")
                if not is_hidden and entry.name.lower() not in LEFTOVERS:
                    yield entry
                elif is_new:
                    self.ignored["hidden" if is_hidden else f"folder {entry.name}"] += 1

    def _walk(self, folder: str, way: Sequence[str], is_linked: bool = False) -> Iterator[str]:
        """Yield the files below a folder.

        Args:
            folder: Relative to the root.
            way: The real paths of the folders that lead to it, itself last.
            is_linked: Whether one of them was a link. Links in it are not followed: of a dozen folders that are linked with one another
                there are more ways than anybody can wait for.
        """
        for entry in self._entries(folder):
            path = _joined(folder, entry.name)
            if not entry.is_dir():
                # Whatever else has the name of a file; reading it tells.
                yield path
            elif is_linked and entry.is_symlink():
                self.ignored["link in a linked folder"] += 1
            elif real := self._next(path, entry, way):
                yield from self._walk(path, [*way, real], is_linked or entry.is_symlink())

    def _next(self, path: str, entry: os.DirEntry[str], way: Sequence[str]) -> str:
        """Return the real path of a folder; empty where it may not be listed: a link leads out of the root, or back to where it stands."""
        if not entry.is_symlink():
            real = f"{way[-1].rstrip(os.sep)}{os.sep}{entry.name}"
            return "" if real in way else real
        real = self._real(path)
        if real == self._real_root:
            self._warn(f"link {path!r} leads to {real} itself: it is not followed")
        elif not real.startswith(f"{self._real_root.rstrip(os.sep)}{os.sep}"):
            self._warn(
                f"link {path!r} leads to {real}, which is not below {self._real_root}: it is not followed"
            )
        elif any(_is_within(one, real) for one in way):
            self._warn(
                f"link {path!r} leads back to a folder that it stands in: it is not followed"
            )
        else:
            return real
        return ""

    def _warn(self, line: str) -> None:
        if line not in self.warnings:
            self.warnings.append(line)
            self.ignored["link"] += 1


def _joined(folder: str, name: str) -> str:
    return f"{folder}{os.sep}{name}" if folder else name


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}{os.sep}")


def unread_warnings(labelled: Iterable[tuple[str, str]]) -> list[str]:
    """Return what to say of pictures whose format is not read.

    Args:
        labelled: Label and path of all files of class folders, images or not; an empty label where there are no classes.
    """
    of_extension = {extension: kind for kind in UNREAD for extension in kind.extensions}
    read: Counter[str] = Counter()
    unread: dict[Kind, Counter[str]] = {}
    extensions: dict[Kind, Counter[str]] = {}
    for label, path in labelled:
        extension = extension_of(path)
        read[label] += extension in EXTENSIONS
        if (kind := of_extension.get(extension)) is not None:
            unread.setdefault(kind, Counter())[label] += 1
            # As it is written: a pattern that a person copies from the message tells .HEIC from .heic.
            written = extension
            if extension not in (NO_EXTENSION, _NIFTI_PACKED):
                written = os.path.splitext(path)[1]  # noqa: PTH122
            extensions.setdefault(kind, Counter())[written] += 1
    lines = []
    for kind, counts in unread.items():
        of_label = {
            label: count / (read[label] + sum(others[label] for others in unread.values()))
            for label, count in counts.items()
        }
        shares = [
            f"{label!r} {share:.0%}" if label else f"{share:.0%}"
            for label, share in sorted(of_label.items(), key=lambda one: (-one[1], one[0]))
        ]
        listed = ", ".join(shares[:10]) + f" and {len(shares) - 10} more classes" * (
            len(shares) > 10
        )
        names = "" if kind.extensions == (NO_EXTENSION,) else f" ({', '.join(extensions[kind])})"
        way = kind.way.format(next(iter(extensions[kind])))
        count = sum(counts.values())
        files, verb = ("file", "is") if count == 1 else ("files", "are")
        what = f"{kind.name} {files}{names}" if names else f"{files} without extension"
        lines.append(f"{count} {what} {verb} not read: {listed} of all; {way}")
    return lines
