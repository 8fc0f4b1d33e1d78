from __future__ import annotations

from pathlib import Path

import pytest

from medr1_ray.config_loading import load_config
from medr1_ray.dry_run import dry_run

CONFIGS = Path(__file__).parents[2] / "configs"
RUNNABLE = sorted(path.name for path in CONFIGS.glob("*.yaml"))


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)


def test_the_promised_configs_are_there() -> None:
    promised = {
        "phantom_cpu.yaml",
        "phantom_cpu_async.yaml",
        "phantom_cpu_think.yaml",
        "phantom_cpu_think_async.yaml",
        "realmini_cpu.yaml",
        "medr1_qwen2vl_2b_think.yaml",
        "medr1_qwen2vl_2b_nothink.yaml",
        "medr1_qwen2_5vl_3b.yaml",
    }
    assert promised <= set(RUNNABLE)


@pytest.mark.parametrize("name", RUNNABLE)
def test_every_config_passes_a_dry_run(name: str) -> None:
    config = load_config([CONFIGS / name])
    text = dry_run(config)
    assert max(len(line) for line in text.splitlines()) <= 110
    assert f"steps: {config.train.steps}" in text
    for actor in ("learner rank", "rollout actor", "reward actor", "driver"):
        assert f"\n  {actor} " in text
    for part in ("parameters", "gradients", "optimizer", "logits chunk", "KV cache", "vision encoder"):
        assert f"\n  {part} " in text
    assert ("\n  reference model " in text) == (config.takes_kl and config.model.lora is None)


def test_runs_write_to_their_own_folders() -> None:
    folders = [load_config([CONFIGS / name]).run.dir for name in RUNNABLE]
    assert folders == [Path("runs") / Path(name).stem for name in RUNNABLE]


def test_the_reference_recipe() -> None:
    think = load_config([CONFIGS / "medr1_qwen2vl_2b_think.yaml"])
    assert (think.mode, think.train.group_size, think.loss.kl_beta, think.loss.kl_estimator) == ("think", 4, 0.04, "k3")
    assert (think.learner.learning_rate, think.learner.schedule, think.learner.warmup_steps) == (1e-6, "linear", 0)
    assert (think.learner.weight_decay, think.learner.max_grad_norm) == (0.0, 1.0)
    assert (think.rollout.max_prompt_tokens, think.rollout.max_tokens, think.rollout.temperature) == (1024, 256, 1.0)
    assert (think.data.image_size, think.data.image_fit, think.model.dtype) == (384, "squash", "bfloat16")
    assert think.model.train_vision_tower
    assert think.reward.functions == {"medr1_accuracy": 1.0, "medr1_format": 1.0}
    no_think = load_config([CONFIGS / "medr1_qwen2vl_2b_nothink.yaml"])
    assert no_think.mode == "no_think"
    assert no_think.model_dump(exclude={"mode": True, "run": {"dir"}}) == think.model_dump(
        exclude={"mode": True, "run": {"dir"}}
    )


def test_a_model_that_is_not_at_hand_is_told(tmp_path: Path) -> None:
    config = load_config([CONFIGS / "phantom_cpu.yaml"], [f"model.path={tmp_path}"])
    with pytest.raises(ValueError, match=r"no config\.json"):
        dry_run(config)
