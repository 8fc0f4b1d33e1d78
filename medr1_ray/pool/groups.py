"""The rollout pool: prompts in, scored groups out. The books are kept by `ledger.py`; this is Ray around them.

Consumes: prompts from the stream. Produces: `Group`s, oldest first. Waits for: the actors of `fleet.py`, which come and
go, and reward actors, each call with a deadline. Unblocked by: `load_weights`, which makes room for the next groups.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from medr1_ray.cluster.pending_calls import Calls, describe_error
from medr1_ray.config import Config
from medr1_ray.data.stream import PromptStream
from medr1_ray.pool.actor_states import MembershipCounts
from medr1_ray.pool.actors import RolloutFleet
from medr1_ray.pool.group_ledger import Ledger, Stage, room
from medr1_ray.rewards.functions import punish_overlong
from medr1_ray.rollout.defaults import sequences_at_once
from medr1_ray.types import Completions, Continuations, Group, Likelihoods, Prompt, Rewards, Sampling, Span
from medr1_ray.weights.messages import LoadReport, WeightUpdate

_POLL_SECONDS = 1.0
_MOST_LOSSES = 10  # A group that so many actors were lost with is taken for the cause.


@dataclass
class _Workload:
    """Groups that are asked for together: those of the training, or one evaluation.

    `name` begins their request ids, since an actor answers a request id that it has seen with the answer of then.
    """

    name: str
    ledger: Ledger
    sampling: Sampling
    prompts: dict[str, Prompt] = field(default_factory=dict)
    completions: dict[str, Completions] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)

    def add(self, prompt: Prompt) -> None:
        self.ledger.issue(prompt.id)
        self.prompts[prompt.id] = prompt

    def discard(self, prompt_id: str) -> Group:
        del self.prompts[prompt_id]
        return self.groups.pop(prompt_id)


class RolloutPool:
    """Keeps rollout actors busy and hands out scored groups.

    Args:
        config: the run's settings.
        fleet: the rollout actors.
        reward_actors: handles of reward actors.
        calls: where answers are awaited, shared with the fleet.
        stream: where training prompts come from; None where nothing is trained.
        ledger: the run's accounts (totals restored when it is resumed).
    """

    def __init__(
        self,
        config: Config,
        fleet: RolloutFleet,
        reward_actors: Sequence[Any],
        calls: Calls,
        stream: PromptStream | None,
        ledger: Ledger,
    ) -> None:
        self._config = config
        self._fleet = fleet
        self._calls = calls
        self._stream = stream
        self._next_reward_actor = itertools.cycle(reward_actors)
        self._spans: list[Span] = []
        self._evaluations = itertools.count()
        self._training = _Workload(
            "train",
            ledger,
            Sampling(
                group_size=config.train.group_size,
                max_tokens=config.rollout.max_tokens,
                temperature=config.rollout.temperature,
                top_p=config.rollout.top_p,
                top_k=config.rollout.top_k,
            ),
        )
        self._workloads = [self._training]

    @property
    def ledger(self) -> Ledger:
        return self._training.ledger

    @property
    def rollout_names(self) -> list[str]:
        """The rollout actors that serve now."""
        return list(self._fleet.serving)

    def membership(self) -> MembershipCounts:
        return self._fleet.counts()

    def fill(self, versions_ahead: int) -> None:
        """Issue as many groups as can be used before they are too old.

        `versions_ahead` is the learner's version at the next use minus the version that the engines hold: 0 when
        weights have just been published, `updates_per_rollout` while the learner updates.
        """
        train = self._config.train
        missing = room(
            self.ledger.counts().in_flight,
            groups_per_step=train.prompts_per_step,
            versions_per_step=train.updates_per_rollout,
            max_staleness=train.max_staleness,
            versions_ahead=versions_ahead,
        )
        assert self._stream is not None
        actors = max(1, len(self._fleet.serving))
        for number, prompt in enumerate(self._stream.draw(missing), start=1):
            self._training.add(prompt)
            if number % actors == 0:  # each can have one more, and need not wait while the others are made
                self._assign()
        self._assign()

    def issue_again(self, prompts: Sequence[Prompt]) -> None:
        """Issue prompts that an interrupted run had issued and not used, before the stream goes on."""
        for prompt in prompts:
            self._training.add(prompt)

    def unused_prompt_ids(self) -> list[str]:
        """Ids of the groups in flight, in the order of issue."""
        return list(self._training.prompts)

    def take(self, version: int, offer: Callable[[Sequence[Group]], None] = lambda groups: None) -> list[Group]:
        """Wait for `prompts_per_step` groups that are young enough for the learner at `version`.

        `offer` is given those that are ready, whenever others are waited for. With dynamic sampling, groups of equal
        rewards are dropped and replaced until the refill limit is reached.

        Raises:
            RuntimeError: a reward actor failed, or no rollout actor is left and none comes in time.
        """
        wanted = self._config.train.prompts_per_step
        refills = wanted * self._config.train.max_refills if self._config.train.dynamic_sampling else 0
        while True:
            for prompt_id in self.ledger.drop_stale(version, self._config.train.max_staleness):
                self._training.discard(prompt_id)
            for prompt_id in self.ledger.at(Stage.READY):
                if refills > 0 and self._training.groups[prompt_id].rewards.all_equal:
                    self.ledger.drop(prompt_id, "zero_variance")
                    self._training.discard(prompt_id)
                    refills -= 1
            self.fill(versions_ahead=0)
            ready = self.ledger.at(Stage.READY)[:wanted]
            if len(ready) == wanted:
                return [self._use(prompt_id) for prompt_id in ready]
            offer([self._training.groups[prompt_id] for prompt_id in ready])
            self.poll(_POLL_SECONDS)

    def run(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Group]:
        """Generate and score prompts outside the training's accounts (evaluation, probes), in the given order."""
        work = _Workload(f"evaluation-{next(self._evaluations)}", Ledger(time.monotonic), sampling)
        for prompt in prompts:
            work.add(prompt)
        self._workloads.append(work)
        self._assign()
        while len(work.groups) < len(prompts):
            self.poll(_POLL_SECONDS)
        self._workloads.remove(work)
        return [work.groups[prompt.id] for prompt in prompts]

    def probe(self, prompts: Sequence[Prompt], sampling: Sampling, version: int) -> dict[str, list[Completions]]:
        """Generate on all actors that serve, by name and unscored: what the parity gate compares at `version`. Who is
        lost meanwhile is left out."""
        asked = {
            name: [handle.generate.remote(f"probe-{version}/{prompt.id}", prompt, sampling) for prompt in prompts]
            for name, handle in self._fleet.serving.items()
        }
        refs = [ref for of_actor in asked.values() for ref in of_actor]
        if refs:
            ray.wait(refs, num_returns=len(refs), timeout=self._config.cluster.rollout_timeout_seconds)
        answers: dict[str, list[Completions]] = {}
        for name, of_actor in asked.items():
            try:
                answers[name] = ray.get(of_actor, timeout=0)
            except RayError as error:
                self._fleet.on_error(name, error)
        return answers

    def call(self, method: str, what: str, arguments: Mapping[str, tuple[Any, ...]] | None = None) -> dict[str, Any]:
        """Answers of a method of every rollout actor that is up, by name; `arguments` are of each actor, none by
        default. One that is dead is given up and left out.

        Raises:
            RuntimeError: an actor failed in it, or did not answer within `cluster.sync_timeout_seconds`.
        """
        limit = self._config.cluster.sync_timeout_seconds
        refs = {
            name: getattr(actor, method).remote(*(arguments[name] if arguments else ()))
            for name, actor in self._fleet.up.items()
            if arguments is None or name in arguments
        }
        ray.wait(list(refs.values()), num_returns=len(refs), timeout=limit) if refs else None
        answers: dict[str, Any] = {}
        for name, ref in refs.items():
            try:
                answers[name] = ray.get(ref, timeout=0)
            except RayActorError as error:
                self._fleet.on_error(name, error)
            except GetTimeoutError as error:
                raise RuntimeError(f"{name}: still {what} after {limit:g} s") from error
            except RayError as error:
                raise RuntimeError(f"{name} failed while {what}: {error}") from error
        return answers

    def likelihoods(
        self, prompts: Sequence[Prompt], continuations: Sequence[Continuations]
    ) -> list[Likelihoods]:
        """How likely each prompt's continuations are, in the given order; a lost actor's are asked of the others.

        Raises:
            RuntimeError: actors were lost again and again, or none is left and none comes in time.
        """
        call, limit = f"likelihoods-{next(self._evaluations)}", self._config.cluster.rollout_timeout_seconds
        answers: dict[int, Likelihoods] = {}
        for _ in range(_MOST_LOSSES):
            self.poll()
            while not self._fleet.serving:
                self.poll(_POLL_SECONDS)
            actors = itertools.cycle(self._fleet.serving.items())
            asked = [
                (i, name, actor.score.remote(f"{call}/{prompts[i].id}", prompts[i], continuations[i]))
                for i, (name, actor) in zip([i for i in range(len(prompts)) if i not in answers], actors, strict=False)
            ]
            for i, name, ref in asked:
                try:
                    answers[i] = ray.get(ref, timeout=limit)
                except RayError as error:
                    self._on_lost(name, error)
            if len(answers) == len(prompts):
                return [answers[i] for i in range(len(prompts))]
        raise RuntimeError(
            f"rollout actors were lost {_MOST_LOSSES} times while they scored {len(prompts)} prompts; look at their "
            "files under logs/, and raise cluster.rollout_timeout_seconds if they were slow"
        )

    def load_weights(self, update: WeightUpdate) -> list[LoadReport]:
        """Bring every rollout actor to `update.version`; requests in flight go on with the new weights."""
        return self._fleet.load_weights(update)

    def scale(self, actors: int, why: str) -> None:
        """Have so many rollout actors; they come and go in the background."""
        self._fleet.scale(actors, why)

    def poll(self, timeout_seconds: float = 0.0) -> None:
        """Handle what has arrived, waiting this long for the first answer, and let actors come and go.

        Raises:
            RuntimeError: a reward actor failed, or no rollout actor is left and none comes in time.
        """
        self._fleet.poll(timeout_seconds)
        self._give_up_the_overdue()
        for name in self._fleet.take_gone():
            for work in self._workloads:
                self._issue_again_after(name, work)
        for name in self._fleet.draining:
            if not any(work.ledger.load_of([name])[name] for work in self._workloads):
                self._fleet.has_drained(name)
        self._assign()

    def finish(self) -> None:
        """Wait for what the actors have, which nobody will use, and give them nothing more: they are free then."""
        while any(self._training.ledger.load_of(list(self._fleet.serving)).values()) or self.ledger.at(Stage.SCORING):
            self._fleet.poll(_POLL_SECONDS)

    def drain_spans(self) -> list[Span]:
        """The spans of generation and scoring since the last call."""
        spans, self._spans = self._spans, []
        return spans

    def _use(self, prompt_id: str) -> Group:
        group = self._training.discard(prompt_id)
        self.ledger.use(prompt_id, zero_variance=group.rewards.all_equal)
        return group

    def _assign(self) -> None:
        """Give waiting groups to the actors with the fewest sequences, none more than its engine samples at once.

        What is left waits for whoever is free next: an actor that joins, for one.
        """
        serving = self._fleet.serving
        load = dict.fromkeys(serving, 0)
        for work in self._workloads:
            for name, groups in work.ledger.load_of(list(serving)).items():
                load[name] += groups * work.sampling.group_size
        limit = sequences_at_once(self._config)
        for work in self._workloads:
            for prompt_id in work.ledger.at(Stage.WAITING):
                if not load:
                    return
                name = min(load, key=load.__getitem__)
                if load[name] and load[name] + work.sampling.group_size > limit:
                    return
                load[name] += work.sampling.group_size
                work.ledger.assign(prompt_id, name)
                ref = serving[name].generate.remote(
                    f"{work.name}/{prompt_id}", work.prompts[prompt_id], work.sampling
                )
                self._calls.add(ref, partial(self._on_generated, work, name), partial(self._on_lost, name))

    def _on_generated(self, work: _Workload, actor: str, completions: Completions) -> None:
        if not work.ledger.generated(completions.prompt_id, actor, int(completions.versions.min())):
            return
        self._spans.append(completions.span)
        work.completions[completions.prompt_id] = completions
        question = work.prompts[completions.prompt_id].question
        ref = next(self._next_reward_actor).score.remote(completions.prompt_id, completions.texts, question)
        self._calls.add(ref, partial(self._on_scored, work), self._on_not_scored)

    def _on_scored(self, work: _Workload, rewards: Rewards) -> None:
        self._spans.append(rewards.span)
        work.ledger.scored(rewards.prompt_id)
        completions = work.completions.pop(rewards.prompt_id)
        # Here because reward actors see texts, which do not tell their length in tokens.
        buffer = self._config.reward.overlong_buffer_tokens
        rewards = punish_overlong(rewards, completions.lengths, work.sampling.max_tokens, buffer)
        work.groups[rewards.prompt_id] = Group(work.prompts[rewards.prompt_id], completions, rewards)
        if work is self._training:
            assert self._stream is not None
            self._stream.observe(rewards.prompt_id, float(rewards.correct.mean()))

    def _on_lost(self, actor: str, error: RayError) -> None:
        if isinstance(error, ValueError):  # The engine refused the prompt: any other would do so too.
            raise error
        self._fleet.on_error(actor, error)

    def _on_not_scored(self, error: RayError) -> None:
        if isinstance(error, ValueError):
            raise error
        raise RuntimeError(f"a reward actor failed: {describe_error(error)}") from error

    def _issue_again_after(self, actor: str, work: _Workload) -> None:
        for prompt_id in work.ledger.lose_actor(actor):
            if work.ledger.losses(prompt_id) == _MOST_LOSSES:
                raise RuntimeError(
                    f"{_MOST_LOSSES} rollout actors in turn were lost while they generated {prompt_id!r}, {actor} the "
                    "last. Look at their files under logs/; raise cluster.rollout_timeout_seconds if they were slow"
                )

    def _give_up_the_overdue(self) -> None:
        limit = self._config.cluster.rollout_timeout_seconds
        for work in self._workloads:
            for prompt_id, actor in work.ledger.overdue(Stage.GENERATING, limit).items():
                assert actor is not None
                self._fleet.lose(actor, f"{prompt_id!r} unfinished after cluster.rollout_timeout_seconds={limit:g}")
            for prompt_id in work.ledger.overdue(Stage.SCORING, limit):
                raise RuntimeError(
                    f"{prompt_id!r} was not scored within cluster.rollout_timeout_seconds={limit:g}; look at the "
                    "reward actors in Ray's logs"
                )
