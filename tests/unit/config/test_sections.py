"""Settings that stand for something else, and keys of vLLM and DeepSpeed that the package sets itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medr1_ray.config import LearnerSettings, ModelSettings, RolloutSettings, tiny_model_path


def test_tiny_stands_for_the_shipped_checkpoint() -> None:
    assert ModelSettings().folder == tiny_model_path()
    assert (tiny_model_path() / "model.safetensors").is_file()
    assert ModelSettings(path="/models/tiny").folder == Path("/models/tiny")


@pytest.mark.parametrize("steps", [0, 0.1, 0.99, 1, 20])
def test_a_warm_up_is_whole_steps_or_a_fraction(steps: float) -> None:
    assert LearnerSettings(warmup_steps=steps).warmup_steps == steps


@pytest.mark.parametrize("steps", [1.5, 2.01, -1])
def test_a_warm_up_of_one_and_a_half_steps_is_refused(steps: float) -> None:
    with pytest.raises(ValueError, match="warmup_steps"):
        LearnerSettings(warmup_steps=steps)


# Each of these would silently contradict a setting of ours: the dtype, the seed, the size of a batch...
OURS_IN_VLLM = (
    *("model", "tokenizer", "dtype", "tensor_parallel_size", "generation_config", "logprobs_mode", "scheduler_cls"),
    *("worker_extension_cls", "weight_transfer_config", "enable_sleep_mode", "seed"),
)
OURS_IN_DEEPSPEED = (
    *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"),
    *("optimizer", "scheduler", "bf16", "fp16"),
)


@pytest.mark.parametrize("key", OURS_IN_VLLM)
def test_engine_arguments_that_the_package_sets_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match=rf"rollout\.engine\.{key}=0 is set by this package"):
        RolloutSettings(engine={"max_num_seqs": 64, key: 0})


@pytest.mark.parametrize("key", OURS_IN_DEEPSPEED)
def test_deepspeed_settings_that_the_package_sets_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match=rf"learner\.deepspeed\.{key}=0 is set by this package"):
        LearnerSettings(deepspeed={"zero_optimization": {"overlap_comm": True}, key: 0})


def test_the_zero_stage_has_a_key_of_its_own() -> None:
    with pytest.raises(ValueError, match=r"learner\.deepspeed\.zero_optimization\.stage=3 is set by this package"):
        LearnerSettings(deepspeed={"zero_optimization": {"stage": 3}})


def test_all_other_settings_of_vllm_and_deepspeed_pass() -> None:
    engine: dict[str, Any] = {"max_num_seqs": 64, "gpu_memory_utilization": 0.5}
    assert RolloutSettings(engine=engine).engine == engine
    deepspeed: dict[str, Any] = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
    assert LearnerSettings(deepspeed=deepspeed).deepspeed == deepspeed
