"""Settings that stand for something else, and keys of vLLM and DeepSpeed that the package sets itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medr1_ray.config import LearnerSettings, ModelSettings, RolloutSettings, RunSettings, tiny_model_path


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


@pytest.mark.parametrize(
    "url",
    ["s3://bucket", "s3://bucket/runs/a/", "gs://bucket/a-b", "file:///mnt/x", "hdfs://host:8020/runs", "memory://runs/a"],
)
def test_a_storage_is_the_url_of_a_folder(url: str) -> None:
    assert RunSettings(dir=Path("runs/a"), storage=url).storage == url.rstrip("/")


@pytest.mark.parametrize("url", ["", "runs/a", "s3:/bucket", "s3://", "file:///", "s3://bucket/*", "s3://b/a?key=x", "://a"])
def test_what_is_no_url_of_a_folder_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"run\.storage='.*' is not a URL of a folder; give one, .* s3://bucket/runs/a"):
        RunSettings(dir=Path("runs/a"), storage=url)


def test_keys_in_a_query_are_not_shown() -> None:
    with pytest.raises(ValueError, match=r"run\.storage='s3://bucket/a\?<redacted>' is not a URL of a folder") as error:
        RunSettings(dir=Path("runs/a"), storage="s3://bucket/a?key=abc&secret=def")
    (details,) = error.value.errors()  # type: ignore[attr-defined]
    assert "abc" not in details["msg"]


@pytest.mark.parametrize("url", ["file://tmp/runs", "file://localhost/tmp", "local://x"])
def test_a_folder_that_is_not_absolute_is_no_storage(url: str) -> None:
    with pytest.raises(ValueError, match=r"is not an absolute folder; give it with three slashes, e\.g\. file:///"):
        RunSettings(dir=Path("runs/a"), storage=url)


@pytest.mark.parametrize("url", ["s3://AKIA:se/cr@et@bucket/a", "s3://AKIA:secret@bucket/a", "AKIA:secret@bucket/a"])
def test_credentials_in_the_url_are_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ValueError, match=r"<redacted>@bucket/a' holds a user or a key; .* in the environment") as error:
        RunSettings(dir=Path("runs/a"), storage=url)
    (details,) = error.value.errors()  # type: ignore[attr-defined]
    assert not any(part in details["msg"] for part in ("AKIA", "secret", "se/cr", "et@"))


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
