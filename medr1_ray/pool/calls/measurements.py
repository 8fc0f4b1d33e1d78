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
from medr1_ray.rollout.actor import GroupsEndedError, NotServingError, RolloutActor
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
        self._begun: dict[str, list[Completions | None]] = {}  # by actor, one entry for each prompt

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

    @property
    def begun(self) -> list[str]:
        """Names of the actors whose `begin_probe` is not answered yet."""
        return [name for name, found in self._begun.items() if self._actors.has(name) and None in found]

    def begin_probe(
        self, actors: Sequence[str], prompts: Sequence[Prompt], sampling: Sampling, version: int
    ) -> None:
        """Ask these serving actors for the same, without waiting: `take_probes` has what they answer. An engine goes on
        with it while it loads later weights, so tokens may be of later versions."""
        for name in actors:
            self._begun[name] = self._ask(name, f"probe-beside-{version}", prompts, sampling, self._on_unanswered)
        self._generation.send()

    def take_probes(self) -> dict[str, list[Completions]]:
        """What actors have answered of `begin_probe` since the last call, by their names; never waits."""
        complete = {
            name: [each for each in found if each is not None]
            for name, found in self._begun.items()
            if None not in found
        }
        self._begun = {name: self._begun[name] for name in self.begun}
        return complete

    def _probe(self, prompts: Sequence[Prompt], sampling: Sampling, version: int) -> dict[str, list[Completions]]:
        asked = {
            name: self._ask(name, f"probe-{version}", prompts, sampling, self._on_error)
            for name in self._actors.serving
        }
        self._generation.send()
        while any(self._actors.has(name) and None in found for name, found in asked.items()):
            self._wait()
        answers = {name: [each for each in found if each is not None] for name, found in asked.items()}
        return {name: found for name, found in answers.items() if len(found) == len(prompts)}

    def _ask(
        self,
        name: str,
        request: str,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        otherwise: Callable[[str, RayError], None],
    ) -> list[Completions | None]:
        """Ask an actor for completions of these prompts; returns a list that fills as they come."""
        found: list[Completions | None] = [None] * len(prompts)
        for i, prompt in enumerate(prompts):
            self._generation.ask(
                name,
                f"{request}/{prompt.id}",
                prompt,
                sampling,
                then=partial(found.__setitem__, i),
                otherwise=otherwise,
            )
        return found

    def _on_unanswered(self, name: str, error: RayError) -> None:
        # A broadcast that another member broke took its weights, and with them what it generated.
        lacks = isinstance(error, NotServingError) and self._actors.may_lack_weights(name)
        if lacks or isinstance(error, GroupsEndedError):
            self._begun.pop(name, None)
        else:
            self._on_error(name, error)

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
