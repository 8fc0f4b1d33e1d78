"""What is outside the rollout pool, without Ray: places, actors, nodes and time, all in the hands of a test."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from medr1_ray.cluster import pending_calls
from medr1_ray.cluster.pending_calls import PendingCalls
from medr1_ray.config import Config
from medr1_ray.data.encoding import Asked, PromptEncoder
from medr1_ray.data.stream import PromptStream
from medr1_ray.pool import actors as actors_module
from medr1_ray.pool import groups as groups_module
from medr1_ray.pool import places as places_module
from medr1_ray.pool import reward_actors as reward_actors_module
from medr1_ray.pool.reward_actors import RewardActors
from medr1_ray.rewards.actor import ScoreRequest
from medr1_ray.rollout.actor import EngineLostError, NotServingError, RolloutActor, WeightLoadError
from medr1_ray.types import Completions, GroupRequest, Likelihoods, Prompt, Question, Rewards, Span
from medr1_ray.weights.messages import LoadReport, WeightMember, WeightUpdate


@dataclass(eq=False)
class Reference:
    """Of a call that actor `name` answers after some seconds."""

    name: str
    seconds: float
    answer: Any
    at: float = 0.0
    generates: bool = False

    def is_there(self, now: float) -> bool:
        return self.at <= now

    def take(self, now: float) -> Any:
        return self.answer

    def fail(self) -> None:
        pass


class Generating(Reference):
    """Of a call of `generate`: answered with the groups of its actor that are done, or by none where another call has
    come (`RunningGroups.fetch`)."""

    def __init__(self, actor: Actor) -> None:
        super().__init__(actor.name, 0.0, None, generates=True)
        self._actor = actor
        actor.calls += 1
        self._number = actor.calls

    def is_there(self, now: float) -> bool:
        return self._number < self._actor.calls or any(at <= now for at, *_ in self._actor.running)

    def take(self, now: float) -> list[tuple[str, Completions]]:
        if self._number < self._actor.calls:
            return []
        done = [each for each in self._actor.running if each[0] <= now]
        self._actor.running = [each for each in self._actor.running if each[0] > now]
        return [(request_id, completions) for _, request_id, completions in done]

    def fail(self) -> None:
        self._actor.running.clear()


class World(PendingCalls):
    """What is outside the actors: places, actors, nodes and time. It has the run's calls, and does for them what Ray
    does: `wait` lets time pass.

    Actors answer late when `silent`; the processes of the `dead` are gone, and with `dead_from="generate"` die of the
    first such call alone. Of the `engine_dead` the actors are there, and each call of theirs fails as the real one's.
    Calls of the `failing` raise, but they do say that they are there, as members of a broadcast that another one broke.
    """

    def __init__(self) -> None:
        super().__init__(lambda: self.now)
        self.now = 0.0
        self.places = 10
        self.silent: set[str] = set()
        self.dead: set[str] = set()
        self.dead_from = "start"
        self.engine_dead: set[str] = set()
        self.failing: set[str] = set()
        self.deadly: set[str] = set()  # questions that end the engine that begins on them
        self.load_seconds = 1.0
        self.load_seconds_of: dict[str, float] = {}
        self.group_seconds = 2.0
        self.group_seconds_of: dict[str, float] = {}
        self.draining: dict[str, float] = {}
        self.leaving = ""  # what is said of the learner's nodes
        self.killed: list[str] = []
        self.said: list[str] = []
        self.happens: Callable[[], None] = lambda: None  # Called at every wait, for what goes wrong then.

    @property
    def pending(self) -> list[Reference]:
        return list(self._pending)

    def add(self, reference: Reference, *arguments: Any) -> None:
        reference.at = self.now + reference.seconds
        super().add(reference, *arguments)

    def wait(
        self, references: list[Reference], num_returns: int, timeout: float
    ) -> tuple[list[Reference], list[Reference]]:
        if timeout:
            self.sleep(timeout)
        done = [each for each in references if self._error(each) or self._has_answered(each)][:num_returns]
        return done, [each for each in references if each not in done]

    def get(self, reference: Reference) -> Any:
        if error := self._error(reference):
            reference.fail()
            raise error
        return reference.take(self.now)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.happens()

    def launch(self, config: Config, index: int, options: Mapping[str, Any]) -> Any:
        return Actor(self, options["name"])

    def _has_answered(self, reference: Reference) -> bool:
        return reference.name not in self.silent and reference.is_there(self.now)

    def _error(self, reference: Reference) -> RayError | None:
        name, answer = reference.name, reference.answer
        generating = reference.generates or isinstance(answer, Likelihoods)
        if name in self.dead and (self.dead_from == "start" or generating):
            return ActorDiedError()
        if name in self.engine_dead:
            return _of_the_actor(EngineLostError(f"{name}: the engine process died"))
        if name in self.failing and not isinstance(answer, WeightMember):
            return _of_the_actor((NotServingError if generating else WeightLoadError)("the broadcast broke"))
        return None


def _of_the_actor(cause: Exception) -> RayError:
    """What Ray raises of an exception in an actor's method: an error that is an instance of its type, too."""
    error: RayError = RayTaskError("a method", f"Traceback:\n  ...\n{cause}", cause).as_instanceof_cause()
    return error


