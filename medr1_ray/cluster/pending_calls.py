"""Remote calls of actor methods: starting one, and awaiting many, each with callbacks for result and failure."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

P = ParamSpec("P")


def remote(actor: Any, method: Callable[Concatenate[Any, P], Any], *args: P.args, **kwargs: P.kwargs) -> Any:
    """Call a method of a Ray actor and return Ray's reference to the result.

    The method is given as an attribute of the actor's class, `remote(handle, RolloutActor.generate, ...)`: a handle is
    untyped, so neither an editor nor mypy could resolve the method in `handle.generate.remote(...)`.
    """
    return getattr(actor, method.__name__).remote(*args, **kwargs)


class PendingCalls:
    """References of the pending calls. Callbacks run inside `poll`, on the caller's thread."""

    def __init__(self) -> None:
        self._pending: dict[Any, tuple[Callable[[Any], None], Callable[[RayError], None]]] = {}

    def add(self, reference: Any, then: Callable[[Any], None], otherwise: Callable[[RayError], None]) -> None:
        """Add a call: `then` will receive its result, or `otherwise` Ray's error."""
        self._pending[reference] = (then, otherwise)

    def poll(self, timeout_seconds: float) -> None:
        """Run the callbacks of every finished call, waiting at most `timeout_seconds` for the first."""
        if not self._pending:
            time.sleep(timeout_seconds)
            return
        references = list(self._pending)
        done, _ = ray.wait(references, num_returns=1, timeout=timeout_seconds)
        if done:  # collect the others that are ready, without waiting
            done, _ = ray.wait(references, num_returns=len(references), timeout=0)
        for reference in done:
            # Removed first, because the callbacks may add calls or raise.
            then, otherwise = self._pending.pop(reference)
            try:
                answer = ray.get(reference)
            except RayError as error:
                otherwise(error)
            # Outside the `try`, so that an error of the callback is not taken for one of the call.
            else:
                then(answer)


def is_own_failure(error: RayError) -> bool:
    """Return whether the actor's own code raised the error, as opposed to its process, node or network failing."""
    # Ray reports an exception in an actor's constructor as the death of the actor.
    return isinstance(error, RayTaskError) or (
        isinstance(error, RayActorError) and error.actor_init_failed
    )


def describe_error(error: RayError) -> str:
    """Return one line: the exception at the end of a traceback, or the cause of an actor's death."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    for line in lines:
        _, found, reason = line.partition("OOM kill reason: ")
        if found:  # Ray adds a page of advice after this line
            return f"Ray killed the actor because its node ran out of memory: {reason}. Put fewer actors on a node"
    # pydantic ends its messages with a link, after the cause.
    return next((line for line in reversed(lines) if not line.startswith("For further information visit")), lines[-1])
