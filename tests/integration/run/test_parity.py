"""The parity gate follows a real engine from version to version; transformers stands in for the learner."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import ray
import torch

from medr1_ray.cluster.pending_calls import PendingCalls
from medr1_ray.config import Config
from medr1_ray.learner.messages import Gap, GroupLogprobs
from medr1_ray.pool.actors import RolloutActors
from medr1_ray.pool.calls.generation import Generation
from medr1_ray.pool.calls.measurements import Measurements
from medr1_ray.run.parity.gate import ParityError, ParityGate
from medr1_ray.types import CompletedPrompt, Prompt, Sampling
from medr1_ray.weights.buckets import write_buckets

Weights = dict[str, torch.Tensor]
LIMIT = 2e-2
"""The default in bfloat16."""
ROUNDING = 1e-5
"""More than this engine, which computes in float32, differs from transformers."""
FIGURES = re.compile(r"\d\.\d\de-\d\d")


class Place:
    """Of an actor that is there already."""

    def is_there(self) -> bool:
        return True

    def node_id(self) -> str:
        return "here"

    def options(self) -> dict[str, Any]:
        return {}


class Training:
    """Pool and learner in one: real calls of the real engine, and a policy that each update moves a little."""

    def __init__(
        self, actor: Any, config: Config, start: Weights, score: Callable[..., np.ndarray], prompts: Sequence[Prompt]
    ) -> None:
        config = config.model_copy(update={"rollout": config.rollout.model_copy(update={"actors": 1})})
        place: Any = Place()
        self._calls = PendingCalls()
        self._actors = RolloutActors(config, self._calls, print, lambda *of_it: actor, ask=lambda name: place)
        self._actors.wait_until_up()
        self._score = score
        self._random = torch.Generator().manual_seed(0)
        self._versions = [start]
        self._prompts = prompts
        self._generation = Generation(self._actors)
        self.measurements = Measurements(
            config.rollout, self._actors, self._generation, lambda: self.poll(1.0), self._actors.on_error
        )
        self.said: list[str] = []
        itself: Any = self
        sampling = Sampling(group_size=2, max_tokens=24, temperature=1.0)
        self.gate = ParityGate(itself, itself, prompts, sampling, LIMIT, self.said.append)

    @property
    def rollout_names(self) -> list[str]:
        return list(self._actors.serving)

    @property
    def version(self) -> int:
        return len(self._versions) - 1

    def poll(self, timeout_seconds: float = 0.0) -> None:
        self._actors.poll(timeout_seconds)
        self._generation.send()

    def update(self) -> None:
        """The next policy version: every weight by some 2e-4 of itself."""
        last = self._versions[-1]
        noise = {name: torch.randn(each.shape, generator=self._random) for name, each in last.items()}
        self._versions.append({name: each * (1 + 2e-4 * noise[name]) for name, each in last.items()})

    def sync(self, behind: int = 0) -> None:
        """Bring the engine to the current version: its label, and the bytes of one that is so far behind."""
        weights = self._versions[self.version - behind]
        (report,) = self._actors.load_weights(write_buckets(weights.items(), self.version, 2**20, ray.put))
        assert report.version == self.version

    def follow(self) -> Gap:
        """Follow, and then let the engine answer what it was asked: the test waits, the gate does not."""
        gap = self.gate.follow(self.version)
        while self.measurements.begun:
            self.poll(1.0)
        return gap

    def logprobs(
        self, groups: Sequence[CompletedPrompt], *, plain: bool = False, meanwhile: Callable[[], None]
    ) -> list[GroupLogprobs]:
        meanwhile()
        return [self._learned(prompt, completions) for prompt, completions in groups]

    def _learned(self, prompt: Prompt, completions: Any) -> GroupLogprobs:
        parts = np.split(completions.token_ids, np.cumsum(completions.lengths)[:-1])
        found = [self._score(self._versions[-1], prompt, part) for part in parts]
        return GroupLogprobs(np.concatenate(found), completions.visual_tokens)


@pytest.fixture
def training(
    rollout_actor: Any,
    engine_config: Config,
    scrambled: Callable[..., Weights],
    transformers_logprobs: Callable[..., np.ndarray],
    make_prompt: Callable[[str], Prompt],
) -> Training:
    """One that has just begun, with the start's check behind it."""
    ray.get(rollout_actor.forget_run.remote())
    prompts = [make_prompt(name) for name in ("cat", "dog", "fox", "owl")]
    made = Training(rollout_actor, engine_config, scrambled(7), transformers_logprobs, prompts)
    made.sync()
    gap = made.gate.check(0)
    assert gap.mean < ROUNDING
    assert gap.tokens > 4 * 2 * 10
    return made


def test_what_an_engine_samples_beside_its_work_is_compared_at_later_versions(training: Training) -> None:
    gaps = []
    for _ in range(4):
        training.update()
        training.sync()
        gaps.append(training.follow())
    assert gaps[0].tokens == 0, "nothing was asked before"
    # Engines at neighbouring versions sample mostly the same, and the learner has moved on when it looks at it.
    assert all(gap.tokens > 40 for gap in gaps[1:])
    assert max(gap.max for gap in gaps[1:]) < 10 * ROUNDING
    assert training.said == []


def test_an_engine_that_serves_the_version_before_under_the_label_of_this_one_is_refused(training: Training) -> None:
    """Its gap is a fifth of the limit and less, so that nothing else would tell."""
    training.update()
    training.sync(behind=1)
    with pytest.raises(
        ParityError, match=r"^rollout-0 claims to serve policy version 1 and is nearer to version 0"
    ) as refused:
        training.gate.check(1)
    distance, from_claimed, step = (float(each) for each in FIGURES.findall(str(refused.value)))
    assert distance < ROUNDING
    assert 30 * ROUNDING < step < LIMIT / 5
    assert from_claimed == pytest.approx(step, rel=0.01)


def test_an_engine_that_becomes_stale_in_the_middle_of_a_run_is_refused(training: Training) -> None:
    training.update()
    training.sync()
    training.gate.check(1)
    for behind in (0, 0, 1):
        training.update()
        training.sync(behind)
        training.follow()
    training.update()
    training.sync(behind=1)
    with pytest.raises(ParityError, match=r"^rollout-0 claims to serve policy version 5 and is nearer to version 4"):
        training.follow()
    (line,) = training.said
    assert "rollout-0 claims to serve policy version 4 and is nearer to version 3" in line
