"""The reward actors: which one scores a group, and what follows where one dies or hangs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from medr1_ray.base.deadline import Limit
from medr1_ray.cluster.pending_calls import (
    PendingCalls,
    describe_error,
    is_own_failure,
    remote,
)
from medr1_ray.cluster.placement import describe_missing
from medr1_ray.cluster.resources import REWARD_ACTOR_CPUS, demands
from medr1_ray.config import Config
from medr1_ray.rewards.actor import GRACE_SECONDS, RewardActor
from medr1_ray.rewards.functions import RewardError
from medr1_ray.types import Completions, Question, Rewards

# A group that this many actors died or hung with is the cause.
_MOST_DEATHS = 3
# For the way to the actor and back, on a busy machine.
_MARGIN_SECONDS = 10.0


def start_reward_actor(config: Config, name: str) -> Any:
    """Start one. A score depends on its arguments alone, so that another actor can repeat it."""
    labels = dict(config.cluster.labels.reward)
    options = {"name": name, "num_cpus": REWARD_ACTOR_CPUS, "label_selector": labels or None}
    return (
        ray.remote(RewardActor)
        .options(**options)
        .remote(
            config.reward.functions,
            config.mode,
            overlong_buffer_tokens=config.reward.overlong_buffer_tokens,
            max_tokens=config.rollout.max_tokens,
            timeout_seconds=config.reward.timeout_seconds,
            memory_gib=config.reward.memory_gib,
            name=name,
            path=python_path(os.environ),
        )
    )


def python_path(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The folders of PYTHONPATH, absolute: a reward function that the driver finds there is found by the actors."""
    folders = environment.get("PYTHONPATH", "").split(os.pathsep)
    return tuple(os.path.abspath(folder) for folder in folders if folder)


@dataclass(eq=False)
class _Scoring:
    """One group on its way; `deaths` counts the actors that ended while they were scoring it."""

    completions: Completions
    question: Question
    judge_only: bool
    then: Callable[[Rewards], None]
    otherwise: Callable[[Exception], None]
    deaths: int = 0


@dataclass
class _Member:
    handle: Any
    is_up: bool = False
    scorings: list[_Scoring] = field(default_factory=list)  # in their order, in which the actor takes them


