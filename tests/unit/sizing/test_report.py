"""The report of --dry-run."""

from __future__ import annotations

import re
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


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "Weights reach the engines by nccl: both sides have GPUs of their own."),
        (
            ["cluster.weight_transport=object_store"],
            "Weights reach the engines by object_store (by default it would be nccl: both sides have GPUs of their own)"
            ".\nA weight sync needs 12.34 GiB in a node's object store and /dev/shm.",
        ),
        (
            ["rollout.gpus_per_actor=0", "learner.gpus_per_rank=0"],
            "Weights reach the engines by object_store: not both sides have GPUs.\nA weight sync needs 12.34 GiB",
        ),
    ],
)
def test_a_dry_run_says_how_weights_travel_and_why(given: list[str], said: str) -> None:
    assert f"\n{said}" in dry_run(load_config([CONFIGS / "medr1_qwen2vl_2b_think.yaml"], given))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], ""),
        # 1,024 tokens of the prompt and 4 x 256 of its completions.
        (["learner.micro_batch_tokens=2048"], ""),
        (
            ["learner.micro_batch_tokens=2047"],
            "learner.micro_batch_tokens=2047: a longer group is cut into rows, each with the prompt.\n",
        ),
        (
            ["learner.micro_batch_tokens=1279"],
            "learner.micro_batch_tokens=1279 is less than rollout.max_prompt_tokens + rollout.max_tokens = 1,280:\n"
            "a prompt with one completion that is longer goes alone, and the memory above is for the longest.\n",
        ),
    ],
)
def test_a_dry_run_says_what_becomes_of_groups_longer_than_a_micro_batch(given: list[str], said: str) -> None:
    text = dry_run(load_config([CONFIGS / "medr1_qwen2vl_2b_think.yaml"], given))
    table, _, rest = text.partition("\nMemory of each learner rank (estimate)\n")[2].partition("  total ")
    assert table
    assert rest.split("\n", 1)[1].startswith(f"{said}\nMemory of each rollout actor")


def test_a_dry_run_compares_the_transports_whose_rates_are_known() -> None:
    files = [CONFIGS / "medr1_qwen2vl_2b_think.yaml", CONFIGS / "hardware" / "h100_l40s.yaml"]
    time = dry_run(load_config(files)).partition("\nTime (estimate")[2]
    # 2,208,985,600 parameters of two bytes at 1.75e9, 5e11 and 2.8e8 bytes a second, and 0.2 s.
    assert re.search(r"\n  weight sync +2\.72 s  by nccl, all rollout actors at once\n", time)
    assert re.search(r"\n  nccl +2\.72 s  learner and engines on GPUs of their own \(chosen\)\n", time)
    assert re.search(r"\n  ipc +0\.21 s  cluster\.colocated=true\n", time)
    assert re.search(r"\n  object_store +15\.98 s  any hardware\n", time)
    without = dry_run(load_config(files, ["hardware.nccl_bytes_per_second=null"]))
    assert re.search(r"\n  weight sync +0\.20 s  hardware has no rate of nccl\n", without)
    on_cores = [CONFIGS / "phantom_cpu.yaml", CONFIGS / "hardware" / "cpu_core.yaml"]
    assert "weight sync by" not in dry_run(load_config(on_cores)), "there is nothing to choose"