class Method:
    """An actor's method; a tuple of name, seconds and answer stands for the reference to that answer."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def remote(self, *arguments: Any, **named: Any) -> Any:
        found = self._call(*arguments, **named)
        return Reference(*found) if isinstance(found, tuple) else found


class Actor:
    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.version = -1
        self.calls = 0
        self.running: list[tuple[float, str, Completions]] = []  # each with the time at which it is done
        self._world = world
        self.ping = Method(lambda: (name, 2.0, name))
        self.load_weights = Method(self._load_weights)
        self.generate = Method(self._generate)
        self.forget_run = Method(self._forget_run)
        for method in (RolloutActor.sleep, RolloutActor.wake, RolloutActor.join_weight_group):
            setattr(self, method.__name__, Method(lambda *arguments: (name, 0.0, None)))
        self.weight_member = Method(lambda: (name, 0.0, WeightMember(name, "first", 1)))

    def _forget_run(self) -> Any:
        self.version = -1
        return self.name, 0.0, None

    def _load_weights(self, update: WeightUpdate) -> Any:
        assert update.version >= self.version, f"{self.name} holds {self.version} and was given {update.version}"
        self.version = update.version
        seconds = self._world.load_seconds_of.get(self.name, self._world.load_seconds)
        return self.name, seconds, LoadReport(update.version, update.digest, 1.0, 1.0)

    def _generate(self, requests: Sequence[GroupRequest]) -> Any:
        for request in requests:
            assert self.version >= 0, f"{self.name} has no weights and was given {request.id}"
            if request.prompt.question.id in self._world.deadly:
                self._world.engine_dead.add(self.name)
            seconds = self._world.group_seconds_of.get(self.name, self._world.group_seconds)
            completions = self._completions(request.prompt, request.sampling.group_size, seconds)
            self.running.append((self._world.now + seconds, request.id, completions))
        return Generating(self)

    def _completions(self, prompt: Prompt, size: int, seconds: float) -> Completions:
        tokens = np.zeros(size, np.int32)
        return Completions(
            prompt_id=prompt.id,
            actor=self.name,
            token_ids=tokens,
            rollout_logprobs=np.zeros(size, np.float32),
            versions=np.full(size, self.version, np.int32),
            lengths=np.ones(size, np.int32),
            truncated=np.zeros(size, np.bool_),
            texts=("",) * size,
            visual_tokens=1,
            span=Span(self.name, "rollout", self._world.now, self._world.now + seconds),
        )


class Place:
    def __init__(self, world: World, name: str) -> None:
        self._world, self._name = world, name
        world.places -= 1
        self._there = world.places >= 0

    def is_there(self) -> bool:
        self._there = self._there or self._world.places >= 0
        return self._there

    def node_id(self) -> str:
        return f"node of {self._name}"

    def options(self) -> dict[str, Any]:
        return {}

    def give_back(self) -> None:
        self._world.places += 1


class RewardActor:
    """Scores at once; half of the completions are right, or all of them where `equal` says so of the prompt's id."""

    def __init__(
        self, world: World, equal: Callable[[str], bool] = lambda prompt_id: False, name: str = "reward-0"
    ) -> None:
        self._equal = equal
        self.name = name
        self.scored: list[str] = []
        self.judged_only: list[str] = []
        self.ping = Method(lambda: (name, 1.0, name))
        self.score = Method(self._score)

    def _score(self, requests: Sequence[ScoreRequest]) -> Any:
        self.judged_only += [request.prompt_id for request in requests if request.judge_only]
        return self.name, 0.0, [self._rewards(request.prompt_id, len(request.texts)) for request in requests]

    def _rewards(self, prompt_id: str, size: int) -> Rewards:
        self.scored.append(prompt_id)
        total = np.ones(size, np.float32) if self._equal(prompt_id) else np.arange(size, dtype=np.float32) % 2
        right = total > 0
        return Rewards(
            prompt_id, ("r",), total[:, None], total, right, right, (None,) * size, Span("reward-0", "reward", 0, 0)
        )


