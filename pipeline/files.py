"""Files that are written whole or not at all, locks, and paths made of recorded names."""

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
    """Yield the path of a new file, which replaces `file` when the block ends without an error.

    A reader sees the old file or the new one, and never a part. Two writers at once do not disturb
    each other.

    Args:
        file: The file that is written. Its folder must exist.
        durable: Wait until the new file is on the disk, so that a power cut leaves the old file or
            the new one as well.

    Raises:
        OSError: The file cannot be written. The old file is still there.
    """
    partial = file.with_name(f".{file.name[:60]}-{uuid.uuid4().hex[:8]}{_PARTIAL}")
    try:
        yield partial
        if durable:
            with partial.open("rb+") as opened:
                os.fsync(opened.fileno())
        partial.replace(file)
        if durable:
            sync_folder(file.parent)
    finally:
        partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
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


def link_or_copy(file: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system has no such links."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


def read_regular(file: Path | str, most_bytes: int) -> bytes:
    """Return what a file holds, links followed.

    Raises:
        OSError: The file cannot be read, does not end (a pipe, a device), or is too large.
    """
    # Without O_NONBLOCK, opening a pipe waits until somebody writes to it.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(file, flags)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("is a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file")
        if status.st_size > most_bytes:
            raise OSError(f"{status.st_size} bytes, more than {most_bytes}")
        with os.fdopen(descriptor, "rb", buffering=0, closefd=False) as opened:
            content = opened.read()
            if content is None:
                # The kernel's log is an example: it waits for its next line.
                raise OSError("not a file that ends")
            return content
    finally:
        os.close(descriptor)


def existing_part(path: Path) -> Path:
    """Return a path, or of its parents the nearest one that exists."""
    return next(place for place in (path, *path.parents) if place.exists())


def unwritable(folder: Path) -> str:
    """Return why nothing can be written into a folder, or an empty string if it can.

    A reason is ``Read-only file system``. Writing is tried, with a file that has no name:
    permissions alone do not tell. If the folder does not exist yet, the place where it will stand
    is tried instead, and the folder is not made.
    """
    try:
        with tempfile.TemporaryFile(dir=existing_part(folder)) as probe:
            # A full disk still takes empty files.
            probe.write(b"0")
    except OSError as error:
        return error.strerror or str(error)
    return ""


def unwritable_file(file: Path) -> str:
    """Return why a file cannot be written to in its place, or be made there.

    The text is empty if it can.
    """
    if not file.exists():
        return unwritable(file.parent)
    if not file.is_file():
        return "it is no file"
    # The file is not opened: closing it would release the locks that SQLite holds on it in this
    # process.
    return "" if os.access(file, os.W_OK) else "it is read-only"


def out_of_room(error: BaseException | None) -> str:
    """Return what to tell if an error means that nothing can be written any more.

    The errors that have led to it are looked at too. For other errors the text is empty.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _OUT_OF_ROOM:
            return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
        if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorname.startswith(
            _SQLITE_OUT_OF_ROOM
        ):
            return f"a local database: {error}"
        # Libraries that are written in Rust, safetensors among them, tell it in this way.
        if any(f"(os error {number})" in str(error) for number in _OUT_OF_ROOM):
            return str(error)
        before = error.__cause__
        if before is None and not error.__suppress_context__:
            before = error.__context__
        error = before
    return ""


def remove_partial(folder: Path) -> None:
    """Remove what killed writers have left half written in a folder.

    Nothing may be writing there at this moment.
    """
    for partial in folder.glob(f".*{_PARTIAL}"):
        partial.unlink(missing_ok=True)


def sha256_over(contents: Mapping[str, bytes]) -> str:
    r"""Return 64 hex digits over some files of a folder.

    For one file they are what ``sha256sum FILE`` prints. For several files they are the SHA-256 of
    the sorted lines that ``sha256sum`` prints for them, each ended by a line feed. In a folder that
    holds nothing else this command prints them:
    ``find . -type f -printf '%P\0' | xargs -0 sha256sum | LC_ALL=C sort | sha256sum``.

    Args:
        contents: Contents of the files by path relative to the folder, with ``/``.
    """
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    lines = sorted(f"{digest}  {name}\n" for name, digest in hashes.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@contextmanager
def lock(what: Path, refusal: str = "", breaks: bool = False) -> Iterator[None]:
    """Take the lock beside a file or folder: ``.NAME.lock``.

    The operating system releases the lock when the process ends. A link in the lock's place is not
    followed. Users who share the folder share the lock. It is removed when the block ends.

    Args:
        what: The file or folder that is protected. It need not exist; its folder must.
        refusal: Message of the error if another process has the lock. Empty means to wait for it.
        breaks: Take the lock from a process that has it, and that is known to be stopped for good.

    Raises:
        InUse: Another process has the lock.
        OSError: The folder cannot be written to.
    """
    file = what.with_name(f".{what.name}.lock")
    if breaks:
        file.unlink(missing_ok=True)
    # Another thread may release it.
    lock = FileLock(file, mode=0o666, thread_local=False)
    try:
        lock.acquire(timeout=0 if refusal else -1)
    except Timeout:
        raise InUse(refusal) from None
    own = file.stat().st_ino
    try:
        yield
    finally:
        # A process that waits sees that the file it waits for is gone, and takes the lock on a new
        # one. Windows does not remove a file that is open.
        with suppress(OSError):
            # It is another's if the lock was taken from this process.
            if file.stat().st_ino == own:
                file.unlink()
        lock.release()


def child_path(folder: Path, name: str) -> Path:
    """Return the path of a direct child of a folder, made of a name that was read back.

    The name comes from a tag, an artifact or a list.

    Raises:
        UserError: The name leads elsewhere, or is not the name of a file.
    """
    is_special = name in ("", ".", "..") or any(character in name for character in "/\\\0")
    if is_special or Path(name).is_absolute() or Path(name).drive:
        raise UserError(
            f"{name!r} is no name of a file in {folder}; a name without / and \\ is needed"
        )
    return folder / name


def remove_child(folder: Path, name: str) -> None:
    """Remove a direct child of a folder with all that it holds.

    It is no error if the child does not exist. A link is not followed.

    Raises:
        UserError: `child_path` refuses the name, or the child is a link or leads out of the folder.
    """
    path = child_path(folder, name)
    if path.is_symlink() or path.resolve().parent != folder.resolve():
        raise UserError(
            f"{path} is a link; only a folder that stands in {folder} itself is removed"
        )
    if path.is_dir():
        shutil.rmtree(path)
