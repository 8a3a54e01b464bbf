"""The journal of one run: what it has logged, on disk until the tracking server has all of it.

It is a folder, ``journal/EXPERIMENT/UID/``, with these parts:

- ``entries.jsonl``: one entry a line (see `pipeline.tracking.entries`), the oldest first. A line
  without an end, or one that is no JSON, has been torn by a kill; it and what follows is no entry.
- ``files/OFFSET/``: the files of the entry that begins at that byte
- ``sent.json``: how far the server has it (`Sent`)
- ``heartbeat``: when the process was alive last, and which one it is

An entry is on the disk, with its files, when `append` returns.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import UserError
from pipeline.files import sync_folder, write_whole
from pipeline.tracking.entries import Entry
from pipeline.tracking.heartbeat import Beat

_ENTRIES = "entries.jsonl"
_FILES = "files"
_SENT = "sent.json"
_HEARTBEAT = "heartbeat"
_LAST = ("end", "leave")
MAY_LINK = "may_link"
"""Key of an entry whose files are only ever replaced, and never written to: a link keeps them."""


@dataclass
class Sent:
    """How far the server has a journal.

    Attributes:
        run_id: Id of the run, or empty if the server has not made it yet.
        offset: Byte up to which the entries are sent.
        attempts: How often making the run was tried.
        refused: The entries that the server has refused, each with the reason.
    """

    run_id: str = ""
    offset: int = 0
    attempts: int = 0
    refused: list[dict[str, Any]] = field(default_factory=list)


class Placed(NamedTuple):
    """An entry of a journal, and the byte at which the next one begins."""

    entry: Entry
    end: int


class Journal:
    """A journal that is written and read; only one process at a time may do so.

    Args:
        folder: The journal's folder, which is made if it is missing. Its name is the run's uid.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uid = folder.name
        self._lock = threading.Lock()
        (folder / _FILES).mkdir(parents=True, exist_ok=True)
        sync_folder(folder.parent)
        self.sent = self._load_sent()
        self.first: Entry = {}
        self._last_kind = ""
        self.size = 0
        for placed in self._read(0):
            self.first = self.first or placed.entry
            self._last_kind = placed.entry["kind"]
            self.size = placed.end
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        self._file = os.open(folder / _ENTRIES, flags, 0o666)
        os.ftruncate(self._file, self.size)
        sync_folder(folder)

    @property
    def is_ended(self) -> bool:
        """Whether the run has written its last entry."""
        return self._last_kind in _LAST

    @property
    def is_sent(self) -> bool:
        """Whether the server was given all entries that are there."""
        return self.sent.offset >= self.size

    def append(self, entry: Entry, contents: Mapping[str, Path] | None = None) -> None:
        """Add an entry with copies of its files, and wait until they are on the disk.

        Raises:
            OSError: The disk is full. The journal is as it was before.
        """
        with self._lock:
            if contents:
                entry = {**entry, "contents": self._keep(entry, contents)}
            line = json.dumps(entry).encode() + b"\n"
            try:
                rest = memoryview(line)
                while rest:
                    rest = rest[os.write(self._file, rest) :]
                os.fsync(self._file)
            except OSError as error:
                os.ftruncate(self._file, self.size)
                error.filename = str(self.folder / _ENTRIES)
                raise
            self.size += len(line)
            self.first = self.first or entry
            self._last_kind = entry["kind"]

    def _keep(self, entry: Entry, contents: Mapping[str, Path]) -> dict[str, str]:
        """Keep files, by links where that is safe; return their paths in the journal by name."""
        folder = self.folder / _FILES / str(self.size)
        # An entry that did not fit on the disk may have left files there.
        shutil.rmtree(folder, ignore_errors=True)
        kept = {}
        try:
            folder.mkdir(parents=True)
            for name, file in contents.items():
                target = folder / file.name
                if not (entry.get(MAY_LINK) and _has_linked(file, target)):
                    shutil.copyfile(file, target)
                    with target.open("rb+") as copied:
                        os.fsync(copied.fileno())
                kept[name] = str(target.relative_to(self.folder))
            sync_folder(folder)
            sync_folder(folder.parent)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return kept

    def contents_of(self, entry: Entry) -> dict[str, Path]:
        """Return the files of an entry by name."""
        return {name: self.folder / path for name, path in entry.get("contents", {}).items()}

    def read_unsent(self) -> Iterator[Placed]:
        """Yield the entries that are not sent, the oldest first."""
        return self._read(self.sent.offset)

    def _read(self, offset: int) -> Iterator[Placed]:
        with suppress(FileNotFoundError), (self.folder / _ENTRIES).open("rb") as file:
            file.seek(offset)
            for line in file:
                offset += len(line)
                entry = _parse(line)
                if entry is None:
                    return
                yield Placed(entry, offset)

    def mark(self, sent: Sent) -> None:
        """Note how far the server has the journal, and remove files that are no longer needed.

        If the disk is full, only this process knows it; what is sent again has no effect.
        """
        done = self.sent.offset
        self.sent = sent
        with suppress(OSError):
            write_whole(self.folder / _SENT, json.dumps(asdict(sent)))
        needed = set()
        for refused in sent.refused:
            for path in refused["entry"].get("contents", {}).values():
                needed.add(Path(path).parent.name)
        for folder in (self.folder / _FILES).iterdir():
            is_sent = folder.name.isdecimal() and done <= int(folder.name) < sent.offset
            if is_sent and folder.name not in needed:
                shutil.rmtree(folder, ignore_errors=True)

    def _load_sent(self) -> Sent:
        try:
            return Sent(**json.loads((self.folder / _SENT).read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return Sent()

    def beat(self) -> None:
        """Note that this process is alive."""
        with suppress(OSError):
            write_whole(self.folder / _HEARTBEAT, str(Beat.now()))

    def last_beat(self) -> Beat | None:
        """Return which process was alive last, and when; None if that was not noted."""
        with suppress(OSError, UnicodeDecodeError):
            return Beat.parse((self.folder / _HEARTBEAT).read_text(encoding="utf-8"))
        return None

    def close(self) -> None:
        """Close the file of the entries."""
        os.close(self._file)

    def remove(self) -> None:
        """Close the journal, and remove it."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def open_journal(root: Path, uid: str) -> Journal:
    """Open the journal of a run among those of an experiment, and make it if it is missing.

    Raises:
        UserError: There is a link in its place.
    """
    folder = root / uid
    if folder.is_symlink():
        raise UserError(f"{folder} is a link; a journal is a folder that stands there itself")
    return Journal(folder)


def _has_linked(file: Path, target: Path) -> bool:
    """Link a file; return whether the file system allows it."""
    try:
        os.link(file, target)
    except OSError:
        return False
    return True


def _parse(line: bytes) -> Entry | None:
    """Return the entry of a line, or None if the line is torn."""
    try:
        entry = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and "kind" in entry else None
