"""Work beside the training: order, errors, and what need not be done any more."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator

import pytest

from pipeline.background import Background, Task


@pytest.fixture
def background() -> Iterator[Background]:
    made = Background(most_waiting=4)
    yield made
    made.close()


def holding(background: Background) -> threading.Event:
    """Let the thread wait in a task until the event is set."""
    started, go = threading.Event(), threading.Event()

    def wait() -> None:
        started.set()
        assert go.wait(60)

    background.submit(wait)
    assert started.wait(60)
    return go


def appending(done: list[int], number: int) -> Task:
    return lambda: done.append(number)


def test_tasks_are_done_in_order_and_all_before_flush_returns(background: Background) -> None:
    done: list[int] = []
    for number in range(50):
        background.submit(appending(done, number))
    background.flush()
    assert done == list(range(50))


def test_a_waiting_task_of_the_same_name_is_replaced(background: Background) -> None:
    done: list[int] = []
    go = holding(background)
    for number in range(3):
        background.submit(appending(done, number), replaces="weights")
    go.set()
    background.flush()
    assert done == [2]


def test_what_waits_before_another_task_is_not_replaced(background: Background) -> None:
    # The other one may build on it.
    done: list[int] = []
    go = holding(background)
    background.submit(appending(done, 0), replaces="weights")
    background.submit(appending(done, 1))
    background.submit(appending(done, 2), replaces="weights")
    background.submit(appending(done, 3), replaces="figures")
    go.set()
    background.flush()
    assert done == [0, 1, 2, 3]


def test_what_may_be_replaced_is_put_off_until_something_waits_for_it(
    background: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.background._PAUSE", 3600)
    done: list[int] = []
    reached = threading.Event()
    for number in range(4):
        background.submit(appending(done, number), replaces="weights")
        if number == 0:
            background.flush()
    background.submit(reached.set)
    assert reached.wait(60)
    assert done == [0, 3]
    background.submit(appending(done, 4), replaces="weights")
    background.flush()
    assert done == [0, 3, 4]


def test_what_may_be_replaced_is_done_though_nothing_waits_for_it(
    background: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.background._PAUSE", 0.1)
    for _ in range(2):
        done = threading.Event()
        background.submit(done.set, replaces="weights")
        assert done.wait(60)


def test_room_is_made_by_dropping_what_will_be_replaced_and_by_waiting(
    background: Background,
) -> None:
    done: list[int] = []
    go = holding(background)
    background.submit(appending(done, 0))
    background.submit(appending(done, 1), replaces="weights")
    assert background.pending == 3
    room = threading.Thread(target=background.make_room, args=("weights", 1))
    room.start()
    room.join(0.2)
    # The one at work and the other one are not done: too many.
    assert room.is_alive()
    assert background.pending == 2
    go.set()
    room.join(60)
    background.submit(appending(done, 2), replaces="weights")
    background.flush()
    assert (done, background.pending) == ([0, 2], 0)


def test_dropping_what_waits_for_its_turn_does_not_end_the_thread(
    background: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.background._PAUSE", 3600)
    done: list[int] = []
    background.submit(appending(done, 0), replaces="weights")
    background.flush()
    for number in (1, 2):
        background.submit(appending(done, number), replaces="weights")
        background.make_room("weights", 0)
    background.submit(appending(done, 3), replaces="weights")
    background.flush()
    assert done == [0, 3]


def test_room_for_what_follows_an_error_is_refused(background: Background) -> None:
    def fail() -> None:
        raise OSError("no space left")

    go = holding(background)
    background.submit(fail)
    go.set()
    with pytest.raises(OSError, match="no space left"):
        background.make_room("weights", 0)


def test_what_a_failed_task_held_is_released(background: Background) -> None:
    class Large:
        pass

    def failing() -> tuple[Task, weakref.ref[Large]]:
        large = Large()

        def fail() -> None:
            raise OSError(f"no space left for {large}")

        return fail, weakref.ref(large)

    gc.disable()
    try:
        task, large = failing()
        background.submit(task)
        del task
        with pytest.raises(OSError, match="no space left"):
            background.flush()
        background.close()
        assert large() is None
    finally:
        gc.enable()


def test_submit_waits_where_too_many_tasks_do(background: Background) -> None:
    done: list[int] = []
    go = holding(background)
    for number in range(4):
        background.submit(appending(done, number))
    beyond = threading.Thread(target=background.submit, args=(appending(done, 4),))
    beyond.start()
    beyond.join(0.2)
    assert beyond.is_alive()
    go.set()
    beyond.join(60)
    background.flush()
    assert done == [0, 1, 2, 3, 4]


def test_an_error_stops_the_rest_and_is_raised_once(background: Background) -> None:
    done: list[int] = []

    def fail() -> None:
        raise OSError("no space left")

    go = holding(background)
    background.submit(fail)
    background.submit(appending(done, 0))
    go.set()
    with pytest.raises(OSError, match="no space left"):
        background.flush()
    assert not done
    background.submit(appending(done, 1))
    background.flush()
    assert done == [1]


def test_it_can_be_used_again_after_close(background: Background) -> None:
    done: list[int] = []
    for number in range(2):
        background.submit(appending(done, number))
        background.close()
    background.close()
    assert done == [0, 1]


def test_what_waits_for_its_turn_is_done_at_once_when_all_is_closed(
    background: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.background._PAUSE", 3600)
    done: list[int] = []
    background.submit(appending(done, 0), replaces="weights")
    background.flush()
    background.submit(appending(done, 1), replaces="weights")

    def interrupted() -> None:
        raise KeyboardInterrupt

    # A signal ends the waiting, not the work; the pause is longer than a test may take.
    monkeypatch.setattr(background, "flush", interrupted)
    with pytest.raises(KeyboardInterrupt):
        background.close()
    monkeypatch.undo()
    assert done == [0, 1]
