"""Settings of what is maximised and by moving which weights."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from medr1_ray.config.field_types import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Settings,
)

Objective = Literal["grpo", "sft"]


class LossSettings(Settings):
    """The GRPO objective (`grpo.py` has the equations; `configs/bases/algorithm_*.yaml` the published choices)."""

    advantage_std: bool = True
    """Divide by the group's standard deviation (GRPO); off in Dr. GRPO (arXiv 2503.20783)."""
    ratio: Literal["token", "sequence"] = "token"
    """Of each token, or one for the whole completion: the geometric mean of its tokens' (GSPO, arXiv 2507.18071)."""
    clip_low: PositiveFloat = 0.2
    clip_high: PositiveFloat = 0.2
    aggregation: Literal["sequence", "token", "dr_grpo"] = "sequence"
    kl_beta: NonNegativeFloat = 0.0
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    importance_cap: PositiveFloat | None = 2.0
    """Cap of the truncated importance weight policy / rollout; none leaves the weight out."""


class RewardSettings(Settings):
    """Reward functions by name (or `module:function`) with their weights."""

    functions: dict[str, float] = Field(
        default_factory=lambda: {"accuracy": 1.0, "format": 1.0}, min_length=1
    )
    overlong_buffer_tokens: NonNegativeInt = 0
    """DAPO's soft punishment of length (arXiv 2503.14476, eq. 13): over the last this many tokens of
    `rollout.max_tokens` the reward falls by 1 in all; 0 leaves it out."""
    timeout_seconds: PositiveFloat = 10.0
    actors: PositiveInt = 1


class ReferenceSettings(Settings):
    """The frozen start model, held by the learner ranks when `loss.kl_beta` > 0.

    With `model.lora` it is the model itself without its adapters, and nothing of this applies.
    """

    placement: Literal["device", "cpu"] = "device"
    sharded: bool = False
    """Shard its parameters over the ranks (ZeRO-3)."""


class LoraSettings(Settings):
    """Low-rank adapters (arXiv 2106.09685) on every linear layer of the language model and, with
    `model.train_vision_tower`, of the vision tower. A layer's weight W becomes W + alpha / rank * B A."""

    rank: PositiveInt = 16
    alpha: PositiveInt = 32
