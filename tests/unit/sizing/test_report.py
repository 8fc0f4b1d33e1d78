"""The report of --dry-run."""

from __future__ import annotations

from pathlib import Path

import pytest

from medr1_ray.config.loading import load_config
from medr1_ray.sizing.report import dry_run
from tests.repository import REPOSITORY

CONFIGS = REPOSITORY / "configs"
RUNNABLE = sorted(
    path.relative_to(CONFIGS).as_posix()
    for path in CONFIGS.rglob("*.yaml")
    if path.parent.name in ("configs", "medr1")
)


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)


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


def test_a_model_that_is_not_at_hand_is_told(tmp_path: Path) -> None:
    config = load_config([CONFIGS / "phantom_cpu.yaml"], [f"model.path={tmp_path}"])
    with pytest.raises(ValueError, match=r"no config\.json"):
        dry_run(config)


@pytest.mark.parametrize("hardware", sorted((CONFIGS / "hardware").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_dry_run_with_hardware_tells_times_and_prices(hardware: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    prices = ["hardware.learner.price_per_hour=4", "hardware.rollout.price_per_hour=2"]
    text = dry_run(load_config([CONFIGS / "medr1_qwen2vl_2b_think.yaml", hardware], prices))
    time = text[text.index("\nTime (estimate") :]
    for part in ("rollout", "update", "weight sync", "step"):
        assert f"\n  {part} " in time
    assert "Best split of these devices: learner.world_size=1, rollout.actors=1" in time
    assert "; price " in time
    assert "none: hardware is not set" in dry_run(load_config([CONFIGS / "medr1_qwen2vl_2b_think.yaml"]))
