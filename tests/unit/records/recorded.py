"""A group of a run, and a run's settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from medr1_ray.config import Config
from medr1_ray.types import Completions, Group, Prompt, Question, Rewards, Span


def a_config(folder: Path, **run: Any) -> Config:
    """Settings of a run in `folder`/run."""
    return Config.model_validate(
        {
            "run": {"dir": folder / "run", **run},
            "data": {"format": "phantoms", "root": folder / "data"},
            "train": {"steps": 10},
        }
    )


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def a_group() -> Group:
    """Two completions of 3 and 1 tokens; the first is right."""
    question = Question(
        "q1", "/images/1.png", "What is it?", ("CT", "MRI"), 1, "MRI", "Modality Recognition", "d"
    )
    prompt = Prompt("e0/q1", question, np.array([1], np.int32), np.zeros((2, 2, 3), np.uint8))
    completions = Completions(
        prompt_id="e0/q1",
        actor="rollout-0",
        token_ids=np.arange(4, dtype=np.int32),
        rollout_logprobs=np.zeros(4, np.float32),
        versions=np.array([4, 4, 5, 5], np.int32),
        lengths=np.array([3, 1], np.int32),
        truncated=np.array([False, True]),
        texts=("<answer>B</answer>", "größer"),
        visual_tokens=1,
        span=Span("rollout-0", "generate", 1.0, 2.0),
    )
    rewards = Rewards(
        prompt_id="e0/q1",
        names=("accuracy", "format"),
        values=np.array([[1, 1], [0, 0]], np.float32),
        total=np.array([2, 0], np.float32),
        correct=np.array([True, False]),
        well_formed=np.array([True, False]),
        answers=("B", None),
        span=Span("reward-0", "reward", 2.0, 2.5),
    )
    return Group(prompt, completions, rewards, np.array([0.75, -0.75], np.float32))
