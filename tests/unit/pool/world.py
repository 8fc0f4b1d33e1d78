"""What is outside the rollout pool, without Ray: places, actors, nodes and time, all in the hands of a test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from medr1_ray.config import Config
from medr1_ray.data.encoding import PromptEncoder
from medr1_ray.data.stream import PromptStream
from medr1_ray.pool import actors as actors_module
from medr1_ray.types import Completions, Prompt, Question, Rewards, Sampling, Span
from medr1_ray.weights.messages import LoadReport, WeightUpdate


class World:
    """What is outside the actors: places, actors, nodes and time. It stands in for `Calls` as well."""

    def __init__(self) -> None:
        self.now = 0.0
        self.places = 10
        self.silent: set[str] = set()
        self.dead: set[str] = set()
        self.dead_from = "start"
        self.failing: set[str] = set()
        self.load_seconds = 1.0
        self.load_seconds_of: dict[str, float] = {}
        self.group_seconds = 2.0
        self.draining: dict[str, float] = {}
        self.killed: list[str] = []
        self.said: list[str] = []
        self.happens: Callable[[], None] = lambda: None  # Called at every poll, for what goes wrong then.
        self.pending: list[tuple[float, str, Any, Callable[[Any], None], Callable[[RayError], None]]] = []

    def add(self, reference: Any, then: Callable[[Any], None], otherwise: Callable[[RayError], None]) -> None:
        name, seconds, answer = reference
        self.pending.append((self.now + seconds, name, answer, then, otherwise))

    def poll(self, timeout_seconds: float) -> None:
        self.now += timeout_seconds
        self.happens()
        pending, self.pending = self.pending, []
        for entry in pending:
            at, name, answer, then, otherwise = entry
            if name in self.dead and (self.dead_from == "start" or isinstance(answer, Completions)):
                otherwise(ActorDiedError())
            elif name in self.failing:
                otherwise(RayTaskError("load_weights", "a member is dead", RuntimeError("a member is dead")))
            elif name in self.silent or at > self.now:
                self.pending.append(entry)
            else:
                then(answer)

    def launch(self, config: Config, index: int, options: Mapping[str, Any]) -> Any:
        return Actor(self, options["name"])


class Method:
    def __init__(self, call: Callable[..., Any]) -> None:
        self.remote = call


class Actor:
    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.version = -1
        self._world = world
        self.ping = Method(lambda: (name, 2.0, name))
        self.load_weights = Method(self._load_weights)
        self.generate = Method(self._generate)
        self.forget_run = Method(self._forget_run)

    def _forget_run(self) -> None:
        self.version = -1

    def _load_weights(self, update: WeightUpdate) -> Any:
        assert update.version >= self.version, f"{self.name} holds {self.version} and was given {update.version}"
        self.version = update.version
        seconds = self._world.load_seconds_of.get(self.name, self._world.load_seconds)
        return self.name, seconds, LoadReport(update.version, update.digest, 1.0, 1.0)

    def _generate(self, request_id: str, prompt: Prompt, sampling: Sampling) -> Any:
        assert self.version >= 0, f"{self.name} has no weights and was given {request_id}"
        size = sampling.group_size
        tokens = np.zeros(size, np.int32)
        completions = Completions(
            prompt_id=prompt.id,
            actor=self.name,
            token_ids=tokens,
            rollout_logprobs=np.zeros(size, np.float32),
            versions=np.full(size, self.version, np.int32),
            lengths=np.ones(size, np.int32),
            truncated=np.zeros(size, np.bool_),
            texts=("",) * size,
            visual_tokens=1,
            span=Span(self.name, "rollout", self._world.now, self._world.now + self._world.group_seconds),
        )
        return self.name, self._world.group_seconds, completions


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
        self.scored: list[str] = []
        self.score = Method(
            lambda prompt_id, texts, lengths, question: (name, 0.0, self._rewards(prompt_id, len(texts)))
        )

    def _rewards(self, prompt_id: str, size: int) -> Rewards:
        self.scored.append(prompt_id)
        total = np.ones(size, np.float32) if self._equal(prompt_id) else np.arange(size, dtype=np.float32) % 2
        right = total > 0
        return Rewards(
            prompt_id, ("r",), total[:, None], total, right, right, (None,) * size, Span("reward-0", "reward", 0, 0)
        )


def install(world: World, patch: pytest.MonkeyPatch) -> None:
    """Let actors deal with this world in the place of Ray."""
    patch.setattr(actors_module, "ask_for_place", lambda name, demand, strategy: Place(world, name))
    patch.setattr(actors_module, "draining_nodes", lambda: world.draining)
    patch.setattr(actors_module, "describe_missing", lambda demand: f"{demand.count} missing")
    patch.setattr(actors_module, "request_nodes", lambda config, actors: world.said.append(f"request {actors}"))
    patch.setattr(actors_module, "release_nodes", lambda: world.said.append("request nothing"))
    patch.setattr(actors_module.ray, "get", lambda answer, timeout: answer)
    patch.setattr(actors_module.ray, "kill", lambda handle: world.killed.append(handle.name))


class Encoder(PromptEncoder):
    """Prompts without an image file."""

    def __init__(self) -> None:
        pass

    def begin(self, question: Question) -> None:
        pass

    def encode(self, question: Question, prompt_id: str) -> Prompt:
        return Prompt(prompt_id, question, np.zeros(4, np.int32), np.zeros((28, 28, 3), np.uint8))


QUESTION = Question("q", "", "Which?", ("CT", "MRI"), 0, "CT", "Modality", "none")


def a_stream() -> PromptStream:
    """Of one question, again and again."""
    return PromptStream((QUESTION,), Encoder(), 0)


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
