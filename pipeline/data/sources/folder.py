"""One folder per class, or train, val and test above the class folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath

from pipeline.data.decode import EXTENSIONS
from pipeline.data.sources.source import SPLIT_NAMES, Files, Item, Source
from pipeline.errors import UserError, nearest


def open_folder(path: str) -> Source:
    """List the images below a folder.

    Raises:
        UserError: The folder is missing, holds no images in class folders, or has class folders beside ``train``.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        siblings = [str(other) for other in root.parent.glob("*") if other.is_dir()] if root.parent.is_dir() else []
        raise UserError(f"data.source: folder {path!r} does not exist{nearest(str(root), siblings)}")
    folders = _subfolders(root)
    split_folders = [folder for folder in folders if folder.lower() in SPLIT_NAMES]
    ignored: Counter[str] = Counter()
    if any(SPLIT_NAMES[folder.lower()] == "train" and _subfolders(root / folder) for folder in split_folders):
        others = [folder for folder in folders if folder not in split_folders]
        if others:
            raise UserError(f"data.source: {path!r} has class folders beside its train folder; move them into it, or rename train", others)
        items = [item for folder in split_folders for item in _classes(root, folder, SPLIT_NAMES[folder.lower()], ignored)]
    else:
        items = _classes(root, "", "", ignored)
    unnameable = [repr(item.path) for item in items if not _is_utf8(item.path)]
    if unnameable:
        raise UserError(f"data.source: {len(unnameable)} file names are not UTF-8; rename them", unnameable)
    if not items:
        raise UserError(
            f"data.source: folder {path!r} has no images in class folders; "
            f"expected {path}/CLASS/IMAGE with one of {', '.join(sorted(EXTENSIONS))}"
        )
    return Source(str(root.resolve()), Files(root.resolve()), items, dict(ignored))


def _classes(root: Path, folder: str, split: str, ignored: Counter[str]) -> list[Item]:
    items = []
    for label in _subfolders(root / folder):
        for path in sorted(_files(root / folder / label, str(Path(folder, label)))):
            extension = PurePath(path).suffix.lower()
            if extension in EXTENSIONS:
                items.append(Item(path, label, split))
            else:
                ignored[extension or "no extension"] += 1
    return items


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
