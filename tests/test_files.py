"""Whole files, locks beside what they protect, and paths from names that were read back."""

from __future__ import annotations

import errno
import sqlite3
import stat
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.errors import InUse, UserError
from pipeline.files import (
    child_path,
    lock,
    new_file,
    out_of_room,
    remove_child,
    remove_partial,
    unwritable,
    unwritable_file,
    write_whole,
)
from tests.conftest import run_unprivileged, start, wait_for


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_written_whole(tmp_path: Path, durable: bool) -> None:
    file = tmp_path / "a file.txt"
    write_whole(file, "é", durable)
    assert file.read_bytes() == "é".encode()
    write_whole(file, b"\0\1", durable)
    assert file.read_bytes() == b"\0\1"
    assert list(tmp_path.iterdir()) == [file]


def test_what_was_there_stays_where_writing_fails(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("before")
    with pytest.raises(ZeroDivisionError), new_file(file) as partial:
        partial.write_text("half")
        _ = 1 / 0
    assert file.read_text() == "before" and list(tmp_path.iterdir()) == [file]


def test_two_writers_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    contents = [bytes([number]) * 200_000 for number in range(8)]
    threads = [
        threading.Thread(target=write_whole, args=(file, content))
        for content in contents
        for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert file.read_bytes() in contents and list(tmp_path.iterdir()) == [file]


def test_a_long_name_can_be_written(tmp_path: Path) -> None:
    write_whole(tmp_path / ("字" * 80), "x")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("字" * 80, "x")]


def test_a_killed_writer_leaves_what_was_there_and_its_part_can_be_removed(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("before")
    script = (
        "import sys, time; from pathlib import Path; from pipeline.files import new_file\n"
        "with new_file(Path('file')) as partial:\n"
        "    partial.write_text('half'); print('written'); time.sleep(60)"
    )
    process = start([sys.executable, "-c", script], tmp_path)
    wait_for(process, "written")
    process.kill()
    process.communicate()
    assert file.read_text() == "before" and len(list(tmp_path.iterdir())) == 2
    remove_partial(tmp_path)
    assert list(tmp_path.iterdir()) == [file]


def test_a_lock_is_one_process_at_a_time_and_leaves_nothing(tmp_path: Path) -> None:
    script = (
        "import time; from pathlib import Path; from pipeline.files import lock\n"
        "with lock(Path('data'), 'in use'):\n    print('held'); time.sleep(60)"
    )
    process = start([sys.executable, "-c", script], tmp_path)
    wait_for(process, "held")
    assert stat.S_IMODE((tmp_path / ".data.lock").stat().st_mode) == 0o666
    with pytest.raises(InUse, match="in use"), lock(tmp_path / "data", "in use"):
        pass
    process.kill()
    process.communicate()
    with lock(tmp_path / "data", "in use"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_who_waits_for_a_lock_gets_it_alone(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        for _ in range(20):
            with lock(tmp_path / "data"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.001)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(most), max(most)) == (80, 1)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_lock_that_was_taken_from_a_process_stays_with_who_has_it(tmp_path: Path) -> None:
    with lock(tmp_path / "data", "in use"):
        taken = lock(tmp_path / "data", "in use", breaks=True)
        taken.__enter__()
    # The first one has left its block, and the lock is the second one's.
    with pytest.raises(InUse, match="in use"), lock(tmp_path / "data", "in use"):
        pass
    taken.__exit__(None, None, None)
    with lock(tmp_path / "data", "in use"):
        pass


def test_a_lock_follows_no_link(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("kept")
    (tmp_path / ".data.lock").symlink_to(target)
    with pytest.raises(OSError), lock(tmp_path / "data", "in use"):
        pass
    assert target.read_text() == "kept"


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/etc", "a\\b", "x\0y", "x/"])
def test_a_name_that_leads_elsewhere_is_no_child(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="is no name of a file"):
        child_path(tmp_path, name)
    with pytest.raises(UserError):
        remove_child(tmp_path, name)
    assert tmp_path.is_dir()


@pytest.mark.parametrize("name", ["a", "a b", "...", "..a", "字", "x~2"])
def test_a_plain_name_is_a_child(tmp_path: Path, name: str) -> None:
    assert child_path(tmp_path, name) == tmp_path / name


def test_a_child_is_removed_with_all_it_holds(tmp_path: Path) -> None:
    (tmp_path / "folder" / "uid" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "other").mkdir()
    remove_child(tmp_path / "folder", "uid")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["other"]
    remove_child(tmp_path / "folder", "uid")


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_is_not_removed_through(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "uid").symlink_to(precious)
    with pytest.raises(UserError, match="is a link"):
        remove_child(tmp_path / "folder", "uid")
    assert precious.is_dir()


def test_what_can_be_written_to_is_found_out_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert unwritable(tmp_path) == unwritable(tmp_path / "a" / "b" / "c") == ""
    assert unwritable_file(tmp_path / "file") == unwritable_file(tmp_path / "other") == ""
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_below_a_file_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert (
        unwritable(tmp_path / "file" / "folder")
        == unwritable(tmp_path / "file")
        == "Not a directory"
    )
    assert unwritable_file(tmp_path) == "it is no file"


def test_a_folder_and_a_file_that_may_not_be_written_to_are_found_out(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "folder").chmod(0o555)
    (tmp_path / "file").chmod(0o444)
    asked = "from pathlib import Path; from pipeline.files import unwritable, unwritable_file\n"
    asked += (
        "print([unwritable(Path(name)) for name in ('folder', 'folder/new', '.')], "
        "unwritable_file(Path('file')))"
    )
    done = run_unprivileged([sys.executable, "-c", asked], tmp_path)
    assert done.stdout.strip() == "['Permission denied', 'Permission denied', ''] it is read-only"


@pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="this system has no device that is always full"
)
def test_a_full_disk_is_told() -> None:
    with pytest.raises(OSError) as told, Path("/dev/full").open("wb", buffering=0) as full:
        full.write(b"x")
    assert out_of_room(told.value) == "No space left on device"
    wrapped = RuntimeError("the run cannot be written")
    wrapped.__cause__ = told.value
    assert out_of_room(wrapped) == "No space left on device"


def test_a_database_that_cannot_grow_or_be_written_to_is_told(tmp_path: Path) -> None:
    file = tmp_path / "some.db"
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE t (x)")
    connection.execute("PRAGMA max_page_count = 2")
    with pytest.raises(sqlite3.OperationalError) as told:
        connection.execute("INSERT INTO t VALUES (zeroblob(100000))")
    assert out_of_room(told.value) == "a local database: database or disk is full"
    connection.close()
    with pytest.raises(sqlite3.OperationalError) as told:
        sqlite3.connect(f"file:{file}?mode=ro", uri=True).execute("INSERT INTO t VALUES (1)")
    assert out_of_room(told.value) == "a local database: attempt to write a readonly database"


@pytest.mark.parametrize(
    "error",
    [
        None,
        OSError(errno.ENOENT, "No such file", "x"),
        PermissionError(errno.EACCES, "denied"),
        ValueError("(os error 2)"),
    ],
)
def test_other_errors_are_not_taken_for_a_full_disk(error: BaseException | None) -> None:
    assert out_of_room(error) == ""


def test_a_full_disk_is_told_of_libraries_in_rust() -> None:
    text = "Error while serializing: I/O error: No space left on device (os error 28)"
    assert out_of_room(Exception(text)) == text