def reward_actors(world: World, config: Config, *given: RewardActor) -> RewardActors:
    """The real handling of these actors; a replacement is one that finds all rewards different."""
    waiting = list(given) or [RewardActor(world)]
    config = config.model_copy(update={"reward": config.reward.model_copy(update={"actors": len(waiting)})})

    def start(_: Config, name: str) -> RewardActor:
        return waiting.pop(0) if waiting else RewardActor(world, name=name)

    return RewardActors(config, world, world.said.append, start)


def ask_to_stop(world: World, at: float) -> None:
    """Let this process be asked to stop at the first wait from then on; for a body that heeds signals and finishes."""

    def ask() -> None:
        if world.now >= at:
            world.happens = lambda: None
            os.kill(os.getpid(), signal.SIGTERM)

    world.happens = ask


def install(world: World, patch: pytest.MonkeyPatch) -> None:
    """Let actors deal with this world in the place of Ray."""
    patch.setattr(places_module, "ask_for_place", lambda name, demand, strategy: Place(world, name))
    patch.setattr(actors_module, "draining_nodes", lambda: world.draining)
    # So that what an engine samples at once is what an actor gets; test_groups.py has those that come ahead.
    patch.setattr(groups_module, "GROUPS_AHEAD", 0)
    for module in (places_module, reward_actors_module):
        patch.setattr(module, "describe_missing", lambda demand: f"{demand.count} missing")
    patch.setattr(places_module, "request_nodes", lambda config, actors: world.said.append(f"request {actors}"))
    patch.setattr(places_module, "release_nodes", lambda: world.said.append("request nothing"))
    # So that time goes on by what the world says alone; cluster/test_pending_calls.py has it.
    patch.setattr(pending_calls, "_TOGETHER_SECONDS", 0.0)
    patch.setattr(ray, "wait", world.wait)
    patch.setattr(ray, "get", world.get)
    patch.setattr(pending_calls.time, "sleep", world.sleep)
    patch.setattr(ray, "kill", lambda handle: world.killed.append(handle.name))


class Encoder(PromptEncoder):
    """Prompts without an image file."""

    def __init__(self) -> None:
        pass

    def begin(self, asked: Sequence[Asked]) -> None:
        pass

    def encode(self, question: Question, prompt_id: str) -> Prompt:
        return Prompt(prompt_id, question, np.zeros(4, np.int32), np.zeros((28, 28, 3), np.uint8))


QUESTION = Question("q", "", "Which?", ("CT", "MRI"), 0, "CT", "Modality", "none")


def a_stream(questions: int = 1) -> PromptStream:
    """Of one question, again and again; or of several, `q0`, `q1` and so on."""
    several = tuple(replace(QUESTION, id=f"q{i}") for i in range(questions))
    return PromptStream(several if questions > 1 else (QUESTION,), Encoder(), 0)


def a_config(train: Mapping[str, Any] | None = None, **rollout: Any) -> Config:
    cluster = {
        "placement_timeout_seconds": 30,
        "start_timeout_seconds": 20,
        "sync_timeout_seconds": 10,
        "rollout_timeout_seconds": 15,
    }
    return Config.model_validate(
        {
            "run": {"dir": Path("run")},
            "data": {"format": "phantoms", "root": Path("data")},
            "train": {"steps": 1, **(train or {})},
            "rollout": rollout,
            "cluster": cluster,
        }
    )


def update(version: int) -> WeightUpdate:
    return WeightUpdate(version, (), f"digest {version}")
