"""No setting of vLLM or DeepSpeed makes them import code; what these would do with it is not for a configuration."""

from __future__ import annotations

from typing import Any

import pytest

from medr1_ray.config.libraries.code import require_no_code
from medr1_ray.config.loading import load_config

MINIMAL = ["run.dir=runs/a", "data.format=phantoms", "data.root=x", "train.steps=2"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("worker_cls", "evil.Worker"),
        ("worker_cls", "evil"),
        ("logits_processors", "[evil:Processor]"),
        ("model_class_overrides", "{Qwen2VL: evil}"),
        ("reasoning_parser_plugin", "evil.py"),
        ("io_processor_plugin", "evil"),
        ("log_config_file", "evil.json"),
        ("distributed_executor_backend", "evil.Executor"),
        ("speculative_config", "{method: custom, model: evil.Proposer}"),
        ("compilation_config", "{backend: evil.backend}"),
        ("compilation_config", "{inductor_passes: {post_grad: evil.a_pass}}"),
        ("kv_transfer_config", "{kv_connector: Evil, kv_connector_module_path: evil}"),
        ("kv_transfer_config", "{kv_connector_extra_config: {spec_name: Evil, spec_module_path: evil}}"),
        ("ec_manager_config", "{encoder_cache_manager_cls: evil.Manager}"),
        ("structured_outputs_config", "{reasoning_parser_plugin: evil.py}"),
        ("hf_overrides", "{auto_map: {AutoModel: evil--model.Evil}}"),
    ],
)
def test_an_engine_setting_that_names_code_is_refused(key: str, value: str) -> None:
    with pytest.raises(ValueError, match=rf"rollout\.engine\.{key}.*=.* names Python code, .*: remove it"):
        load_config([], [*MINIMAL, f"rollout.engine.{key}={value}"])


@pytest.mark.parametrize(
    "override",
    [
        "rollout.engine.trust_remote_code=true",
        "rollout.engine.hf_overrides={trust_remote_code: true}",
        "rollout.engine.speculative_config={model: x, trust_remote_code: yes please}",
    ],
)
def test_code_of_a_model_cannot_be_trusted_by_a_setting(override: str) -> None:
    with pytest.raises(ValueError, match=r"trust_remote_code=.* would run Python code that comes with the model"):
        load_config([], [*MINIMAL, override])


@pytest.mark.parametrize("form", ["pt", "npcache", "tensorizer", "sharded_state", "my_loader"])
def test_weights_are_read_from_safetensors_alone(form: str) -> None:
    with pytest.raises(ValueError, match=rf"rollout\.engine\.load_format='{form}': .* allowed: auto, hf, safetensors"):
        load_config([], [*MINIMAL, f"rollout.engine.load_format={form}"])


def test_a_deepspeed_setting_that_names_code_is_refused() -> None:
    with pytest.raises(ValueError, match=r"learner\.deepspeed\.torch_autocast.* names Python code"):
        load_config([], [*MINIMAL, "learner.deepspeed.torch_autocast={lower_precision_safe_modules: [evil.Linear]}"])


@pytest.mark.parametrize(
    "given",
    [
        {"trust_remote_code": False, "logits_processors": [], "worker_cls": "", "load_format": "dummy"},
        {"master_addr": "head.example.org", "otlp_traces_endpoint": "http://a.b:4317", "download_dir": "models.new"},
        {"distributed_executor_backend": "vllm.v1.executor.uniproc_executor.UniProcExecutor"},
        {"torch_autocast": {"lower_precision_safe_modules": ["torch.nn.Linear"]}},
        {"gpu_memory_utilization": 0.5, "hf_overrides": {"architectures": ["Qwen2VL"], "rope_theta": 1e6}},
        {"limit_mm_per_prompt": {"image": 1}, "model_name": "Qwen/Qwen2.5-VL", "kv_cache_dtype": "fp8_e4m3"},
    ],
)
def test_all_others_pass(given: dict[str, Any]) -> None:
    require_no_code("rollout.engine", given)
