"""Images that a table names, below one folder."""

from __future__ import annotations

import os
import unicodedata
from functools import cached_property
from pathlib import Path

from pipeline.data.decode import EXTENSIONS

LONGEST = 4096
"""Most characters of a path, as Linux has it.

It would take long to find that a path through thousands of folders is missing.
"""


class WrongRow(Exception):
    """A row of a table is wrong; the message says why."""


class Images:
    """Finds images below a folder by name.

    Each folder on the way is listed once: a look at the disk for each image takes long for large
    sets.

    Args:
        root: The folder, with links resolved.
        given: The same folder as the user has named it, for names that begin with it.
    """

    def __init__(self, root: Path, given: Path | None = None) -> None:
        self.root = root
        self._begins = [f"{place.as_posix().rstrip('/')}/" for place in (root, given or root)]
        self._folders = {"": _Folder(root, "", is_inside=True)}

    def find(self, name: str) -> str:
        """Return an image's path below the root, with the extension of its file if there is one.

        A name is taken as it is written, else with slashes for backslashes. A name in another
        Unicode form than the file's means that file.

        Raises:
            WrongRow: This is not the name of an image below the root.
        """
        if len(name) > LONGEST:
            raise WrongRow(
                f"{name[:40]!r}… has {len(name)} characters, and no path more than {LONGEST}"
            )
        below = name
        for begin in self._begins:
            if name.startswith(begin):
                below = name.removeprefix(begin)
                break
        if "\\" not in below:
            return self._find(below, name)
        try:
            found = self._find(below, name)
        except WrongRow:
            return self.find(name.replace("\\", "/"))
        if self._is_there(found):
            return found
        turned = self.find(name.replace("\\", "/"))
        return turned if self._is_there(turned) else found

    def _is_there(self, path: str) -> bool:
        parent, slash, file_name = path.rpartition("/")
        folder = self._folders.get(parent + slash)
        return folder is not None and file_name in folder.files

    def _find(self, below: str, name: str) -> str:
        """Return an image's path; `name` is the name as it was written, for messages."""
        parent, slash, file_name = below.rpartition("/")
        folder = self._folders.get(parent + slash) or self._list_folder(name, parent + slash)
        if file_name in folder.files:
            return folder.prefix + file_name
        if file_name == "..":
            raise WrongRow(f"{name!r} is not a path below {self.root}")
        if file_name in ("", "."):
            raise WrongRow(f"{name!r} names a folder, not an image" if name else "empty image name")
        found = folder.find_file(file_name)
        if not folder.is_inside(found):
            raise WrongRow(f"{name!r} leads out of {self.root} by a symbolic link")
        return folder.prefix + found

    def found(self, name: str) -> str:
        """Return what `find` returns, or the name itself if `find` refuses it."""
        try:
            return self.find(name)
        except WrongRow:
            return name

    def _list_folder(self, name: str, relative: str) -> _Folder:
        """List a folder and those on the way to it; `relative` ends with a slash."""
        parts = relative.split("/")[:-1]
        if not parts[0] or ".." in parts:
            raise WrongRow(f"{name!r} is not a path below {self.root}")
        folder = self._folders[""]
        for part in parts:
            if part not in ("", "."):
                there = folder.find_folder(part)
                prefix = f"{folder.prefix}{there}/"
                if prefix not in self._folders:
                    self._folders[prefix] = _Folder(self.root, prefix, folder.is_inside(there))
                folder = self._folders[prefix]
        self._folders[relative] = folder
        return folder


class _Folder:
    """One folder below the root; `prefix` is empty or ends with a slash."""

    def __init__(self, root: Path, prefix: str, is_inside: bool) -> None:
        self.prefix = prefix
        self.files: set[str] = set()
        self._folders: set[str] = set()
        self._root = root
        self._is_inside = is_inside
        self._links: set[str] = set()
        self._is_listed = True
        if is_inside:
            self._list()

    def _list(self) -> None:
        try:
            with os.scandir(f"{self._root}/{self.prefix}") as entries:
                for entry in entries:
                    if entry.is_symlink():
                        self._links.add(entry.name)
                    elif entry.is_dir():
                        self._folders.add(entry.name)
                    else:
                        self.files.add(entry.name)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError:
            # The folder's files may be opened, but not listed.
            self._is_listed = False

    def is_inside(self, name: str) -> bool:
        """Whether what has this name in the folder is below the root, wherever links lead."""
        if not self._is_inside or (self._is_listed and name not in self._links):
            return self._is_inside
        real = Path(os.path.realpath(f"{self._root}/{self.prefix}{name}"))
        return real.is_relative_to(self._root)

    def find_folder(self, name: str) -> str:
        """Return the name of a folder in this one, as the disk has it.

        `name` may be written in another Unicode form. It is returned itself if there is no folder
        of that name.
        """
        if name in self._folders or name in self._links:
            return name
        alike = [
            other for other in (*self._folders, *self._links) if composed(other) == composed(name)
        ]
        return alike[0] if len(alike) == 1 else name

    def find_file(self, name: str) -> str:
        """Return the name of the file that `name` means, with or without extension.

        `name` is returned itself if there is no file of that name.
        """
        if name in self._links:
            return name
        found = self._by_stem.get(composed(name), name)
        if isinstance(found, list):
            raise WrongRow(
                f"{self.prefix + name!r} may be {' or '.join(sorted(found))}; name the extension"
            )
        return found

    @cached_property
    def _by_stem(self) -> dict[str, str | list[str]]:
        """The file of each name, or a list if there are several.

        Names are in one Unicode form; each file stands there without its extension and with it.
        """
        found: dict[str, str | list[str]] = {}
        for name in (*self.files, *self._links):
            keys = [composed(name)]
            stem, dot, extension = name.rpartition(".")
            if dot + extension.lower() in EXTENSIONS:
                keys.append(composed(stem))
            for key in keys:
                other = found.setdefault(key, name)
                if isinstance(other, list):
                    other.append(name)
                elif other != name:
                    found[key] = [other, name]
        return found


def composed(text: str) -> str:
    """Return a text in the Unicode form in which a letter with its accent is one character."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)
