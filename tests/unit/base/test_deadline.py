"""Deadlines end what would wait for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from medr1_ray.base.deadline import Limit, ended_by, inside, while_moving, within


def test_a_body_that_waits_is_ended_and_told_from_one_that_failed() -> None:
    release = threading.Event()
    late = pytest.raises(TimeoutError, match=r"waiting timed out after 0\.05 s")
    with late, ended_by(0.05, "waiting", release.set):
        assert release.wait(300)

    def fail_when_ended() -> None:
        release.clear()
        release.wait(300)
        raise RuntimeError("aborted")

    with pytest.raises(TimeoutError) as caught, ended_by(0.05, "waiting", release.set):
        fail_when_ended()
    assert str(caught.value.__cause__) == "aborted"
    ended: list[str] = []
    with pytest.raises(RuntimeError, match="of its own"), ended_by(600, "failing", lambda: ended.append("x")):
        raise RuntimeError("of its own")


def test_a_body_that_is_broken_off_is_ended_before_its_time() -> None:
    release, broken_off = threading.Event(), threading.Event()
    threading.Timer(0.05, broken_off.set).start()
    # Not by its time, which would be a TimeoutError.
    with (
        pytest.raises(RuntimeError, match=r"^receiving was broken off$"),
        ended_by(600, "receiving", release.set, broken_off.is_set),
    ):
        assert release.wait(300)


def test_what_was_in_time_is_not_ended_later() -> None:
    """An abort that comes late would end the next call."""
    ended: list[str] = []
    before, watches = set(threading.enumerate()), list[threading.Thread]()
    with ended_by(60, "being quick", lambda: ended.append("x")):
        watches += set(threading.enumerate()) - before
    with pytest.raises(RuntimeError, match="of its own"), ended_by(60, "failing", lambda: ended.append("x")):  # noqa: PT012
        watches += set(threading.enumerate()) - before
        raise RuntimeError("of its own")
    assert watches
    for watch in watches:
        watch.join()
    assert ended == []


def test_a_call_that_cannot_be_ended_is_left_behind() -> None:
    release, before = threading.Event(), set(threading.enumerate())
    with pytest.raises(TimeoutError, match="joining timed out"):
        within(0.05, "joining", release.wait)
    (left,) = set(threading.enumerate()) - before
    assert left.daemon, "it does not keep the process alive"
    release.set()


def test_a_call_in_time_returns_or_raises_what_it_does() -> None:
    def slowly() -> int:
        time.sleep(0.05)
        return 7

    assert within(600, "answering", slowly) == 7
    assert within(600, "answering", lambda: None) is None

    def fail() -> None:
        raise ValueError("wrong address")

    with pytest.raises(ValueError, match="wrong address"):
        within(600, "failing", fail)


@pytest.mark.parametrize(("seconds", "actor", "engine"), [(300.0, 295.0, 290.0), (20.0, 18.0, 16.0), (0.1, 0.09, 0.08)])
def test_limits_nest_so_that_the_inner_call_ends_first(seconds: float, actor: float, engine: float) -> None:
    assert inside(seconds) == pytest.approx(actor)
    assert inside(seconds, 2) == pytest.approx(engine)


def test_a_limit_is_said_with_its_setting() -> None:
    assert str(Limit(300.0, "cluster.sync_timeout_seconds")) == "cluster.sync_timeout_seconds=300"


def test_a_call_that_gets_on_may_take_any_time() -> None:
    """Three waits of which none ends the call, though each is half of what it may stand still."""
    never = threading.Event()

    def copy(moved: Callable[..., None]) -> str:
        for done in range(3):
            never.wait(1.0)
            moved(3, done, unit="parts")
        return "copied"

    assert while_moving(2.0, "copying", copy) == "copied"

    def hang(moved: Callable[..., None]) -> None:
        moved()
        never.wait(20)

    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"copying timed out after 0\.1 s"):
        while_moving(0.1, "copying", hang)
    assert time.monotonic() - start < 15
    never.set()
