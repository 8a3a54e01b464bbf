"""Find the images below a folder, by one rule for prepare, predict and init."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
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
"""Folders that archives, file servers and systems leave behind, in lower case.

What begins with a dot is passed over too.
"""


class Kind(NamedTuple):
    """A kind of pictures that are not read.

    Attributes:
        name: Name of the format.
        extensions: Extensions of its files, in lower case.
        way: How to convert the pictures; ``{}`` stands for the extension.
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
"""Pictures that people have, and that Pillow does not read or is not asked to read."""


def extension_of(path: str) -> str:
    """Return a file's extension in lower case with its dot, or ``no extension``."""
    # The path stays a text: as a Path it takes ten times as long, for every file.
    extension = os.path.splitext(path)[1].lower()  # noqa: PTH122
    if extension == ".gz" and path.lower().endswith(_NIFTI_PACKED):
        return _NIFTI_PACKED
    return extension or NO_EXTENSION


def is_utf8(path: str) -> bool:
    """Whether a name can be written into a text: Linux takes any bytes for a name."""
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
        ignored: Number of files and folders that were passed over, by extension or by what they
            are.
        warnings: Warnings about links that were not followed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ignored: Counter[str] = Counter()
        self.warnings: list[str] = []
        self._real_root = os.path.realpath(root)
        self._counted: set[str] = set()

    def folders(self, folder: str) -> list[str]:
        """Return the names of a folder's subfolders, sorted.

        `folder` is relative to the root; it is empty for the root itself.
        """
        way = [self._resolve(folder)]
        return sorted(
            entry.name
            for entry in self._list_entries(folder)
            if entry.is_dir() and self._enter(_joined(folder, entry.name), entry, way)
        )

    def files(self, folder: str) -> list[str]:
        """Return the names of the files that lie in a folder itself, sorted."""
        return sorted(entry.name for entry in self._list_entries(folder) if not entry.is_dir())

    def below(self, folder: str) -> list[str]:
        """Return all files below a folder, images or not, as paths relative to the root, sorted."""
        return sorted(self._walk(folder, [self._resolve(folder)]))

    def only_images(self, paths: Iterable[str]) -> list[str]:
        """Return the images among files; the other files are counted."""
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

    def _resolve(self, folder: str) -> str:
        return os.path.realpath(self._path(folder))

    def _list_entries(self, folder: str) -> Iterator[os.DirEntry[str]]:
        """Yield what stands in a folder.

        What systems and programs have left there is passed over, and counted once.
        """
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
            folder: Path of the folder, relative to the root.
            way: The real paths of the folders that lead to the folder, and its own as the last one.
            is_linked: Whether one of these folders was a link. Links in the folder are then not
                followed: through a dozen folders that are linked with one another lead more ways
                than anybody can wait for.
        """
        for entry in self._list_entries(folder):
            path = _joined(folder, entry.name)
            if not entry.is_dir():
                # Something else may have the name of a file; reading it shows that.
                yield path
            elif is_linked and entry.is_symlink():
                self.ignored["link in a linked folder"] += 1
            else:
                real = self._enter(path, entry, way)
                if real:
                    yield from self._walk(path, [*way, real], is_linked or entry.is_symlink())

    def _enter(self, path: str, entry: os.DirEntry[str], way: Sequence[str]) -> str:
        """Return the real path of a folder that may be listed.

        It is empty if the folder may not be listed: it is a link that leads out of the root, or
        back to where it stands.
        """
        if not entry.is_symlink():
            real = f"{way[-1].rstrip(os.sep)}{os.sep}{entry.name}"
            return "" if real in way else real
        real = self._resolve(path)
        if real == self._real_root:
            self._warn_of_link(path, f"leads to {real} itself")
        elif not real.startswith(f"{self._real_root.rstrip(os.sep)}{os.sep}"):
            self._warn_of_link(path, f"leads to {real}, which is not below {self._real_root}")
        elif any(_is_within(one, real) for one in way):
            self._warn_of_link(path, "leads back to a folder that it stands in")
        else:
            return real
        return ""

    def _warn_of_link(self, path: str, problem: str) -> None:
        line = f"link {path!r} {problem}: it is not followed"
        if line not in self.warnings:
            self.warnings.append(line)
            self.ignored["link"] += 1


def _joined(folder: str, name: str) -> str:
    return f"{folder}{os.sep}{name}" if folder else name


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}{os.sep}")


def unread_warnings(labelled: Iterable[tuple[str, str]]) -> list[str]:
    """Return warnings about pictures whose format is not read, one for each format.

    Args:
        labelled: Label and path of all files of class folders, images or not; the label is empty if
            there are no classes.
    """
    of_extension: dict[str, Kind] = {}
    for kind in UNREAD:
        of_extension |= dict.fromkeys(kind.extensions, kind)
    pictures: Counter[str] = Counter()
    unread: defaultdict[Kind, Counter[str]] = defaultdict(Counter)
    extensions: defaultdict[Kind, Counter[str]] = defaultdict(Counter)
    for label, path in labelled:
        extension = extension_of(path)
        if extension in of_extension:
            kind = of_extension[extension]
            unread[kind][label] += 1
            extensions[kind][_written_extension(path, extension)] += 1
        elif extension not in EXTENSIONS:
            continue
        pictures[label] += 1
    return [
        _describe_unread(kind, list(extensions[kind]), counts, pictures)
        for kind, counts in unread.items()
    ]


def _written_extension(path: str, extension: str) -> str:
    """Return an extension as it is written, for a pattern that a person copies from the message.

    The pattern tells .HEIC from .heic.
    """
    if extension in (NO_EXTENSION, _NIFTI_PACKED):
        return extension
    return os.path.splitext(path)[1]  # noqa: PTH122


def _describe_unread(
    kind: Kind, extensions: list[str], counts: Counter[str], pictures: Counter[str]
) -> str:
    """Return a warning about the pictures of a kind.

    Args:
        kind: The kind of the pictures.
        extensions: Their extensions, as they are written.
        counts: Number of these pictures by label.
        pictures: Number of all pictures by label.
    """
    count = sum(counts.values())
    files = "file" if count == 1 else "files"
    verb = "is" if count == 1 else "are"
    what = f"{kind.name} {files} ({', '.join(extensions)})"
    if kind.extensions == (NO_EXTENSION,):
        what = f"{files} without extension"
    shares = _list_shares(counts, pictures)
    return f"{count} {what} {verb} not read: {shares} of all; {kind.way.format(extensions[0])}"


def _list_shares(counts: Counter[str], pictures: Counter[str]) -> str:
    """Return how much of each label's pictures the counted ones are, the largest share first."""
    of_label = {label: count / pictures[label] for label, count in counts.items()}
    shares = []
    for label, share in sorted(of_label.items(), key=lambda one: (-one[1], one[0])):
        shares.append(f"{label!r} {share:.0%}" if label else f"{share:.0%}")
    listed = ", ".join(shares[:10])
    if len(shares) > 10:
        listed += f" and {len(shares) - 10} more classes"
    return listed
