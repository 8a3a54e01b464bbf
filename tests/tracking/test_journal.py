"""The journal of a run on disk: what is read back after a kill, and on a full disk."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.files import out_of_room
from pipeline.tracking.journal import MAY_LINK, Journal
from pipeline.tracking.tracked_run import new_uid

TAGS = {"kind": "tags", "values": {"a": "1"}}
END = {"kind": "end", "status": "FINISHED", "end_time": 1}


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal" / "quick" / new_uid())


def unsent(journal: Journal) -> list[object]:
    return [placed.entry for placed in journal.read_unsent()]


def test_what_was_logged_is_read_back_in_order_up_to_where_it_is_sent(journal: Journal) -> None:
    metrics = {"kind": "metrics", "values": [["loss", float("nan"), 7, 1], ["x", 0.1 + 0.2, 7, 1]]}
    journal.append(TAGS)
    journal.append(metrics)
    journal.append(END)
    assert str(unsent(journal)) == str([TAGS, metrics, END])
    first = next(journal.read_unsent())
    journal.mark(replace(journal.sent, offset=first.end, run_id="r"))
    journal.close()
    again = Journal(journal.folder)
    assert (again.sent.run_id, again.first, again.is_ended, again.is_sent) == (
        "r",
        TAGS,
        True,
        False,
    )
    assert len(unsent(again)) == 2


@pytest.mark.parametrize(
    "torn", [b'{"kind": "tags", "val', b'{"kind": "tags"}', b"\0\0\0\n", b"7\n"]
)
def test_a_line_that_a_kill_has_torn_is_no_entry(journal: Journal, torn: bytes) -> None:
    journal.append(TAGS)
    journal.close()
    file = journal.folder / "entries.jsonl"
    file.write_bytes(file.read_bytes() + torn)
    again = Journal(journal.folder)
    assert unsent(again) == [TAGS]
    again.append(END)
    assert unsent(again) == [TAGS, END]


def test_a_file_is_kept_as_it_was_though_it_changes_and_goes_when_it_is_sent(
    journal: Journal, tmp_path: Path
) -> None:
    written, replaced = tmp_path / "events", tmp_path / "best.safetensors"
    written.write_text("one")
    replaced.write_text("one")
    entry = {"kind": "file", "path": "events"}
    journal.append(entry, {"file": written})
    journal.append({**entry, MAY_LINK: True}, {"file": replaced})
    with written.open("a") as file:
        file.write(" two")
    replaced.with_name("new").write_text("two")
    replaced.with_name("new").replace(replaced)
    first, second = journal.read_unsent()
    (copy,) = journal.contents_of(first.entry).values()
    (link,) = journal.contents_of(second.entry).values()
    assert (copy.read_text(), copy.name) == ("one", "events")
    assert (link.read_text(), link.name) == ("one", "best.safetensors")
    refused = [{"entry": second.entry, "reason": "too large"}]
    journal.mark(replace(journal.sent, offset=second.end, refused=refused))
    assert not copy.exists() and link.exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_leaves_the_journal_as_it_was(small_disk: Path, tmp_path: Path) -> None:
    journal = Journal(small_disk / "quick" / new_uid())
    journal.append(TAGS)
    large = tmp_path / "large"
    large.write_bytes(bytes(2**21))
    with pytest.raises(OSError) as full:
        journal.append({"kind": "file", "path": "large"}, {"file": large})
    assert out_of_room(full.value)
    fill = small_disk / "fill"
    with pytest.raises(OSError), fill.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with pytest.raises(OSError) as full:
        journal.append({"kind": "tags", "values": {"a": "x" * 8000}})
    assert str(journal.folder) in out_of_room(full.value)
    assert unsent(journal) == [TAGS]
    fill.unlink()
    journal.append(END)
    assert unsent(journal) == [TAGS, END]
