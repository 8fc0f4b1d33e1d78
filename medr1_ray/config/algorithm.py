"""Settings of the training objective, the rewards, the reference model and LoRA."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from medr1_ray.config.field_types import (
    Float,
    MayChange,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Settings,
)

Objective = Literal["grpo", "sft"]


class LossSettings(Settings):
    """The GRPO objective: equations in `learner/grpo.py`, published variants in `configs/bases/algorithm_*.yaml`."""

    advantage_std: bool = True
    """Divide advantages by the group's standard deviation (GRPO); off in Dr. GRPO (arXiv 2503.20783)."""
    ratio: Literal["token", "sequence"] = "token"
    """Ratio per token, or per completion: the geometric mean of its tokens' ratios (GSPO, arXiv 2507.18071)."""
    clip_low: Annotated[PositiveFloat, Field(lt=1)] = 0.2
    clip_high: PositiveFloat = 0.2
    aggregation: Literal["sequence", "token", "dr_grpo"] = "sequence"
    kl_beta: NonNegativeFloat = 0.0
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    importance_cap: PositiveFloat | None = 2.0
    """Cap of the truncated importance weight policy / rollout; null leaves the weight out."""


class RewardSettings(Settings):
    """Reward functions by name (or `module:function`), with their weights."""

    functions: dict[str, Float] = Field(
        default_factory=lambda: {"accuracy": 1.0, "format": 1.0}, min_length=1
    )
    overlong_buffer_tokens: NonNegativeInt = 0
    """DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13): the reward falls linearly by 1 over the last
    `overlong_buffer_tokens` tokens before `rollout.max_tokens`; 0 disables it."""
    timeout_seconds: Annotated[PositiveFloat, MayChange] = 10.0
    """Time limit for scoring one group."""
    memory_gib: Annotated[PositiveFloat, MayChange] = 4.0
    """Memory that a reward actor may take while it scores, beyond what it holds after its start."""
    on_error: Annotated[Literal["fail", "drop"], MayChange] = "fail"
    """What follows where a reward function raises, exceeds a limit or returns no finite number: the run ends, or the
    group is left out and counted. Either way `reward_errors.jsonl` has the prompt and the completion."""
    actors: Annotated[PositiveInt, MayChange] = 1

    @model_validator(mode="after")
    def _something_counts(self) -> Self:
        if not any(self.functions.values()):
            raise ValueError(
                f"reward.functions={self.functions}: all weights are 0, so that no completion is better than another; "
                "give one of them another weight"
            )
        return self


class ReferenceSettings(Settings):
    """The reference model: the frozen start model, held by the learner ranks when `loss.kl_beta` > 0.

    With `model.lora` the reference is the model with its adapters disabled, and these settings have no effect.
    """

    placement: Literal["device", "cpu"] = "device"
    """`cpu` keeps its weights in main memory; a copy is on the device while it scores a step's groups."""
    sharded: bool = False
    """Shard its parameters over the ranks (ZeRO-3)."""


class LoraSettings(Settings):
    """Low-rank adapters (LoRA, arXiv 2106.09685) on every linear layer of the language model and, with
    `model.train_vision_tower`, of the vision tower. A layer's weight W becomes W + alpha / rank * B A."""

    rank: PositiveInt = 16
    alpha: PositiveInt = 32
