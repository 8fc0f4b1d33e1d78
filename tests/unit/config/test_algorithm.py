"""The bases of published algorithms: each sets what its paper says, on top of any config."""

from __future__ import annotations

import pytest

from medr1_ray.config import Config, LossSettings
from medr1_ray.config.loading import load_config
from tests.repository import REPOSITORY

CONFIGS = REPOSITORY / "configs"
RECIPE = CONFIGS / "medr1_qwen2vl_2b_think.yaml"
# Of every algorithm's number of mini-batches.
MULTIPLES = ["train.steps=3136", "train.prompts_per_step=16"]


def with_algorithm(name: str) -> Config:
    return load_config([RECIPE, CONFIGS / f"bases/algorithm_{name}.yaml"], MULTIPLES)


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("grpo", LossSettings(kl_beta=0.04)),
        ("dr_grpo", LossSettings(advantage_std=False, aggregation="dr_grpo")),
        ("dapo", LossSettings(clip_high=0.28, aggregation="token")),
        ("gspo", LossSettings(ratio="sequence", clip_low=3e-4, clip_high=4e-4)),
    ],
)
def test_losses(name: str, loss: LossSettings) -> None:
    assert with_algorithm(name).loss == loss


def test_only_dapo_samples_dynamically_and_punishes_length() -> None:
    for name in ("grpo", "dr_grpo", "gspo"):
        config = with_algorithm(name)
        assert (config.train.dynamic_sampling, config.reward.overlong_buffer_tokens) == (False, 0)
    dapo = with_algorithm("dapo")
    assert dapo.train.dynamic_sampling
    assert dapo.reward.overlong_buffer_tokens / dapo.rollout.max_tokens == pytest.approx(0.2, abs=0.01)


def test_mini_batches_are_those_of_the_papers() -> None:
    """DAPO, section 4.1: 512 prompts x 16 completions, mini-batches of 512; GSPO, section 5.1: four."""
    found = {name: with_algorithm(name).train.minibatches for name in ("grpo", "dr_grpo", "dapo", "gspo")}
    assert found == {"grpo": 1, "dr_grpo": 1, "dapo": 512 * 16 // 512, "gspo": 4}


def test_the_recipe_is_grpo() -> None:
    recipe = load_config([RECIPE], MULTIPLES)
    assert with_algorithm("grpo") == recipe
