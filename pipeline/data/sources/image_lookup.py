"""Images that a table names, below one folder."""

from __future__ import annotations

import os
import unicodedata
from functools import cached_property
from pathlib import Path

from pipeline.data.decode import EXTENSIONS

LONGEST = 4096
"""Characters of a path, as Linux has it; one of thousands of folders would take long to be found missing."""


class WrongRow(Exception):
    """What is wrong with a row of a table."""


class Images:
    """Finds images below a folder by name, each folder on the way listed once: a look per image takes long for large sets.

    Args:
        root: Links resolved.
        given: The same folder as the user has named it, for names that begin with it.
    """

    def __init__(self, root: Path, given: Path | None = None) -> None:
        self.root = root
        self._begins = [f"{place.as_posix().rstrip('/')}/" for place in (root, given or root)]
        self._folders = {"": _Folder(root, "", is_inside=True)}

    def find(self, name: str) -> str:
        """Return an image's path below the root, with the extension of its file where there is one.

        A name is taken as it is written, else with slashes for backslashes; in another Unicode form than the file's it is that file.

        Raises:
            WrongRow: It is no name of an image below the root.
        """
        if len(name) > LONGEST:
            raise WrongRow(
                f"{name[:40]!r}… has {len(name)} characters, and no path more than {LONGEST}"
            )
        below = next(
            (name.removeprefix(begin) for begin in self._begins if name.startswith(begin)), name
        )
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
        """Return an image's path; `name` is how it was written, for messages."""
        parent, slash, file_name = below.rpartition("/")
        folder = self._folders.get(parent + slash) or self._open(name, parent + slash)
        if file_name in folder.files:
            return folder.prefix + file_name
        if file_name == "..":
            raise WrongRow(f"{name!r} is not a path below {self.root}")
        if file_name in ("", "."):
            raise WrongRow(f"{name!r} names a folder, not an image" if name else "empty image name")
        found = folder.find(file_name)
        if not folder.keeps_inside(found):
            raise WrongRow(f"{name!r} leads out of {self.root} by a symbolic link")
        return folder.prefix + found

    def found(self, name: str) -> str:
        """Return the same, or the name itself where `find` would refuse it."""
        try:
            return self.find(name)
        except WrongRow:
            return name

    def _open(self, name: str, relative: str) -> _Folder:
        """List a folder; `relative` ends with a slash."""
        parts = relative.split("/")[:-1]
        if not parts[0] or ".." in parts:
            raise WrongRow(f"{name!r} is not a path below {self.root}")
        folder = self._folders[""]
        for part in parts:
            if part not in ("", "."):
                there = folder.named(part)
                prefix = f"{folder.prefix}{there}/"
                if prefix not in self._folders:
                    self._folders[prefix] = _Folder(self.root, prefix, folder.keeps_inside(there))
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
            try:
                with os.scandir(f"{root}/{prefix}") as entries:
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
                # It may be searched, yet not listed.
                self._is_listed = False

    def keeps_inside(self, name: str) -> bool:
        """Whether what has this name in here is below the root too, wherever links lead."""
        if not self._is_inside or (self._is_listed and name not in self._links):
            return self._is_inside
        return Path(os.path.realpath(f"{self._root}/{self.prefix}{name}")).is_relative_to(
            self._root
        )

    def named(self, name: str) -> str:
        """Return the name of a folder in here, which may be written in another Unicode form; itself where there is none."""
        if name in self._folders or name in self._links:
            return name
        alike = [
            other for other in (*self._folders, *self._links) if composed(other) == composed(name)
        ]
        return alike[0] if len(alike) == 1 else name

    def find(self, name: str) -> str:
        """Return the name of the file that `name` means with or without extension; itself where there is none."""
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
        """The file of each name, in one Unicode form, without extension or with it; or the files where there are several."""
        found: dict[str, str | list[str]] = {}
        for name in (*self.files, *self._links):
            stem, dot, extension = name.rpartition(".")
            for key in (
                composed(name),
                *([composed(stem)] if dot + extension.lower() in EXTENSIONS else []),
            ):
                other = found.setdefault(key, name)
                if other is not name:
                    found[key] = [*([other] if isinstance(other, str) else other), name]
        return found


def composed(text: str) -> str:
    """Return a text in the one of its Unicode forms in which accents and letters are one character."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)
