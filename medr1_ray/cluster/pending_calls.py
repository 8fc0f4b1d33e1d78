"""Remote calls of actor methods: starting one, and awaiting many, each with callbacks for result and failure."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from medr1_ray.base.deadline import Limit

P = ParamSpec("P")

# Each round of a waiting driver costs it half a millisecond and more, however many answers it has.
_TOGETHER_SECONDS = 0.01


class NotAnsweredError(GetTimeoutError):  # type: ignore[misc]
    """A call was not answered within its limit."""


def remote(actor: Any, method: Callable[Concatenate[Any, P], Any], *args: P.args, **kwargs: P.kwargs) -> Any:
    """Call a method of a Ray actor and return Ray's reference to the result.

    The method is given as an attribute of the actor's class, `remote(handle, RolloutActor.generate, ...)`: a handle is
    untyped, so neither an editor nor mypy could resolve the method in `handle.generate.remote(...)`.
    """
    return getattr(actor, method.__name__).remote(*args, **kwargs)


@dataclass
class _Pending:
    then: Callable[[Any], None]
    otherwise: Callable[[RayError], None]
    what: str
    limit: Limit | None
    since_seconds: float


class PendingCalls:
    """References of the pending calls. Callbacks run inside `poll`, on the caller's thread.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pending: dict[Any, _Pending] = {}

    def add(
        self,
        reference: Any,
        then: Callable[[Any], None],
        otherwise: Callable[[RayError], None],
        what: str = "the call",
        limit: Limit | None = None,
    ) -> None:
        """Add a call: `then` will receive its result, or `otherwise` Ray's error.

        After `limit`, `otherwise` receives a NotAnsweredError that names the call by `what`. An answer that comes later
        still goes to `then`, so that nothing is lost without a word.
        """
        self._pending[reference] = _Pending(then, otherwise, what, limit, self._clock())

    def poll(self, timeout_seconds: float) -> None:
        """Run the callbacks of every call that has finished or passed its limit, waiting at most `timeout_seconds` for
        the first to finish."""
        self._answer(timeout_seconds)
        now = self._clock()
        for call in list(self._pending.values()):
            limit = call.limit
            if limit is not None and now - call.since_seconds > limit.seconds:
                # Once: the call itself stays pending.
                call.limit = None
                call.otherwise(NotAnsweredError(f"{call.what} was not answered within {limit}"))

    def _answer(self, timeout_seconds: float) -> None:
        if not self._pending:
            time.sleep(timeout_seconds)
            return
        references = list(self._pending)
        done, _ = ray.wait(references, num_returns=1, timeout=timeout_seconds)
        if done:  # with the others that are ready, or will be in a moment
            moment = min(timeout_seconds, _TOGETHER_SECONDS)
            done, _ = ray.wait(references, num_returns=len(references), timeout=moment)
        for reference in done:
            # Removed first, because the callbacks may add calls or raise.
            call = self._pending.pop(reference)
            try:
                answer = ray.get(reference)
            except RayError as error:
                call.otherwise(error)
            # Outside the `try`, so that an error of the callback is not taken for one of the call.
            else:
                call.then(answer)


def is_own_failure(error: RayError) -> bool:
    """Return whether the actor's own code raised the error, as opposed to its process, node or network failing."""
    # Ray reports an exception in an actor's constructor as the death of the actor.
    return isinstance(error, RayTaskError) or (
        isinstance(error, RayActorError) and error.actor_init_failed
    )


def is_node_loss(error: RayError) -> bool:
    """Return whether an actor ended because its node did.

    False says little: of a node that dies without notice Ray first knows that a connection is lost.
    """
    return isinstance(error, RayActorError) and (error.preempted or "its node has died" in str(error))


def describe_error(error: RayError) -> str:
    """Return one line: the exception at the end of a traceback, or the cause of an actor's death."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    for line in lines:
        _, found, reason = line.partition("OOM kill reason: ")
        if found:  # Ray adds a page of advice after this line
            return f"Ray killed the actor because its node ran out of memory: {reason}. Put fewer actors on a node"
    # pydantic ends its messages with a link, after the cause.
    last = next((line for line in reversed(lines) if not line.startswith("For further information visit")), lines[-1])
    # Python writes an exception's type with its module, which says nothing to the operator.
    return re.sub(r"^(?:\w+\.)+(\w+: )", r"\1", last)
