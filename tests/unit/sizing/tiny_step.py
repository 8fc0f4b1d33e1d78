"""A step of the tiny model."""

from __future__ import annotations

from medr1_ray.config import Config
from medr1_ray.config.loading import load_config
from medr1_ray.model.operations import Work
from medr1_ray.sizing.work import StepSize
from tests.repository import REPOSITORY

CONFIGS = REPOSITORY / "configs"


def config(*overrides: str) -> Config:
    ours = ("loss.kl_beta=0", "train.prompts_per_step=32", "rollout.max_tokens=8")
    return load_config([CONFIGS / "phantom_cpu.yaml"], (*ours, *overrides))


def counted(work: Work) -> float:
    return work.matmul_flops + work.attention_flops


SIZE = StepSize(prompts=6, group_size=4, completion_tokens=10, image_size=84, text_tokens=50)
