"""Files that are written whole or not at all, locks, and paths made of names that were read back."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sqlite3
import stat
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.errors import InUse, UserError

_PARTIAL = ".partial"
_OUT_OF_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_SQLITE_OUT_OF_ROOM = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN")


@contextmanager
def new_file(file: Path, durable: bool = False) -> Iterator[Path]:
    """Yield the path of a new file, which takes the place of `file` when the block ends without an error.

    A reader sees the old file or the new one, never a part; two writers at once do not disturb each other.

    Args:
        file: To write; its folder must exist.
        durable: Wait until it is on the disk, so that a power cut leaves one of the two as well.

    Raises:
        OSError: It cannot be written; what was there before is there still.
    """
    partial = file.with_name(f".{file.name[:60]}-{uuid.uuid4().hex[:8]}{_PARTIAL}")
    try:
        yield partial
        if durable:
            with partial.open("rb+") as opened:
                os.fsync(opened.fileno())
        partial.replace(file)
        if durable:
            _sync_folder(file.parent)
    finally:
        partial.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(file: Path, content: bytes | str, durable: bool = False) -> None:
    """Write a file whole or not at all, text as UTF-8; see `new_file`."""
    with new_file(file, durable) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def read_regular(file: Path | str, most_bytes: int) -> bytes:
    """Return what a file holds, links followed.

    Raises:
        OSError: It cannot be read, is none that ends (a pipe, a device), or is too large.
    """
    # Opening a pipe waits for who writes to it, unless it is said not to.
    descriptor = os.open(
        file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("is a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file")
        if status.st_size > most_bytes:
            raise OSError(f"{status.st_size} bytes, more than {most_bytes}")
        with os.fdopen(descriptor, "rb", buffering=0, closefd=False) as opened:
            content = opened.read()
            if content is None:
                # As of the kernel's log, which waits for its next line.
                raise OSError("not a file that ends")
            return content
    finally:
        os.close(descriptor)


def unwritable(folder: Path) -> str:
    """Return why nothing can be written into a folder, such as ``Read-only file system``; empty where it can.

    It is tried, with a file that has no name: permissions alone do not tell. Of a folder that is yet to be made, where it will stand
    is looked at; nothing is made.
    """
    try:
        place = next(parent for parent in (folder, *folder.parents) if parent.exists())
        with tempfile.TemporaryFile(dir=place) as probe:
            # A full disk still takes empty files.
            probe.write(b"0")
    except OSError as error:
        return error.strerror or str(error)
    return ""


def unwritable_file(file: Path) -> str:
    """Return why a file cannot be written to in its place; empty where it can, or can be made."""
    if file.exists():
        # Not opened: closing it would release the locks that SQLite holds on it in this process.
        return (
            ""
            if file.is_file() and os.access(file, os.W_OK)
            else "it is read-only"
            if file.is_file()
            else "it is no file"
        )
    return unwritable(file.parent)


def out_of_room(error: BaseException | None) -> str:
    """Return what to tell where an error, or what has led to it, is that nothing can be written any more; empty for another error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _OUT_OF_ROOM:
            return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
        if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorname.startswith(
            _SQLITE_OUT_OF_ROOM
        ):
            return f"a local database: {error}"
        # As libraries written in Rust tell it, safetensors among them.
        if any(f"(os error {number})" in str(error) for number in _OUT_OF_ROOM):
            return str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return ""


def remove_partial(folder: Path) -> None:
    """Remove what writers in a folder have left half written because they were killed; nothing may be writing there."""
    for partial in folder.glob(f".*{_PARTIAL}"):
        partial.unlink(missing_ok=True)


def sha256_over(contents: Mapping[str, bytes]) -> str:
    r"""Return 64 hex digits over some files of a folder.

    Of one file it is what ``sha256sum FILE`` prints. Of several it is the SHA-256 of the sorted lines that ``sha256sum`` prints of
    them, each ended by a line feed; in a folder of nothing else:
    ``find . -type f -printf '%P\0' | xargs -0 sha256sum | LC_ALL=C sort | sha256sum``.

    Args:
        contents: By path relative to the folder, with ``/``.
    """
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    return hashlib.sha256(
        "".join(sorted(f"{digest}  {name}\n" for name, digest in hashes.items())).encode()
    ).hexdigest()


@contextmanager
def lock(what: Path, refusal: str = "") -> Iterator[None]:
    """Take the lock beside a file or folder: ``.NAME.lock``. The operating system releases it when the process ends.

    A link in the lock's place is not followed. Users who share the folder share the lock. It is removed when the block ends.

    Args:
        what: Is protected; it need not exist, its folder must.
        refusal: The message where another process has the lock; empty: wait for it.

    Raises:
        InUse: Another process has it.
        OSError: The folder cannot be written to.
    """
    file = what.with_name(f".{what.name}.lock")
    lock = FileLock(file, mode=0o666)
    try:
        lock.acquire(timeout=0 if refusal else -1)
    except Timeout:
        raise InUse(refusal) from None
    try:
        yield
    finally:
        # Whoever waits sees that the file it waits for is gone, and takes the lock on a new one. Windows keeps what is open.
        with suppress(OSError):
            file.unlink()
        lock.release()


def child_path(folder: Path, name: str) -> Path:
    """Return the path of a direct child of a folder, made of a name that was read back: a tag, an artifact, a member of a list.

    Raises:
        UserError: The name leads elsewhere, or is none.
    """
    if (
        name in ("", ".", "..")
        or any(character in name for character in "/\\\0")
        or Path(name).is_absolute()
        or Path(name).drive
    ):
        raise UserError(
            f"{name!r} is no name of a file in {folder}; a name without / and \\ is needed"
        )
    return folder / name


def remove_child(folder: Path, name: str) -> None:
    """Remove a direct child of a folder with all that it holds; what is not there is no error, and a link is not followed.

    Raises:
        UserError: As `child_path`, or the child is a link or leads out of the folder.
    """
    path = child_path(folder, name)
    if path.is_symlink() or path.resolve().parent != folder.resolve():
        raise UserError(
            f"{path} is a link; only a folder that stands in {folder} itself is removed"
        )
    if path.is_dir():
        shutil.rmtree(path)
