"""Calls that every rollout actor gets at once: what a weight sync asks of the engines besides loading."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from medr1_ray.cluster.pending_calls import remote
from medr1_ray.pool.actors import RolloutActors
from medr1_ray.rollout.actor import RolloutActor
from medr1_ray.weights.messages import WeightGroup, WeightMember


class EngineCalls:
    """One method for each call.

    All of them raise RuntimeError where an actor's method raised or did not answer within `limit_seconds`
    (`cluster.sync_timeout_seconds`). An actor that has died is given up and left out of the answers.
    """

    def __init__(self, actors: RolloutActors, limit_seconds: float) -> None:
        self._actors = actors
        self._limit_seconds = limit_seconds

    def sleep(self) -> None:
        """Free the engines' GPUs for the learner."""
        self._call(RolloutActor.sleep)

    def wake(self) -> None:
        """Let the engines take their GPU memory back and generate."""
        self._call(RolloutActor.wake)

    def weight_members(self) -> list[WeightMember]:
        """The engines that can take part in a broadcast now."""
        return list(self._call(RolloutActor.weight_member).values())

    def join_weight_group(self, places: Mapping[str, WeightGroup]) -> None:
        """Let the named actors meet the learner in a broadcast group."""
        self._call(RolloutActor.join_weight_group, {name: (place,) for name, place in places.items()})

    def _call(
        self, method: Callable[..., Any], arguments: Mapping[str, tuple[Any, ...]] | None = None
    ) -> dict[str, Any]:
        """The answers by actor name; `arguments` are given by name too, and actors without an entry are not called."""
        what, limit = f"`{method.__name__}()`", self._limit_seconds
        refs = {
            name: remote(actor, method, *(arguments[name] if arguments else ()))
            for name, actor in self._actors.up.items()
            if arguments is None or name in arguments
        }
        if refs:
            ray.wait(list(refs.values()), num_returns=len(refs), timeout=limit)
        answers: dict[str, Any] = {}
        for name, ref in refs.items():
            try:
                answers[name] = ray.get(ref, timeout=0)
            # A dead actor is left out. One that failed or is silent may be half asleep or half joined, so the whole
            # call fails.
            except RayActorError as error:
                self._actors.on_error(name, error)
            except GetTimeoutError as error:
                raise RuntimeError(
                    f"{name}: {what} timed out after {limit:g} s (cluster.sync_timeout_seconds)"
                ) from error
            except RayError as error:
                raise RuntimeError(f"{name}: {what} failed: {error}") from error
        return answers
