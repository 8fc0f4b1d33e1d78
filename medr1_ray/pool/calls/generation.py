"""The driver's side of `RolloutActor.generate`: many groups in a call, and one call at a time that waits for answers.

A call costs half a millisecond of the driver's processor, whatever is in it; with one for each group, one driver was
full with a few engines (docs/performance.md).
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from ray.exceptions import RayError

from medr1_ray.cluster.pending_calls import NotAnsweredError
from medr1_ray.pool.actors import RolloutActors
from medr1_ray.rollout.actor import RolloutActor
from medr1_ray.types import Completions, GroupRequest, Prompt, Sampling


@dataclass(frozen=True)
class _Asked:
    request: GroupRequest
    then: Callable[[Completions], None]
    otherwise: Callable[[str, RayError], None]


class Generation:
    """The groups that rollout actors have been asked for. `ask` collects, `send` calls.

    Args:
        actors: the rollout actors.
    """

    def __init__(self, actors: RolloutActors) -> None:
        self._actors = actors
        self._unsent: defaultdict[str, list[_Asked]] = defaultdict(list)
        # By actor: requests by their ids, each with the number of the call that took it there, and the calls that have
        # not been answered.
        self._sent: dict[str, dict[str, tuple[int, _Asked]]] = {}
        self._waiting: dict[str, set[int]] = {}
        self._numbers = itertools.count()

    def ask(
        self,
        actor: str,
        request_id: str,
        prompt: Prompt,
        sampling: Sampling,
        then: Callable[[Completions], None],
        otherwise: Callable[[str, RayError], None],
    ) -> None:
        """Have a group generated with the next `send`. `otherwise` receives the actor's name and its call's error, once
        for each group that it had."""
        self._unsent[actor].append(_Asked(GroupRequest(request_id, prompt, sampling), then, otherwise))

    def send(self) -> None:
        """Call every actor that has been asked for something, or has groups and no call that would bring them."""
        unsent, self._unsent = self._unsent, defaultdict(list)
        for name in {**unsent, **self._sent}:
            if self._actors.has(name):
                asked = unsent.get(name, [])
                if asked or (self._sent[name] and not self._waiting[name]):
                    self._call(name, asked)
            # What it had is issued again, in its place; its last answers may be under way.
            elif not self._waiting.get(name):
                self._sent.pop(name, None)
                self._waiting.pop(name, None)

    def _call(self, name: str, asked: Sequence[_Asked]) -> None:
        number = next(self._numbers)
        self._sent.setdefault(name, {}).update((each.request.id, (number, each)) for each in asked)
        self._waiting.setdefault(name, set()).add(number)
        self._actors.ask(
            name,
            RolloutActor.generate,
            tuple(each.request for each in asked),
            then=partial(self._on_answer, name, number),
            # With groups under way and none done for so long, each of them is late.
            limit=self._actors.rollout_limit,
            otherwise=partial(self._on_error, number),
        )

    def _on_answer(self, name: str, number: int, groups: Sequence[tuple[str, Completions]]) -> None:
        self._waiting[name].discard(number)
        for request_id, completions in groups:
            call, asked = self._sent[name].get(request_id, (number + 1, None))
            # Otherwise the error of a later call was here first, and the group has been issued again.
            if asked is not None and call <= number:
                del self._sent[name][request_id]
                asked.then(completions)

    def _on_error(self, number: int, name: str, error: RayError) -> None:
        # One that is only late may still be answered.
        if not isinstance(error, NotAnsweredError):
            self._waiting[name].discard(number)
        # What was sent later has a call of its own.
        ended = [asked for call, asked in self._sent[name].values() if call <= number]
        for asked in ended:
            asked.otherwise(name, error)
        # The last answer of an actor that is gone may still come, and is then counted as late.
        if self._actors.has(name):
            for asked in ended:
                del self._sent[name][asked.request.id]
