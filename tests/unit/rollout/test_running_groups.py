"""Groups under way in an actor: who gets them when they are done, and what a failure leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from medr1_ray.rollout import running_groups as module
from medr1_ray.rollout.running_groups import RunningGroups


class Groups:
    """`RunningGroups` whose groups are done when a test says so."""

    def __init__(self) -> None:
        self.running = RunningGroups()
        self._results: dict[str, asyncio.Future[Any]] = {}

    def start(self, *names: str) -> None:
        for name in names:
            self._results[name] = asyncio.get_running_loop().create_future()
            self.running.start(name, self._wait(name))

    async def _wait(self, name: str) -> Any:
        return await self._results[name]

    async def done(self, *names: str) -> None:
        for name in names:
            self._results[name].set_result(f"answer to {name}")
            await asyncio.sleep(0.001)

    async def raises(self, name: str, error: Exception) -> None:
        self._results[name].set_exception(error)
        await asyncio.sleep(0.001)

    def fetch(self) -> asyncio.Task[list[tuple[str, Any]]]:
        return asyncio.ensure_future(self.running.fetch(self.running.take_turn()))


def run(test: Callable[[Groups], Awaitable[None]]) -> None:
    async def inside() -> None:
        await asyncio.wait_for(test(Groups()), timeout=60)

    asyncio.run(inside())


def names(found: list[tuple[str, Any]]) -> list[str]:
    return [name for name, _ in found]


def test_a_fetch_has_all_that_are_done_and_none_twice() -> None:
    async def test(groups: Groups) -> None:
        groups.start("a", "b", "c")
        fetch = groups.fetch()
        await groups.done("b", "a")
        assert len(groups.running) == 1
        assert await fetch == [("b", "answer to b"), ("a", "answer to a")]
        await groups.done("c")
        assert names(await groups.fetch()) == ["c"]
        assert await groups.fetch() == [], "there is nothing to wait for"

    run(test)


def test_one_that_is_done_waits_a_little_for_others_but_not_where_there_are_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "GATHER_SECONDS", 1000.0)

    async def test(groups: Groups) -> None:
        groups.start("a", "b")
        fetch = groups.fetch()
        await groups.done("a")
        assert not fetch.done()
        await groups.done("b")
        assert names(await fetch) == ["a", "b"]

    run(test)


def test_a_later_fetch_has_the_answer_of_an_earlier_one() -> None:
    async def test(groups: Groups) -> None:
        groups.start("a")
        first = groups.fetch()
        await asyncio.sleep(0)
        groups.start("b")
        second = groups.fetch()
        assert await first == []
        await groups.done("a", "b")
        assert names(await second) == ["a", "b"]

    run(test)


def test_a_failure_ends_all_and_is_raised_once() -> None:
    async def test(groups: Groups) -> None:
        groups.start("a", "b", "c")
        await groups.done("c")
        await groups.raises("a", TimeoutError("a took too long"))
        assert len(groups.running) == 0
        with pytest.raises(TimeoutError, match="a took too long"):
            groups.running.raise_failure()
        groups.running.raise_failure()
        groups.start("d")
        await groups.done("d")
        assert names(await groups.fetch()) == ["d"], "c went with the others"

    run(test)


def test_a_fetch_that_waits_raises_what_the_groups_are_ended_with() -> None:
    async def test(groups: Groups) -> None:
        groups.running.fail(RuntimeError("nothing was there"))
        groups.running.raise_failure()
        groups.start("a")
        fetch = groups.fetch()
        await asyncio.sleep(0)
        groups.running.fail(RuntimeError("the load failed"))
        with pytest.raises(RuntimeError, match="the load failed"):
            await fetch

    run(test)


def test_a_turn_is_over_as_soon_as_another_is_taken() -> None:
    async def test(groups: Groups) -> None:
        groups.start("a")
        first = groups.running.take_turn()
        second = groups.running.take_turn()
        assert await groups.running.fetch(first) == [], "it came to fetch after the other had begun"
        fetch = asyncio.ensure_future(groups.running.fetch(second))
        await groups.done("a")
        assert names(await fetch) == ["a"]

    run(test)
