"""The groups that an actor generates at the same time, and those that are done until they are fetched. asyncio only."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from medr1_ray.types import Completions

GATHER_SECONDS = 0.05
"""How long a group that is done waits for others: an answer costs the driver half a millisecond, whatever is in it."""


class RunningGroups:
    """Groups by request id.

    What is fetched is the caller's: no group is given out twice. One failure ends all, because it is the engine's.
    """

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Task[Completions]] = {}
        self._done: list[tuple[str, Completions]] = []
        self._done_since = 0.0
        self._failure: BaseException | None = None
        self._turn = 0
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        """Number of groups that are being generated."""
        return len(self._running)

    def start(self, request_id: str, work: Coroutine[Any, Any, Completions]) -> None:
        """Begin a group, whose id must not be running."""
        assert request_id not in self._running, f"{request_id} is running already"
        task = asyncio.ensure_future(work)
        self._running[request_id] = task
        task.add_done_callback(lambda done: self._on_done(request_id, done))

    def fail(self, error: BaseException) -> None:
        """Cancel all, and raise `error` from the fetch that waits for them or else from the next; nothing happens where
        there is no group."""
        if self._running or self._done:
            self._failure = error
        running, self._running, self._done = self._running, {}, []
        for task in running.values():
            task.cancel()
        self._changed.set()

    def raise_failure(self) -> None:
        """Raise what `fail` was given or a group raised, once."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def take_turn(self) -> int:
        """The turn of a call that will `fetch`; earlier ones are over."""
        self._turn += 1
        self._changed.set()
        return self._turn

    async def fetch(self, turn: int) -> list[tuple[str, Completions]]:
        """The groups that are done, as soon as there is one, with those that follow within `GATHER_SECONDS`.

        None where another turn was taken before or while this one waits, or where there is nothing to wait for.
        """
        clock = asyncio.get_running_loop().time
        while turn == self._turn:
            self.raise_failure()
            left = self._done_since + GATHER_SECONDS - clock() if self._done else None
            if not self._running or (left is not None and left <= 0):
                done, self._done = self._done, []
                return done
            self._changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left)
        return []

    def _on_done(self, request_id: str, task: asyncio.Task[Completions]) -> None:
        # One that `fail` cancelled is no longer there.
        if self._running.get(request_id) is not task:
            return
        error = RuntimeError(f"{request_id} was cancelled") if task.cancelled() else task.exception()
        if error is not None:
            self.fail(error)
            return
        del self._running[request_id]
        if not self._done:
            self._done_since = asyncio.get_running_loop().time()
        self._done.append((request_id, task.result()))
        self._changed.set()
