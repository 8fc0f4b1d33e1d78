"""Reward actors in real processes: one that stands still is replaced, and a module on the driver's PYTHONPATH found."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from medr1_ray.cluster.pending_calls import PendingCalls
from medr1_ray.config import Config
from medr1_ray.pool import reward_actors as module
from medr1_ray.pool.reward_actors import RewardActors
from medr1_ray.types import Completions, Question, Rewards, Span
from tests.faults.processes import PATIENCE

QUESTION = Question("q", "", "Which?", ("CT", "MRI"), 0, "CT", "Modality", "none")
FUNCTION = "def length(completion, question, mode):\n    return len(completion)\n"


def completions(prompt_id: str) -> Completions:
    return Completions(
        prompt_id=prompt_id,
        actor="rollout-0",
        token_ids=np.zeros(1, np.int32),
        rollout_logprobs=np.zeros(1, np.float32),
        versions=np.zeros(1, np.int32),
        lengths=np.ones(1, np.int32),
        truncated=np.zeros(1, np.bool_),
        texts=("abc",),
        visual_tokens=1,
        span=Span("rollout-0", "rollout", 0.0, 1.0),
    )


def test_one_that_stands_still_is_replaced_and_its_groups_are_scored(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "on_the_drivers_path.py").write_text(FUNCTION)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(module, "_MARGIN_SECONDS", 1.0)
    monkeypatch.setattr(module, "GRACE_SECONDS", 1.0)
    monkeypatch.setattr(module, "REWARD_ACTOR_CPUS", 0.0)
    config = Config.model_validate(
        {
            "run": {"dir": tmp_path},
            "data": {"format": "phantoms", "root": "unused"},
            "train": {"steps": 1},
            "reward": {"functions": {"on_the_drivers_path:length": 1.0}, "timeout_seconds": 10.0},
        }
    )
    calls, said = PendingCalls(), list[str]()
    actors = RewardActors(config, calls, said.append)
    actors.wait_until_up()
    scored: list[Rewards] = []

    def score(*prompt_ids: str) -> None:
        for prompt_id in prompt_ids:
            actors.score(completions(prompt_id), QUESTION, judge_only=False, then=scored.append, otherwise=fail)

    def fail(error: Exception) -> Any:
        pytest.fail(str(error))

    def wait_for(count: int) -> None:
        end = time.monotonic() + PATIENCE
        while len(scored) < count:
            assert time.monotonic() < end, said
            actors.send()
            calls.poll(0.2)

    score("a")
    wait_for(1)
    assert scored[0].total.tolist() == [3.0]
    (member,) = actors._members.values()
    os.kill(ray.get(member.handle.__ray_call__.remote(lambda self: os.getpid())), signal.SIGSTOP)
    score("b", "c")
    wait_for(3)
    assert sorted(rewards.prompt_id for rewards in scored) == ["a", "b", "c"]
    assert {rewards.span.actor for rewards in scored[1:]} == {"reward-1"}
    assert said[0].startswith("reward-0 is gone: `score()` was not answered within the limit that follows from reward.")
    ray.kill(actors._members["reward-1"].handle)
