"""Calls that every rollout actor gets at once: what a run asks of the engines besides groups and loading."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ray.exceptions import RayError

from medr1_ray.cluster.pending_calls import describe_error
from medr1_ray.pool.actors import RolloutActors
from medr1_ray.pool.calls.failures import raised_in_health
from medr1_ray.rollout.actor import RolloutActor
from medr1_ray.weights.messages import BroadcastError, WeightGroup, WeightMember

_POLL_SECONDS = 0.5


class EngineCalls:
    """One method for each call. Each waits up to `cluster.sync_timeout_seconds`.

    An actor that fails or is silent is given up (`RolloutActors.ask`) and left out of the answers: it may be half
    asleep, or hold a part of the GPU's memory.
    """

    def __init__(self, actors: RolloutActors) -> None:
        self._actors = actors

    def sleep(self) -> None:
        """Free the engines' GPUs for the learner."""
        self._each(RolloutActor.sleep)

    def wake(self) -> None:
        """Let the engines take their GPU memory back and generate."""
        self._each(RolloutActor.wake)

    def forget_run(self) -> None:
        """Make every engine serve nothing until `load_weights`, which may then bring the versions of another run."""
        self._actors.forget_weights()
        self._each(RolloutActor.forget_run)

    def weight_members(self) -> list[WeightMember]:
        """The engines that can take part in a broadcast now: each has answered, so that none of them is dead."""
        return list(self._each(RolloutActor.weight_member).values())

    def join_weight_group(self, places: Mapping[str, WeightGroup]) -> None:
        """Let the named actors meet the learner in a broadcast group.

        Raises:
            BroadcastError: one reports that not all have come, after all have answered. That may be the fault of an
                actor that died, so it costs no other.
        """
        failures: dict[str, str] = {}

        def otherwise(name: str, error: RayError) -> None:
            if raised_in_health(error):
                failures[name] = describe_error(error)
            else:
                self._actors.on_error(name, error)

        up = self._actors.up
        asked = {name: (place,) for name, place in places.items() if name in up}
        self._each(RolloutActor.join_weight_group, asked, otherwise, failures)
        for name, failure in failures.items():
            raise BroadcastError(f"{name}: `join_weight_group()` failed: {failure}")

    def _each(
        self,
        method: Callable[..., Any],
        asked: Mapping[str, tuple[Any, ...]] | None = None,
        otherwise: Callable[[str, RayError], None] | None = None,
        failures: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """The answers of those that are left, by actor; by default all that are up are asked, without arguments."""
        if asked is None:
            asked = dict.fromkeys(self._actors.up, ())
        answers: dict[str, Any] = {}
        for name, arguments in asked.items():
            then = partial(answers.__setitem__, name)
            self._actors.ask(name, method, *arguments, then=then, limit=self._actors.sync_limit, otherwise=otherwise)
        while any(self._actors.has(name) and name not in answers and name not in (failures or ()) for name in asked):
            self._actors.wait(_POLL_SECONDS)
        return {name: answer for name, answer in answers.items() if self._actors.has(name)}
