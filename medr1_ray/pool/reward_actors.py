"""The reward actors: which one scores a group, and what follows where one dies or hangs."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from medr1_ray.rewards.actor import CALL_SECONDS, GRACE_SECONDS, RewardActor, ScoreRequest
from medr1_ray.rewards.functions import RewardError
from medr1_ray.types import Completions, Question, Rewards

# A group that this many actors died or hung with, while they had no other, is the cause.
_MOST_DEATHS = 3
_MOST_IN_A_CALL = 64
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
    """One group on its way. `suspected`: an actor ended that had others too, so that it is sent alone; `deaths` counts
    the actors that ended while they had it alone."""

    request: ScoreRequest
    then: Callable[[Rewards], None]
    otherwise: Callable[[Exception], None]
    suspected: bool = False
    deaths: int = 0


@dataclass
class _Member:
    handle: Any
    is_up: bool = False
    scorings: Sequence[_Scoring] = ()  # of the call under way


class RewardActors:
    """Keeps `reward.actors` reward actors. One that dies, or does not answer in time, is replaced by a new one, and its
    groups are scored by the others. A group is the cause where actors that were up ended with it, not where none came
    up. `score` collects, `send` calls: an actor has one call at a time, with all groups that came in the meantime.

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
        self._waiting: deque[_Scoring] = deque()
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
        """Have a group scored with the next `send`.

        `then` receives the rewards. `otherwise` receives a RewardError where a reward function failed on the group, or
        several actors died or hung with it; and a RuntimeError where they cannot work at all.
        """
        request = ScoreRequest(
            completions.prompt_id, completions.texts, completions.lengths, question, judge_only=judge_only
        )
        self._waiting.append(_Scoring(request, then, otherwise))

    def send(self) -> None:
        """Give the waiting groups to the actors that have none."""
        idle = [name for name, member in self._members.items() if not member.scorings]
        # Of all actors, as what one has been given is lost to those that become idle in the meantime.
        share = -(-len(self._waiting) // len(self._members))
        while idle and self._waiting:
            self._call(idle.pop(0), self._next(min(share, _MOST_IN_A_CALL)))

    def _add(self) -> str:
        name = f"reward-{self._started}"
        self._started += 1
        self._members[name] = _Member(self._start(self._config, name))
        return name

    def _next(self, most: int) -> list[_Scoring]:
        found = [self._waiting.popleft()]
        while len(found) < most and self._waiting and not (found[0].suspected or self._waiting[0].suspected):
            found.append(self._waiting.popleft())
        return found

    def _call(self, name: str, scorings: Sequence[_Scoring]) -> None:
        member = self._members[name]
        member.scorings = scorings
        self._calls.add(
            remote(member.handle, RewardActor.score, [scoring.request for scoring in scorings]),
            partial(self._on_scored, name),
            partial(self._on_error, name),
            "`score()`",
            self._limit(member),
        )

    def _limit(self, member: _Member) -> Limit:
        """The last group of a call may take as long as the actor lets it."""
        seconds = CALL_SECONDS + self._config.reward.timeout_seconds + GRACE_SECONDS + _MARGIN_SECONDS
        if not member.is_up:
            seconds += self._config.cluster.start_timeout_seconds
        return Limit(seconds, "the limit that follows from reward.timeout_seconds")

    def _on_scored(self, name: str, answers: Sequence[Rewards | RewardError]) -> None:
        # The answer of an actor that has been replaced: its groups are with another one.
        if name not in self._members:
            return
        self._members[name].is_up = True
        scorings, self._members[name].scorings = self._members[name].scorings, ()
        self._waiting.extendleft(reversed(scorings[len(answers) :]))
        for scoring, answer in zip(scorings[: len(answers)], answers, strict=True):
            if isinstance(answer, RewardError):
                scoring.otherwise(answer)
            else:
                scoring.then(answer)

    def _on_up(self, name: str, _: object) -> None:
        if name in self._members:
            self._members[name].is_up = True
            self._failed_starts = 0

    def _on_error(self, name: str, error: RayError) -> None:
        if name not in self._members:
            return
        if not is_own_failure(error):
            self._lose(name, describe_error(error))
            return
        scorings, self._members[name].scorings = self._members[name].scorings, ()
        what = "did not start" if isinstance(error, RayActorError) else "failed"
        for scoring in scorings:
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
        if member.is_up:
            for scoring in member.scorings:
                scoring.suspected = True
                scoring.deaths += len(member.scorings) == 1
        if not member.is_up:
            self._failed_starts += 1
            if self._failed_starts > len(self._members) + 2:
                raise RuntimeError(
                    f"{self._failed_starts} reward actors in a row ended before they had started, most recently "
                    f"{name}: {reason}. Their nodes may be full or gone: {describe_missing(demands(self._config)[2])}. "
                    "Fix the cause and continue from the last checkpoint with --resume"
                )
        for scoring in reversed(member.scorings):
            if scoring.deaths == _MOST_DEATHS:
                message = (
                    f"{_MOST_DEATHS} reward actors died or hung while they scored prompt "
                    f"{scoring.request.prompt_id!r}, most recently {name}: {reason}"
                )
                scoring.otherwise(RewardError(message, "unknown", "\n\n".join(scoring.request.texts)))
            else:
                self._waiting.appendleft(scoring)
