"""Images in one folder per class, or in class folders below train, val and test."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data.decode import EXTENSIONS
from pipeline.data.sources.folder_listing import Listing, extension_of, is_utf8, unread_warnings
from pipeline.data.sources.source import SPLIT_NAMES, Files, Item, Source
from pipeline.errors import UserError, nearest


def open_folder(path: str) -> Source:
    """List the images below a folder.

    Raises:
        UserError: The folder is missing or cannot be read, holds no images in class folders, or has
            class folders beside ``train``.
    """
    root = Path(path).expanduser()
    try:
        return _open(path, root)
    except OSError as error:
        raise UserError(
            f"data.source: folder {str(error.filename)!r} cannot be read: {error.strerror}"
        ) from error


def _open(path: str, root: Path) -> Source:
    if not root.is_dir():
        siblings = []
        if root.parent.is_dir():
            siblings = [str(other) for other in root.parent.glob("*") if other.is_dir()]
        raise UserError(
            f"data.source: folder {path!r} does not exist{nearest(str(root), siblings)}"
        )
    listing = Listing(root)
    found = _Found(listing)
    split_folders = _find_split_folders(path, listing)
    if split_folders:
        found.pass_over_strays("")
        for folder in split_folders:
            found.add_classes(folder, SPLIT_NAMES[folder.lower()])
    else:
        found.add_classes("", "")
    unnameable = [repr(item.path) for item in found.items if not is_utf8(item.path)]
    if unnameable:
        raise UserError(
            f"data.source: {len(unnameable)} file names are not UTF-8; rename them", unnameable
        )
    unread = unread_warnings(found.labelled)
    if not found.items:
        raise UserError(
            f"data.source: folder {path!r} has no images in class folders; "
            f"expected {path}/CLASS/IMAGE with one of {', '.join(sorted(EXTENSIONS))}",
            unread,
        )
    warnings = [*unread, *found.warnings, *listing.warnings]
    root = root.resolve()
    return Source(str(root), Files(root), found.items, dict(listing.ignored), warnings)


def _find_split_folders(path: str, listing: Listing) -> list[str]:
    """Return the folders of the splits; none if the class folders lie in the root itself."""
    folders = listing.folders("")
    split_folders = [folder for folder in folders if folder.lower() in SPLIT_NAMES]
    has_train = any(
        SPLIT_NAMES[folder.lower()] == "train" and listing.folders(folder)
        for folder in split_folders
    )
    if not has_train:
        return []
    others = [folder for folder in folders if folder not in split_folders]
    if others:
        raise UserError(
            f"data.source: {path!r} has class folders beside its train folder; "
            "move them into it, or rename train",
            others,
        )
    return split_folders


@dataclass
class _Found:
    """What has been found below a root.

    Attributes:
        listing: Lists the folders below the root.
        items: All images.
        labelled: Label and path of all files of class folders, images or not.
        warnings: Warnings about class folders, and about images that lie in none.
    """

    listing: Listing
    items: list[Item] = field(default_factory=list)
    labelled: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add_classes(self, folder: str, split: str) -> None:
        for label in self.listing.folders(folder):
            name = str(Path(folder, label))
            files = self.listing.below(name)
            images = self.listing.only_images(files)
            self.labelled += [(label, path) for path in files]
            self.items += [Item(path, label, split) for path in images]
            if not images:
                self.warnings.append(f"class folder {name!r} has no images")
        self.pass_over_strays(folder)

    def pass_over_strays(self, folder: str) -> None:
        """Count the pictures that lie beside the class folders, and warn of them.

        Other files there (a README, a list) are nobody's loss.
        """
        strays = [name for name in self.listing.files(folder) if extension_of(name) in EXTENSIONS]
        self.listing.ignored.update(map(extension_of, strays))
        if not strays:
            return
        lie = "1 image lies"
        names = repr(str(Path(folder, strays[0])))
        if len(strays) > 1:
            lie = f"{len(strays)} images lie"
            names += " and others"
        self.warnings.append(f"{lie} in no class folder, and cannot be used: {names}")
