"""The rollout pool: prompts in, scored groups out. The books are kept by `ledger.py`; this is Ray around them.

Consumes: prompts from the stream. Produces: `Group`s, oldest first. Waits for: rollout actors and reward actors,
each call with a deadline. Unblocked by: `load_weights`, which makes room for the next step's groups.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError

from medr1_ray.config import Config
from medr1_ray.data.stream import PromptStream
from medr1_ray.ledger import Ledger, Stage, room
from medr1_ray.rollout_actor import LoadReport
from medr1_ray.types import Completions, Group, Prompt, Rewards, Sampling, Span, WeightUpdate

_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class PoolActors:
    """Handles by name. Rollout and reward actors do not know each other."""

    rollout: dict[str, Any]
    reward: dict[str, Any]


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
        actors: started actors.
        stream: where training prompts come from.
        ledger: the run's accounts (totals restored when it is resumed).
    """

    def __init__(self, config: Config, actors: PoolActors, stream: PromptStream, ledger: Ledger) -> None:
        self._config = config
        self._actors = actors
        self._stream = stream
        self._next_reward_actor = itertools.cycle(actors.reward.values())
        self._pending: dict[Any, Callable[[Any], None]] = {}
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

    @property
    def ledger(self) -> Ledger:
        return self._training.ledger

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
        for prompt in self._stream.take(missing):
            self._training.add(prompt)
        self._assign(self._training)

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
            RuntimeError: an actor failed or passed its deadline.
        """
        wanted = self._config.train.prompts_per_step
        refills = wanted * self._config.train.max_refills if self._config.train.dynamic_sampling else 0
        while True:
            for prompt_id in self.ledger.drop_stale(version, self._config.train.max_staleness):
                self._training.discard(prompt_id)
            for prompt_id in self.ledger.at(Stage.READY):
                if refills > 0 and has_zero_variance(self._training.groups[prompt_id]):
                    self.ledger.drop(prompt_id, "zero_variance")
                    self._training.discard(prompt_id)
                    refills -= 1
            self.fill(versions_ahead=0)
            ready = self.ledger.at(Stage.READY)[:wanted]
            if len(ready) == wanted:
                return [self._use(prompt_id) for prompt_id in ready]
            offer([self._training.groups[prompt_id] for prompt_id in ready])
            self._poll()

    def run(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Group]:
        """Generate and score prompts outside the training's accounts (evaluation, probes), in the given order."""
        work = _Workload(f"evaluation-{next(self._evaluations)}", Ledger(time.monotonic), sampling)
        for prompt in prompts:
            work.add(prompt)
        self._assign(work)
        while len(work.groups) < len(prompts):
            self._poll(work)
        return [work.groups[prompt.id] for prompt in prompts]

    def probe(
        self, actor: str, prompts: Sequence[Prompt], sampling: Sampling, version: int
    ) -> list[Completions]:
        """Generate on one actor, unscored: what the parity gate compares at `version`."""
        handle = self._actors.rollout[actor]
        refs = [handle.generate.remote(f"probe-{version}/{prompt.id}", prompt, sampling) for prompt in prompts]
        return self._get(refs, f"a probe on {actor}", self._config.cluster.rollout_timeout_seconds)

    @property
    def rollout_names(self) -> list[str]:
        return list(self._actors.rollout)

    def load_weights(self, update: WeightUpdate) -> list[LoadReport]:
        """Bring every rollout actor to `update.version`; requests in flight go on with the new weights."""
        refs = [actor.load_weights.remote(update) for actor in self._actors.rollout.values()]
        what = f"weight sync to version {update.version} on {', '.join(self._actors.rollout)}"
        reports: list[LoadReport] = self._get(refs, what, self._config.cluster.sync_timeout_seconds)
        for name, report in zip(self._actors.rollout, reports, strict=True):
            if (report.version, report.digest) != (update.version, update.digest):
                raise RuntimeError(
                    f"{name} holds version {report.version} with digest {report.digest} after the sync of version "
                    f"{update.version} with digest {update.digest}; its completions would be of unknown weights"
                )
        return reports

    def drain_spans(self) -> list[Span]:
        """The spans of generation and scoring since the last call."""
        spans, self._spans = self._spans, []
        return spans

    def _use(self, prompt_id: str) -> Group:
        group = self._training.discard(prompt_id)
        self.ledger.use(prompt_id, zero_variance=has_zero_variance(group))
        return group

    def _assign(self, work: _Workload) -> None:
        load = self._training.ledger.load_of(self.rollout_names)
        for prompt_id in work.ledger.at(Stage.WAITING):
            name = min(load, key=load.__getitem__)
            load[name] += 1
            work.ledger.assign(prompt_id, name)
            ref = self._actors.rollout[name].generate.remote(
                f"{work.name}/{prompt_id}", work.prompts[prompt_id], work.sampling
            )
            self._pending[ref] = partial(self._on_generated, work, name)

    def _on_generated(self, work: _Workload, actor: str, completions: Completions) -> None:
        self._spans.append(completions.span)
        if not work.ledger.generated(completions.prompt_id, actor, int(completions.versions.min())):
            return
        work.completions[completions.prompt_id] = completions
        question = work.prompts[completions.prompt_id].question
        ref = next(self._next_reward_actor).score.remote(completions.prompt_id, completions.texts, question)
        self._pending[ref] = partial(self._on_scored, work)

    def _on_scored(self, work: _Workload, rewards: Rewards) -> None:
        self._spans.append(rewards.span)
        work.ledger.scored(rewards.prompt_id)
        completions = work.completions.pop(rewards.prompt_id)
        work.groups[rewards.prompt_id] = Group(work.prompts[rewards.prompt_id], completions, rewards)
        if work is self._training:
            self._stream.observe(rewards.prompt_id, float(rewards.correct.mean()))

    def _poll(self, work: _Workload | None = None) -> None:
        """Handle what has arrived; wait a moment for the first. Raises when something is overdue."""
        refs = list(self._pending)
        done, _ = ray.wait(refs, num_returns=1, timeout=_POLL_SECONDS)
        if done:
            done, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        for ref in done:
            on_done = self._pending.pop(ref)
            on_done(ray.get(ref))
        limit = self._config.cluster.rollout_timeout_seconds
        overdue = (work or self._training).ledger.overdue(limit)
        if overdue:
            prompt_id, where = next(iter(overdue.items()))
            raise RuntimeError(
                f"{len(overdue)} group(s) are unfinished after cluster.rollout_timeout_seconds={limit:g}, among them "
                f"{prompt_id!r}, {where}. Look at the actor's file under logs/; raise the limit if it was only slow"
            )

    def _get(self, refs: list[Any], what: str, timeout_seconds: float) -> list[Any]:
        try:
            results: list[Any] = ray.get(refs, timeout=timeout_seconds)
        except ray.exceptions.GetTimeoutError as error:
            raise RuntimeError(
                f"{what} did not end within {timeout_seconds:g} seconds; look at the actors' files under logs/"
            ) from error
        except RayError as error:
            raise RuntimeError(f"{what} failed: {error}") from error
        return results


def has_zero_variance(group: Group) -> bool:
    """Whether all rewards of the group are equal, so that no completion has an advantage.

    Compares extremes: the float mean of equal rewards need not equal them.
    """
    total = group.rewards.total
    return bool(total.max() == total.min())
