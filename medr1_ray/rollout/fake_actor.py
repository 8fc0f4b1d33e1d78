"""A fake rollout actor for simulations of scale and injected faults: it answers at random after a fixed time.

It has `RolloutActor`'s methods (`generate`, `load_weights`, `status`, `ping`, `shutdown`) and runs as many
sequences at once as an engine of the same settings (`rollout.engine.max_num_seqs`); the pool around it is the real one.
No training uses it: a `RolloutActors` is given `fake_launcher(...)` to start it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medr1_ray.config import Config, RolloutSettings
from medr1_ray.rollout.actor import GroupsEndedError, NotServingError, RolloutStatus
from medr1_ray.rollout.defaults import sequences_at_once
from medr1_ray.rollout.request_images import begin_fetching, most_are_fetched
from medr1_ray.rollout.running_groups import RunningGroups
from medr1_ray.types import LETTERS, Completions, GroupRequest, Prompt, Sampling, Span
from medr1_ray.weights.messages import LoadReport, WeightUpdate

_TOKENS_PER_COMPLETION = 4
# What the kernel gives a process after SIGKILL (128 + 9).
_STATUS_AFTER_KILL = 137


@dataclass(frozen=True)
class FakeBehaviour:
    """Durations of a fake engine's calls in seconds, and its injected faults.

    A group takes `group_seconds`, times 1 - `spread` to 1 + `spread` at random. One that `dies_starting` ends as it
    begins, as if killed for its memory; one that `dies_on` a question (its id) ends when it is asked. `dies_loading`
    and `hangs_loading` name policy versions: loading such a version ends the process as kill -9 would, or never
    returns. `wrong_digest` is a version for which it reports another digest than it was sent.
    """

    start_seconds: float = 0.0
    group_seconds: float = 0.1
    spread: float = 0.0
    load_seconds: float = 0.0
    dies_starting: bool = False
    dies_on: str | None = None
    dies_loading: int | None = None
    hangs_loading: int | None = None
    wrong_digest: int | None = None


class FakeRolloutActor:
    """See the module. The arguments are `RolloutActor`'s, and `behaviour`."""

    def __init__(self, rollout: RolloutSettings, group_size: int, index: int, behaviour: FakeBehaviour) -> None:
        self._name = f"rollout-{index}"
        self._behaviour = behaviour
        self._random = np.random.default_rng(index)
        self._slots = asyncio.Semaphore(max(1, sequences_at_once(rollout) // group_size))
        self._version: int | None = None
        self._groups = RunningGroups()
        time.sleep(behaviour.start_seconds)
        if behaviour.dies_starting:
            os._exit(_STATUS_AFTER_KILL)

    def __repr__(self) -> str:
        return f"FakeRolloutActor({self._name})"

    async def generate(self, requests: Sequence[GroupRequest]) -> list[tuple[str, Completions]]:
        """As `RolloutActor.generate`: random answers, each `group_seconds` after a slot was free."""
        self._groups.raise_failure()
        if requests and self._version is None:
            raise NotServingError(f"{self._name} serves nothing: no weights have been loaded yet")
        turn = self._groups.take_turn()
        begun = begin_fetching(request.prompt for request in requests)
        for request, prompt in zip(requests, begun, strict=True):
            if request.prompt.question.id == self._behaviour.dies_on:
                os._exit(_STATUS_AFTER_KILL)
            self._groups.start(request.id, self._generate(prompt, request.sampling))
        await most_are_fetched(begun)
        return await self._groups.fetch(turn)

    async def load_weights(self, update: WeightUpdate) -> LoadReport:
        """Report the version as loaded after `load_seconds`, without fetching the bytes."""
        if update.version == self._behaviour.dies_loading:
            os._exit(_STATUS_AFTER_KILL)
        if update.version == self._behaviour.hangs_loading:
            await asyncio.Event().wait()
        await asyncio.sleep(self._behaviour.load_seconds)
        self._version = update.version
        digest = "0" * 32 if update.version == self._behaviour.wrong_digest else update.digest
        seconds = self._behaviour.load_seconds
        return LoadReport(update.version, digest, seconds=seconds, paused_seconds=seconds)

    async def forget_run(self) -> None:
        """As `RolloutActor.forget_run`."""
        self._version = None
        self._groups.fail(GroupsEndedError(f"{self._name} serves nothing: no weights have been loaded yet"))

    async def status(self) -> RolloutStatus:
        """As `RolloutActor.status`."""
        failure = None if self._version is not None else "no weights have been loaded yet"
        return RolloutStatus(self._name, self._version, failure, len(self._groups))

    async def ping(self) -> str:
        """The actor's name."""
        return self._name

    async def shutdown(self) -> None:
        """There is no engine process to stop."""

    async def _generate(self, begun: Awaitable[Prompt], sampling: Sampling) -> Completions:
        # As an engine needs them.
        prompt = await begun
        async with self._slots:
            start = time.time()
            spread = self._behaviour.spread
            await asyncio.sleep(self._behaviour.group_seconds * self._random.uniform(1 - spread, 1 + spread))
        size = sampling.group_size
        tokens = size * _TOKENS_PER_COMPLETION
        letters = self._random.integers(0, len(prompt.question.options), size)
        return Completions(
            prompt_id=prompt.id,
            actor=self._name,
            token_ids=np.zeros(tokens, np.int32),
            rollout_logprobs=np.full(tokens, -1.0, np.float32),
            # Of the version held at the end.
            versions=np.full(tokens, self._version, np.int32),
            lengths=np.full(size, _TOKENS_PER_COMPLETION, np.int32),
            truncated=np.zeros(size, np.bool_),
            texts=tuple(f"<answer>{LETTERS[letter]}</answer>" for letter in letters),
            visual_tokens=1,
            span=Span(self._name, "rollout", start, time.time()),
        )


def fake_launcher(
    behaviour: FakeBehaviour, of: Mapping[int, FakeBehaviour] | None = None
) -> Callable[[Config, int, Mapping[str, Any]], Any]:
    """A launcher for `RolloutActors`: actors with `behaviour`, except those whose index is in `of`."""
    special = dict(of or {})

    def launch(config: Config, index: int, options: Mapping[str, Any]) -> Any:
        import ray

        actor = ray.remote(FakeRolloutActor).options(**options)
        return actor.remote(config.rollout, config.train.group_size, index, special.get(index, behaviour))

    return launch
