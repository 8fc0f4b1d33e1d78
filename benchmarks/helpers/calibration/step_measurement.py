"""Measured times of the parts of a training step, with the real engine and learner on this machine's CPU.

Models have random weights in the shape of the tiny model or of `bench30m` (hidden 512, 8 layers, vision depth 4), so
that completions have the requested length. Everything runs in one Ray cluster.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import torch
from transformers import AutoTokenizer, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from benchmarks.helpers.sides.generating import generate_all
from medr1_ray.base.code_digest import code_digest
from medr1_ray.config import Config, tiny_model_path
from medr1_ray.data.prompt_templates import chat_messages
from medr1_ray.learner.handle import Learner
from medr1_ray.rewards.advantages import group_advantages
from medr1_ray.rollout.actor import RolloutActor
from medr1_ray.rollout.defaults import EngineSettings
from medr1_ray.types import Completions, Group, Prompt, Question, Rewards, Sampling, Span

MAX_TOKENS = 64
MAX_PROMPT_TOKENS = 448
BENCH30M_TEXT = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
BENCH30M_VISION = {"depth": 4, "embed_dim": 256, "num_heads": 4, "hidden_size": 512}


@dataclass(frozen=True)
class Case:
    """Size of a step: `prompts` images of `image_size` x `image_size` pixels, each with `group_size` completions."""

    model: str
    image_size: int
    prompts: int
    group_size: int
    completion_tokens: int

    @property
    def name(self) -> str:
        return (
            f"{self.model} {self.image_size} px, {self.prompts} x {self.group_size} completions of "
            f"{self.completion_tokens} tokens"
        )


@dataclass(frozen=True)
class StepSeconds:
    """Seconds that the three parts of a step take."""

    rollout: float
    update: float
    weight_sync: float

    @property
    def total(self) -> float:
        return self.rollout + self.update + self.weight_sync


def write_model(name: str, folder: Path) -> Path:
    """Write a checkpoint of random weights to `folder`: `tiny`, shaped like the model that ships, or `bench30m`."""
    shutil.copytree(tiny_model_path(), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    shape = Qwen2VLConfig.from_pretrained(tiny_model_path()).to_dict()
    if name == "bench30m":
        shape["text_config"] |= BENCH30M_TEXT | {"layer_types": ["full_attention"] * 8}
        shape["text_config"]["rope_parameters"] |= {"mrope_section": [8, 12, 12]}
        shape["vision_config"] |= BENCH30M_VISION
    torch.manual_seed(0)
    Qwen2VLForConditionalGeneration(Qwen2VLConfig.from_dict(shape)).float().save_pretrained(folder)
    return folder


class Bench:
    """One engine and one learner rank of a model, each on `threads` cores."""

    def __init__(self, name: str, folder: Path, logs: Path, threads: int) -> None:
        self.config = Config.model_validate(
            {
                "run": {"dir": logs},
                "model": {"path": str(folder)},
                "data": {"format": "phantoms", "root": "unused"},
                "train": {"steps": 10_000},
                "rollout": {
                    "max_tokens": MAX_TOKENS,
                    "max_prompt_tokens": MAX_PROMPT_TOKENS,
                    "threads": threads,
                },
                "learner": {"threads": threads, "micro_batch_tokens": 2048, "learning_rate": 1e-12},
            }
        )
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self._prompt_ids = np.array(
            tokenizer.apply_chat_template(
                chat_messages(_question("0"), "no_think"), add_generation_prompt=True, return_dict=False
            ),
            np.int32,
        )
        self._learner = Learner(self.config, name=f"learner-{name}")
        rollout_actor = ray.remote(RolloutActor).options(max_concurrency=1000)
        self._actor: Any = rollout_actor.remote(EngineSettings.of(self.config), 0, code_digest())
        self._learner.start()
        ray.get(self._actor.ping.remote())
        self._processes = _processes([self._actor, *self._learner._ranks])
        self._version = 0
        self._requests = 0
        self._sync()

    def step(self, case: Case) -> tuple[StepSeconds, StepSeconds]:
        """Run one synchronous step of `case`; return its wall-clock seconds and its CPU seconds.

        CPU seconds are those of the actor, engine and learner processes. On otherwise idle cores they equal the wall
        clock, since with one thread each the processes work in turn (except that images are prepared while the engine
        runs).
        """
        prompts = [self._prompt(case.image_size) for _ in range(case.prompts)]
        sampling = Sampling(case.group_size, case.completion_tokens, 1.0)
        marks = [self._clocks()]
        completions = self._generate(prompts, sampling)
        marks.append(self._clocks())
        groups = [_scored(prompt, answer) for prompt, answer in zip(prompts, completions, strict=True)]
        self._learner.update(groups, self._version)
        marks.append(self._clocks())
        self._version += 1
        self._sync()
        marks.append(self._clocks())
        wall, busy = (np.diff(clock).tolist() for clock in zip(*marks, strict=True))
        return StepSeconds(*wall), StepSeconds(*busy)

    def _clocks(self) -> tuple[float, float]:
        used = [process.cpu_times() for process in self._processes]
        return time.perf_counter(), sum(times.user + times.system for times in used)

    @property
    def text_tokens(self) -> int:
        """Tokens of a prompt without its image."""
        return self._prompt_ids.size - 1

    def _sync(self) -> None:
        ray.get(self._actor.load_weights.remote(self._learner.publish_weights(self._version)))

    def _generate(self, prompts: list[Prompt], sampling: Sampling) -> list[Completions]:
        return generate_all(self._actor, prompts, sampling)

    def _prompt(self, image_size: int) -> Prompt:
        self._requests += 1
        name = str(self._requests)
        noise = np.random.default_rng(self._requests).integers(0, 256, (image_size, image_size, 3), np.uint8)
        return Prompt(name, _question(name), self._prompt_ids, noise)


def _question(name: str) -> Question:
    return Question(
        name, "", "Which imaging modality is this?", ("CT", "MRI", "X-ray"), 0, "CT", "Modality", "none"
    )


def _scored(prompt: Prompt, completions: Completions) -> Group:
    """Return the group with rewards that differ within it, so that the learner does not skip it."""
    count = len(completions.texts)
    total = (np.arange(count) % 2).astype(np.float32)
    rewards = Rewards(
        prompt.id,
        ("accuracy",),
        total[:, None],
        total,
        total > 0,
        total > 0,
        (None,) * count,
        Span("reward-0", "reward", 0.0, 0.0),
    )
    return Group(prompt, completions, rewards, group_advantages(total, std=True))


def _processes(actors: Sequence[Any]) -> list[psutil.Process]:
    """Return the actors' processes and all their descendants."""
    pids = ray.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in actors])
    own = [psutil.Process(pid) for pid in pids]
    return [*own, *(child for process in own for child in process.children(recursive=True))]