class RewardActors:
    """Keeps `reward.actors` reward actors. One that dies, or does not answer in time, is replaced by a new one, and its
    groups are scored by the others. A group is the cause where actors that were up ended with it, not where none came
    up.

    Args:
        config: the settings that they are started with.
        calls: where answers are awaited.
        say: takes a line for the operator.
        start: starts an actor from the settings and its name.
    """

    def __init__(
        self,
        config: Config,
        calls: PendingCalls,
        say: Callable[[str], None],
        start: Callable[[Config, str], Any] = start_reward_actor,
    ) -> None:
        self._config = config
        self._calls = calls
        self._say = say
        self._start = start
        self._started = 0
        self._failed_starts = 0  # in a row
        self._members: dict[str, _Member] = {}
        for _ in range(config.reward.actors):
            self._add()

    def wait_until_up(self) -> None:
        """Wait until all are up. One that dies as it starts is replaced, as often as there are actors, and twice more.

        Raises:
            RuntimeError: one did not start within `cluster.start_timeout_seconds`, or not at all.
        """
        limit = self._config.cluster.start_timeout_seconds
        replaceable = len(self._members) + 2
        while starting := {
            remote(member.handle, RewardActor.ping): name for name, member in self._members.items() if not member.is_up
        }:
            done, late = ray.wait(list(starting), num_returns=len(starting), timeout=limit)
            for ping in done:
                name = starting[ping]
                try:
                    ray.get(ping)
                    self._members[name].is_up = True
                except RayError as error:
                    if is_own_failure(error) or not replaceable:
                        raise RuntimeError(f"{name} did not start: {describe_error(error)}") from error
                    replaceable -= 1
                    self._exchange(name, describe_error(error))
            if late:
                names = ", ".join(starting[ping] for ping in late)
                missing = describe_missing(demands(self._config)[2])
                raise RuntimeError(f"not up after cluster.start_timeout_seconds={limit:g}: {names}; {missing}")

    def score(
        self,
        completions: Completions,
        question: Question,
        *,
        judge_only: bool,
        then: Callable[[Rewards], None],
        otherwise: Callable[[Exception], None],
    ) -> None:
        """Have a group scored by the least busy actor.

        `then` receives the rewards. `otherwise` receives a RewardError where a reward function failed on the group, or
        several actors died or hung with it; and a RuntimeError where they cannot work at all.
        """
        self._send(_Scoring(completions, question, judge_only, then, otherwise))

    def _add(self) -> str:
        name = f"reward-{self._started}"
        self._started += 1
        self._members[name] = _Member(self._start(self._config, name))
        return name

    def _send(self, scoring: _Scoring) -> None:
        name, member = min(self._members.items(), key=lambda each: len(each[1].scorings))
        member.scorings.append(scoring)
        reference = remote(
            member.handle,
            RewardActor.score,
            scoring.completions.prompt_id,
            scoring.completions.texts,
            scoring.completions.lengths,
            scoring.question,
            judge_only=scoring.judge_only,
        )
        self._calls.add(
            reference,
            partial(self._on_scored, name, scoring),
            partial(self._on_error, name, scoring),
            "`score()`",
            self._limit(member),
        )

    def _limit(self, member: _Member) -> Limit:
        """That of the group sent last: each before it may take as long as the actor lets it."""
        seconds = len(member.scorings) * (self._config.reward.timeout_seconds + GRACE_SECONDS) + _MARGIN_SECONDS
        if not member.is_up:
            seconds += self._config.cluster.start_timeout_seconds
        return Limit(seconds, "the limit that follows from reward.timeout_seconds")

    def _on_scored(self, name: str, scoring: _Scoring, rewards: Rewards) -> None:
        # The answer of an actor that has been replaced: the group is with another one.
        if name in self._members:
            self._members[name].is_up = True
            self._members[name].scorings.remove(scoring)
            scoring.then(rewards)

    def _on_up(self, name: str, _: object) -> None:
        if name in self._members:
            self._members[name].is_up = True
            self._failed_starts = 0

    def _on_error(self, name: str, scoring: _Scoring, error: RayError) -> None:
        if name not in self._members:
            return
        if not is_own_failure(error):
            self._lose(name, describe_error(error))
            return
        self._members[name].scorings.remove(scoring)
        cause = getattr(error, "cause", None)
        if isinstance(cause, RewardError):
            scoring.otherwise(cause)
        else:
            what = "did not start" if isinstance(error, RayActorError) else "failed"
            scoring.otherwise(RuntimeError(f"{name} {what}: {describe_error(error)}"))

    def _exchange(self, name: str, reason: str) -> tuple[_Member, str]:
        """Replace an actor; returns what it was, and the new one's name."""
        member = self._members.pop(name)
        ray.kill(member.handle)
        new = self._add()
        self._say(f"{name} is gone: {reason}; {new} replaces it")
        return member, new

    def _lose(self, name: str, reason: str) -> None:
        member, new = self._exchange(name, reason)
        # Answered before anything that is sent afterwards, and not at all where the actor ends as it starts.
        ping = remote(self._members[new].handle, RewardActor.ping)
        self._calls.add(ping, partial(self._on_up, new), lambda error: None)
        # The first was being scored, the others waited.
        for scoring in member.scorings[:1] if member.is_up else ():
            scoring.deaths += 1
        if not member.is_up:
            self._failed_starts += 1
            if self._failed_starts > len(self._members) + 2:
                raise RuntimeError(
                    f"{self._failed_starts} reward actors in a row ended before they had started, most recently "
                    f"{name}: {reason}. Their nodes may be full or gone: {describe_missing(demands(self._config)[2])}. "
                    "Fix the cause and continue from the last checkpoint with --resume"
                )
        for scoring in member.scorings:
            if scoring.deaths == _MOST_DEATHS:
                message = (
                    f"{_MOST_DEATHS} reward actors died or hung while they scored prompt "
                    f"{scoring.completions.prompt_id!r}, most recently {name}: {reason}"
                )
                scoring.otherwise(RewardError(message, "unknown", "\n\n".join(scoring.completions.texts)))
            else:
                self._send(scoring)
