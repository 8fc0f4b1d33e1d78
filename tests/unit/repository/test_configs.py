"""The files in configs/: those that the documents promise, with the papers' settings."""

from __future__ import annotations

import json
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
MODALITIES = ("ct", "mri", "xray", "ultrasound", "dermoscopy", "fundus", "oct", "microscopy")
TASKS = ("anatomy", "diagnosis", "grading", "modality", "attributes")


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
        "table_cpu.yaml",
        "medr1_qwen2vl_2b_think.yaml",
        "medr1_qwen2vl_2b_nothink.yaml",
        "medr1_qwen2_5vl_3b.yaml",
    }
    assert promised <= set(RUNNABLE)


def test_runs_write_to_their_own_folders() -> None:
    folders = [load_config([CONFIGS / name]).run.dir for name in RUNNABLE]
    assert folders == [Path("runs") / Path(name).with_suffix("") for name in RUNNABLE]


def test_the_papers_runs_are_there_and_differ_in_their_data_alone() -> None:
    names = {f"modality_{name}" for name in MODALITIES} | {f"task_{name}" for name in TASKS}
    names |= {"mixed_modalities", "mixed_tasks"}
    assert {f"medr1/{name}.yaml" for name in names} == {name for name in RUNNABLE if "/" in name}
    configs = [load_config([CONFIGS / f"medr1/{name}.yaml"]) for name in sorted(names)]
    own = {"run": {"dir"}, "data": {"train_file", "eval_file"}, "train": {"steps"}}
    assert all(config.model_dump(exclude=own) == configs[0].model_dump(exclude=own) for config in configs)
    assert len({config.data.train_file for config in configs}) == 15
    for config in configs:  # a model trained on one family of splits must not be tested on another
        assert config.data.eval_file == str(config.data.train_file).replace("train", "test")


def test_the_released_files_have_the_names_and_rows_of_the_configs(shared_data: Path) -> None:
    splits = shared_data / "medr1_splits"
    for name in set(MODALITIES) - {"mri"}:  # its training file is not in the shared data
        config = load_config([CONFIGS / f"medr1/modality_{name}.yaml"])
        files = [str(file).removeprefix("Splits/") for file in (config.data.train_file, config.data.eval_file)]
        rows, _ = (json.loads((splits / file).read_text()) for file in files)
        assert config.train.steps == len(rows) // config.train.prompts_per_step


def test_the_supervised_baseline_lies_over_the_recipe() -> None:
    config = load_config([CONFIGS / "medr1/modality_ct.yaml", CONFIGS / "bases/medr1_sft.yaml"])
    assert (config.objective, config.learner.learning_rate, config.learner.schedule) == ("sft", 2e-5, "cosine")
    assert config.learner.warmup_steps == 0.1
    assert "reference model" not in dry_run(config)


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
