"""Supervised training from end to end, and reinforcement on top of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.processes import PATIENCE
from tests.repository import REPOSITORY

SMALL = ["data.phantom_images=120", "data.eval_questions=40", "train.prompts_per_step=8", "rollout.actors=1"]


def _run(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return subprocess.run(
        [sys.executable, "-m", f"medr1_ray.{command}", "--config", "configs/phantom_cpu.yaml", *arguments, *SMALL],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A supervised run of three steps, and one of DAPO with adapters that starts from its checkpoint."""
    folder = tmp_path_factory.mktemp("chain")
    data = f"data.root={folder / 'phantoms'}"
    settings = ["train.steps=3", "run.evaluate_every=2", "learner.warmup_steps=0"]
    first = _run("sft", f"run.dir={folder / 'sft'}", data, *settings)
    assert first.returncode == 0, first.stdout + first.stderr
    start = folder / "sft" / "checkpoints" / "checkpoint-3"
    algorithm = ["--config", "configs/bases/algorithm_dapo.yaml", "reward.overlong_buffer_tokens=2"]
    # Every second pair or so has equal rewards: of sixteen, drawn anew in each run, some have.
    # Two batches of rollouts, of four mini-batches each (16 in the paper).
    settings = [f"model.path={start}", "model.lora.rank=4", "train.steps=8", "train.minibatches=4"]
    settings += ["train.group_size=2", "run.rollouts_every=1"]
    arguments = [*algorithm, f"run.dir={folder / 'grpo'}", data, *settings]
    second = _run("train", *arguments)
    assert second.returncode == 0, second.stdout + second.stderr
    return folder


def test_supervised_training_leaves_what_reinforcement_leaves(folder: Path) -> None:
    sft, grpo = (json.loads((folder / name / "summary.json").read_text()) for name in ("sft", "grpo"))
    assert sft.keys() == grpo.keys()
    assert sft["eval"].keys() == grpo["eval"].keys()
    assert sft["eval"]["after"].keys() == grpo["eval"]["after"].keys()
    assert (sft["objective"], sft["steps"], sft["completions"]) == ("sft", 3, 3 * 8)
    assert sft["groups_issued"] == 0, "nothing is generated for training"
    assert 0 < sft["logprob_gap_mean"] < 1e-3
    evaluations = sorted(path.stem for path in (folder / "sft" / "evaluations").glob("*.json"))
    assert evaluations == ["after", "before", "blank_image", "shuffled_image", "step-2"]
    steps = [line for line in _lines(folder / "sft" / "metrics.jsonl") if "loss/total" in line]
    assert [line["step"] for line in steps] == [1, 2, 3]
    assert all(line["loss/total"] > 0 for line in steps)
    assert all("reward/total_mean" not in line for line in steps)


def test_reinforcement_starts_from_the_supervised_model(folder: Path) -> None:
    sft, grpo = (json.loads((folder / name / "summary.json").read_text())["eval"] for name in ("sft", "grpo"))
    assert grpo["before"] == sft["after"]


def test_mini_batches_are_optimizer_steps_after_which_the_policy_has_moved(folder: Path) -> None:
    summary = json.loads((folder / "grpo" / "summary.json").read_text())
    metrics = [line for line in _lines(folder / "grpo" / "metrics.jsonl") if "policy/ratio_max" in line]
    assert [line["step"] for line in metrics] == [4, 8], "one line a batch of rollouts"
    assert (summary["steps"], summary["groups_used"]) == (8, 2 * 8)
    assert all(line["policy/ratio_max"] > 1 for line in metrics)
    # Of all tokens, not of the first mini-batch's alone, although the policy has moved when it learns from the others.
    assert all(line["policy/logprob_gap_mean"] < 1e-3 for line in metrics)
    assert [line["staleness/max"] for line in metrics] == [0, 0]


def test_dynamic_sampling_leaves_no_group_of_equal_rewards_while_it_may_refill(folder: Path) -> None:
    # Eight groups a step. A step drops groups of equal rewards, but no more than `train.max_refills` = 4 times eight;
    # only then may it use some. It drops nothing else, since a synchronous run has no stale groups.
    groups, limit = 8, 4 * 8
    summary = json.loads((folder / "grpo" / "summary.json").read_text())
    assert summary["groups_dropped_by_reason"].keys() == {"zero_variance"}
    metrics = {
        line["step"]: line
        for line in _lines(folder / "grpo" / "metrics.jsonl")
        if "ledger/groups_dropped" in line
    }
    dropped_so_far = equal_so_far = 0
    for step in (4, 8):
        rewards: dict[str, list[float]] = {}
        for line in _lines(folder / "grpo" / f"rollouts/step-{step:06d}.jsonl"):
            rewards.setdefault(line["prompt_id"], []).append(line["reward"])
            assert line["rewards"]["overlong"] <= 0
        assert len(rewards) == groups
        equal = sum(len(set(of_group)) == 1 for of_group in rewards.values())
        dropped = metrics[step]["ledger/groups_dropped"] - dropped_so_far
        assert dropped <= limit
        assert equal == 0 or dropped == limit, "a group of equal rewards was used although it could be replaced"
        assert metrics[step]["reward/zero_variance_fraction"] == equal / groups
        dropped_so_far += dropped
        equal_so_far += equal
    assert dropped_so_far == summary["groups_dropped_by_reason"]["zero_variance"] > 0
    assert (summary["groups_used"], summary["groups_zero_variance"]) == (2 * groups, equal_so_far)
