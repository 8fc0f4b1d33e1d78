"""Calls to actors whose answers are awaited together, each with what is to be done with it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError


class Calls:
    """Ray's references of running calls. Everything happens in `poll`, on the caller's thread."""

    def __init__(self) -> None:
        self._pending: dict[Any, tuple[Callable[[Any], None], Callable[[RayError], None]]] = {}

    def add(self, reference: Any, then: Callable[[Any], None], otherwise: Callable[[RayError], None]) -> None:
        """Call `then` with the answer, or `otherwise` with Ray's error."""
        self._pending[reference] = (then, otherwise)

    def poll(self, timeout_seconds: float) -> None:
        """Handle every answer that is there; wait for the first for at most this long."""
        if not self._pending:
            time.sleep(timeout_seconds)
            return
        references = list(self._pending)
        done, _ = ray.wait(references, num_returns=1, timeout=timeout_seconds)
        if done:
            done, _ = ray.wait(references, num_returns=len(references), timeout=0)
        for reference in done:
            then, otherwise = self._pending.pop(reference)
            try:
                answer = ray.get(reference)
            except RayError as error:
                otherwise(error)
            else:
                then(answer)


def is_own_failure(error: RayError) -> bool:
    """Whether the actor's own code raised it, rather than its process, node or network having gone."""
    return isinstance(error, RayTaskError) or (
        isinstance(error, RayActorError) and error.actor_init_failed
    )


def describe_error(error: RayError) -> str:
    """One line: of a traceback the last, the exception itself; of an actor's death its cause."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    for line in lines:
        _, found, reason = line.partition("OOM kill reason: ")
        if found:  # Ray's advice follows, a page of it.
            return f"Ray killed it because its node ran out of memory: {reason}. Put fewer actors on a node"
    return lines[-1]
