"""Settings of vLLM and DeepSpeed have the names that their installed versions know."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest

from medr1_ray.config.libraries import keys as library_keys
from medr1_ray.config.libraries.keys import require_deepspeed_keys, require_engine_keys


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    caches = (library_keys._fields, library_keys._deepspeed_keys)
    for cache in caches:
        cache.cache_clear()
    yield
    # Other tests must not find what these left out.
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize(
    "given",
    [
        {"gpu_memory_utilization": 0.5, "max_num_seqs": 8, "enforce_eager": True, "kv_cache_memory_bytes": 1},
        {"async_scheduling": True},
        {},
    ],
)
def test_engine_arguments_of_vllm_pass(given: dict[str, Any]) -> None:
    require_engine_keys("rollout.engine", given)


@pytest.mark.parametrize(
    "given",
    [
        {"zero_optimization": {"offload_optimizer": {"device": "cpu", "pin_memory": True}, "overlap_comm": True}},
        {"zero_optimization": {"stage3_prefetch_bucket_size": 1, "offload_param": {"device": "cpu"}}},
        {"zero_optimization": {"reduce_bucket_size": 5e8}},
        {"wall_clock_breakdown": True, "data_types": {"grad_accum_dtype": "fp32"}, "comms_logger": {}},
        {"tensorboard": {}},
        {"activation_checkpointing": {}, "flops_profiler": {}, "aio": {}, "communication_data_type": "fp32"},
    ],
)
def test_settings_of_deepspeed_pass(given: dict[str, Any]) -> None:
    require_deepspeed_keys("learner.deepspeed", given)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"gpu_mem_util": 0.3}, r"gpu_mem_util=0\.3 is not a setting of vLLM; did you mean .*gpu_memory_utilization\?"),
        ({"max_num_seqs": "abc"}, r"rollout\.engine\.max_num_seqs='abc': vLLM takes int or None here"),
        ({"enforce_eager": 1}, r"rollout\.engine\.enforce_eager=1: vLLM takes bool here"),
        ({"xyz": 1}, r"rollout\.engine\.xyz=1 is not a setting of vLLM; remove it"),
    ],
)
def test_other_engine_arguments_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        require_engine_keys("rollout.engine", given)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"zero_optimization": {"contiguous_gradients": 3}}, r"contiguous_gradients=3: DeepSpeed takes bool here"),
        ({"zero_optimisation": {}}, r"did you mean learner\.deepspeed\.zero_optimization\?"),
        ({"zero_optimization": {"ofload_optimizer": {}}}, r"zero_optimization\.offload_optimizer\?"),
        ({"zero_optimization": {"offload_optimizer": {"devise": "cpu"}}}, r"offload_optimizer\.device\?"),
    ],
)
def test_other_settings_of_deepspeed_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        require_deepspeed_keys("learner.deepspeed", given)


def test_without_the_library_nothing_is_known_and_nothing_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    require_engine_keys("rollout.engine", {"xyz": 1})
    require_deepspeed_keys("learner.deepspeed", {"xyz": 1})
