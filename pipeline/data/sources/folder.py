"""One folder per class, or train, val and test above the class folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from pipeline.data.decode import EXTENSIONS
from pipeline.data.sources.source import SPLIT_NAMES, Files, Item, Source
from pipeline.errors import UserError, nearest


def open_folder(path: str) -> Source:
    """List the images below a folder.

    Raises:
        UserError: The folder is missing or cannot be read, holds no images in class folders, or has class folders beside ``train``.
    """
    root = Path(path).expanduser()
    try:
        return _open(path, root)
    except OSError as error:
        raise UserError(f"data.source: folder {str(error.filename)!r} cannot be read: {error.strerror}") from error


def _open(path: str, root: Path) -> Source:
    if not root.is_dir():
        siblings = [str(other) for other in root.parent.glob("*") if other.is_dir()] if root.parent.is_dir() else []
        raise UserError(f"data.source: folder {path!r} does not exist{nearest(str(root), siblings)}")
    folders = _subfolders(root)
    split_folders = [folder for folder in folders if folder.lower() in SPLIT_NAMES]
    listing = _Listing(root)
    if any(SPLIT_NAMES[folder.lower()] == "train" and _subfolders(root / folder) for folder in split_folders):
        others = [folder for folder in folders if folder not in split_folders]
        if others:
            raise UserError(f"data.source: {path!r} has class folders beside its train folder; move them into it, or rename train", others)
        listing.pass_over_strays("")
        for folder in split_folders:
            listing.add_classes(folder, SPLIT_NAMES[folder.lower()])
    else:
        listing.add_classes("", "")
    unnameable = [repr(item.path) for item in listing.items if not _is_utf8(item.path)]
    if unnameable:
        raise UserError(f"data.source: {len(unnameable)} file names are not UTF-8; rename them", unnameable)
    if not listing.items:
        raise UserError(
            f"data.source: folder {path!r} has no images in class folders; "
            f"expected {path}/CLASS/IMAGE with one of {', '.join(sorted(EXTENSIONS))}"
        )
    return Source(str(root.resolve()), Files(root.resolve()), listing.items, dict(listing.ignored), listing.warnings)


@dataclass
class _Listing:
    """What has been found below a root."""

    root: Path
    items: list[Item] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)

    def add_classes(self, folder: str, split: str) -> None:
        for label in _subfolders(self.root / folder):
            before = len(self.items)
            for path in sorted(_files(self.root / folder / label, str(Path(folder, label)))):
                extension = PurePath(path).suffix.lower()
                if extension in EXTENSIONS:
                    self.items.append(Item(path, label, split))
                else:
                    self.ignored[extension or "no extension"] += 1
            if len(self.items) == before:
                self.warnings.append(f"class folder {str(Path(folder, label))!r} has no images")
        self.pass_over_strays(folder)

    def pass_over_strays(self, folder: str) -> None:
        """Count the pictures that lie beside the class folders; other files there (a README, a list) are nobody's loss."""
        names = sorted(child.name for child in (self.root / folder).iterdir() if not child.name.startswith(".") and not child.is_dir())
        strays = [name for name in names if PurePath(name).suffix.lower() in EXTENSIONS]
        self.ignored.update(PurePath(name).suffix.lower() for name in strays)
        if strays:
            first = str(Path(folder, strays[0]))
            lie = "image lies" if len(strays) == 1 else "images lie"
            self.warnings.append(
                f"{len(strays)} {lie} in no class folder, and cannot be used: {first!r}{' and others' * (len(strays) > 1)}"
            )


def _files(folder: Path, prefix: str) -> Iterator[str]:
    """Yield files below a folder as paths that begin with `prefix`; much faster than ``rglob``, which counts for large sets."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = f"{prefix}{os.sep}{entry.name}"
            if entry.is_dir():
                if not entry.is_symlink():
                    yield from _files(folder / entry.name, path)
            elif entry.is_file() or entry.is_symlink():
                # A link that leads nowhere is one of the images that cannot be read.
                yield path


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _subfolders(folder: Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
