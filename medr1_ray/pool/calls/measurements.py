"""What is asked of the rollout actors besides groups: the parity gate's probe, and likelihoods of given texts."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from ray.exceptions import RayError

from medr1_ray.config import RolloutSettings
from medr1_ray.pool.actors import RolloutActors
from medr1_ray.pool.calls.generation import Generation
from medr1_ray.rollout.actor import RolloutActor
from medr1_ray.rollout.defaults import sequences_at_once
from medr1_ray.types import Completions, Continuations, Likelihoods, Prompt, Sampling

_MOST_LOSSES = 10
_MOST_PROBES = 3


class Measurements:
    """Asks actors for what no ledger accounts for.

    Args:
        settings: says how many sequences an engine computes at once.
        actors: the rollout actors.
        generation: what they are asked to generate.
        wait: the pool's, which looks after everything else for a moment.
        on_error: what follows the failure of an actor's call, by its name.
    """

    def __init__(
        self,
        settings: RolloutSettings,
        actors: RolloutActors,
        generation: Generation,
        wait: Callable[[], None],
        on_error: Callable[[str, RayError], None],
    ) -> None:
        self._at_once = sequences_at_once(settings)
        self._actors = actors
        self._generation = generation
        self._wait = wait
        self._on_error = on_error
        self._calls = itertools.count()

    def probe(self, prompts: Sequence[Prompt], sampling: Sampling, version: int) -> dict[str, list[Completions]]:
        """Unscored completions of every serving actor, by its name; of one at least, as lost ones are left out.

        Raises:
            RuntimeError: all actors were lost on the way, three times in a row, or none is left and none comes in time.
        """
        for _ in range(_MOST_PROBES):
            while not self._actors.serving:
                self._wait()
            if found := self._probe(prompts, sampling, version):
                return found
        raise RuntimeError(
            f"all rollout actors were lost while they answered the parity gate's probe, {_MOST_PROBES} times in a row; "
            "see their files under logs/, and raise cluster.rollout_timeout_seconds if they were slow"
        )

    def _probe(self, prompts: Sequence[Prompt], sampling: Sampling, version: int) -> dict[str, list[Completions]]:
        found: dict[str, dict[int, Completions]] = {name: {} for name in self._actors.serving}
        for name, of_actor in found.items():
            for i, prompt in enumerate(prompts):
                self._generation.ask(
                    name,
                    f"probe-{version}/{prompt.id}",
                    prompt,
                    sampling,
                    then=partial(of_actor.__setitem__, i),
                    otherwise=self._on_error,
                )
        self._generation.send()
        while any(self._actors.has(name) and len(of_actor) < len(prompts) for name, of_actor in found.items()):
            self._wait()
        return {
            name: [of_actor[i] for i in range(len(prompts))]
            for name, of_actor in found.items()
            if len(of_actor) == len(prompts)
        }

    def likelihoods(
        self, prompts: Sequence[Prompt], continuations: Sequence[Continuations]
    ) -> list[Likelihoods]:
        """Likelihoods of each prompt's continuations, in the given order; those of a lost actor are asked of others.

        Raises:
            RuntimeError: actors were lost repeatedly, or none is left and none comes in time.
        """
        call = f"likelihoods-{next(self._calls)}"
        answers: dict[int, Likelihoods] = {}
        waiting = deque(range(len(prompts)))
        asked: dict[str, list[int]] = {}
        losses = 0
        while len(answers) < len(prompts):
            for name in [name for name in asked if not self._actors.has(name)]:
                waiting.extendleft(reversed([i for i in asked.pop(name) if i not in answers]))
                losses += 1
            if losses >= _MOST_LOSSES:
                raise RuntimeError(
                    f"{losses} rollout actors were lost while computing the likelihoods of {len(prompts)} "
                    "prompts; see their files under logs/, and raise cluster.rollout_timeout_seconds if they were slow"
                )
            load = {
                name: sum(len(continuations[i].lengths) for i in asked.get(name, ()) if i not in answers)
                for name in self._actors.serving
            }
            while waiting and load:
                name = min(load, key=load.__getitem__)
                size = len(continuations[waiting[0]].lengths)
                # An idle actor takes any prompt, however many continuations it has.
                if load[name] and load[name] + size > self._at_once:
                    break
                i = waiting.popleft()
                load[name] += size
                asked.setdefault(name, []).append(i)
                self._actors.ask(
                    name,
                    RolloutActor.likelihoods,
                    f"{call}/{prompts[i].id}",
                    prompts[i],
                    continuations[i],
                    then=partial(answers.__setitem__, i),
                    limit=self._actors.rollout_limit,
                    otherwise=self._on_error,
                )
            self._wait()
        return [answers[i] for i in range(len(prompts))]
