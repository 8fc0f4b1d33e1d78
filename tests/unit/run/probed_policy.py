"""A policy of plain numbers, engines that claim to serve a version of it, and the learner, for the parity gate's tests.

Token `t` of a completion has the log-probability `-1 - t / 100` at version 0, and at each later version `step` less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from medr1_ray.learner.messages import GroupLogprobs
from medr1_ray.types import CompletedPrompt, Completions, Prompt, Question, Sampling, Span

QUESTION = Question("q", "/i.png", "What?", ("x", "y"), 0, "CT", "Disease Diagnosis", "d")
PROMPTS = [Prompt(f"p{i}", QUESTION, np.zeros(3, np.int32), np.zeros((2, 2, 3), np.uint8)) for i in range(2)]
LENGTH = 10
"""Tokens of a completion; a group has one, so that a probe has 20."""


@dataclass
class Engine:
    """`behind`: how many versions it serves behind the one that it claims. `off` is added to its log-probabilities.
    From token `differs_from` on it samples others than the rest. `late_from`: tokens from there on are of the version
    after the one it was asked at."""

    behind: int = 0
    off: float = 0.0
    differs_from: int = LENGTH
    late_from: int = LENGTH


@dataclass
class Policy:
    """Pool, its measurements, and learner at once. `answering` are the actors that answer what was begun, all where it
    is None; the learner has the weights of `version`, and `packing_off` is added to what it says of packed rows."""

    step: float = 0.0
    engines: dict[str, Engine] = field(default_factory=dict)
    answering: set[str] | None = None
    packing_off: float = 0.0
    visual_tokens: int = 9
    version: int = 0
    polls: int = 0
    probes: list[int] = field(default_factory=list)
    asked: list[list[str]] = field(default_factory=list)
    scored: list[int] = field(default_factory=list)
    _begun: dict[str, list[Completions]] = field(default_factory=dict)

    @property
    def measurements(self) -> Policy:
        return self

    @property
    def rollout_names(self) -> list[str]:
        return list(self.engines)

    @property
    def begun(self) -> list[str]:
        return list(self._begun)

    def poll(self) -> None:
        self.polls += 1

    def probe(self, prompts: Sequence[Prompt], sampling: Sampling, version: int) -> dict[str, list[Completions]]:
        assert sampling.seed is not None, "or else nothing is shared"
        self.probes.append(version)
        return {name: self._sample(name, prompts, version, version) for name in self.engines}

    def begin_probe(
        self, actors: Sequence[str], prompts: Sequence[Prompt], sampling: Sampling, version: int
    ) -> None:
        assert sampling.seed is not None, "or else nothing is shared"
        assert not set(actors) & set(self._begun), "one at a time"
        self.asked.append(sorted(actors))
        self._begun |= {name: self._sample(name, prompts, version, version + 1) for name in actors}

    def take_probes(self) -> dict[str, list[Completions]]:
        done = [name for name in self._begun if self.answering is None or name in self.answering]
        return {name: self._begun.pop(name) for name in done}

    def logprobs(
        self, groups: Sequence[CompletedPrompt], *, plain: bool = False, meanwhile: Callable[[], None]
    ) -> list[GroupLogprobs]:
        """Of the tokens that an engine of this policy samples and of all others alike."""
        self.scored.append(len(groups))
        meanwhile()
        off = np.float32(0 if plain else self.packing_off)
        return [
            GroupLogprobs(self.at(np.full(completions.token_ids.size, self.version)) + off, self.visual_tokens)
            for _, completions in groups
        ]

    def at(self, versions: NDArray[np.integer]) -> NDArray[np.float32]:
        """The log-probabilities of a completion's tokens, each at a version."""
        return (-1 - np.arange(versions.size) / 100 - self.step * versions).astype(np.float32)

    def _sample(self, name: str, prompts: Sequence[Prompt], version: int, later: int) -> list[Completions]:
        engine = self.engines[name]
        place = np.arange(LENGTH)
        versions = np.where(place < engine.late_from, version, later).astype(np.int32)
        one = Completions(
            "",
            name,
            np.where(place < engine.differs_from, place, place + 100).astype(np.int32),
            self.at(versions - engine.behind) + np.float32(engine.off),
            versions,
            np.full(1, LENGTH, np.int32),
            np.zeros(1, np.bool_),
            ("x",),
            9,
            Span(name, "rollout", 0.0, 1.0),
        )
        return [replace(one, prompt_id=prompt.id) for prompt in prompts]
