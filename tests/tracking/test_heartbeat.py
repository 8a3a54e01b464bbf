"""Whether the process of a run lives, as its heartbeat tells."""

from __future__ import annotations

import os
import time

import pytest

from pipeline.tracking.heartbeat import Beat

ENDED = 2**22 + 1
"""Greater than any id of a process."""


def test_a_beat_is_read_as_it_was_written() -> None:
    now = Beat.now()
    read = Beat.parse(str(now))
    assert read is not None and read.lives and read.is_of(os.getpid())
    assert read.process == now.process and read.space == now.space


@pytest.mark.parametrize("text", ["", "host 1 2", "host x 2 3", "host 0 1 2", "host 1 -1 3"])
def test_what_is_no_beat_is_none(text: str) -> None:
    assert Beat.parse(text) is None


def test_a_process_of_this_machine_that_has_ended_is_dead() -> None:
    beat = Beat.now()._replace(process_id=ENDED)
    assert not beat.lives
    # As release 0.1.0 wrote it.
    assert not beat._replace(space="").lives


def test_the_process_of_another_container_lives_as_long_as_it_says_so() -> None:
    there = Beat.now()._replace(process_id=ENDED, space="1")
    assert there.lives and not there._replace(time=time.time() - 61).lives
    assert not there._replace(process_id=os.getpid()).is_of(os.getpid())
