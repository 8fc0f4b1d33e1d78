"""The settings of a cluster's benchmark: what is replaced of the user's, and what is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.helpers.cluster.modes import modes
from benchmarks.helpers.cluster.settings import WARM_UP, make_plan
from medr1_ray.config import tiny_model_path
from tests.repository import REPOSITORY

CONFIGS = REPOSITORY / "configs"
TINY = CONFIGS / "phantom_cpu.yaml"


def test_without_a_file_it_is_the_2b_shape_with_a_step_that_fits_the_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    plan = make_plan([], [f"run.dir={tmp_path}"], 16, 3)
    assert plan.shape == CONFIGS / "models" / "qwen2_vl_2b"
    assert plan.config.model.path == str(tmp_path / "model")
    assert (plan.config.model.dtype, plan.config.train.prompts_per_step) == ("bfloat16", 64)
    assert make_plan([], ["train.prompts_per_step=8"], 16, 3).config.train.prompts_per_step == 8
    assert make_plan([], [], 1, 3).out == REPOSITORY / "runs" / "cluster"


def test_of_a_file_model_data_and_rewards_are_replaced_and_the_rest_counts(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(
        f"base: {TINY}\nrun: {{dir: training, storage: 's3://bucket/x', wandb: online}}\nrollout: {{max_tokens: 17}}\n"
        "data: {modalities: [CT], image_size: 112}\nlearner: {learning_rate: 3.0e-5, warmup_steps: 20}\n"
    )
    plan = make_plan([file], [f"run.dir={tmp_path / 'out'}"], 0, 3)
    config = plan.config
    assert (plan.shape, plan.makes_data) == (tiny_model_path(), True)
    assert (config.data.format, config.data.root) == ("omnimedvqa", tmp_path / "out" / "data")
    assert config.data.modalities == ()
    assert (config.data.image_size, config.rollout.max_tokens, config.learner.learning_rate) == (112, 17, 3e-5)
    assert config.reward.functions == {"benchmarks.helpers.rewards:coin": 1.0}
    assert (config.run.storage, config.run.wandb, config.run.save_minutes) == (None, "off", 0)
    # A training's folder is not written to.
    assert make_plan([file], [], 0, 3).out == Path("runs/cluster").absolute()


def test_model_and_data_given_by_themselves_are_used(tmp_path: Path) -> None:
    given = [f"model.path={tmp_path / 'mine'}", f"data.root={tmp_path / 'questions'}", "data.format=omnimedvqa"]
    plan = make_plan([TINY], given, 0, 3)
    assert (plan.shape, plan.makes_data) == (None, False)
    assert (plan.config.model.folder, plan.config.data.root) == (tmp_path / "mine", tmp_path / "questions")
    # Of a trained model, the gap between engine and learner is held to the usual limit.
    assert plan.config.gap_mean_limit == 1e-3


def test_a_mode_runs_in_a_folder_of_its_own_for_as_many_steps_as_are_taken(tmp_path: Path) -> None:
    plan = make_plan([TINY], [f"run.dir={tmp_path}", "train.minibatches=2"], 0, 3)
    for mode in modes(0, plan.config, plan.fixed):
        config = plan.config_of(mode)
        assert config.run.dir == tmp_path / "modes" / mode.folder
        assert config.train.steps == 2 * (WARM_UP + mode.max_staleness + 3)
        assert (config.train.max_staleness, config.rollout.actors) == (mode.max_staleness, mode.engines)


def test_a_jobs_results_must_outlive_its_copy_of_the_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    job = {"runtime_env": {"working_dir": "gcs://x.zip"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    with pytest.raises(ValueError, match=r"^run\.dir='runs/cluster' lies in this Ray job's .*run\.dir=/mnt"):
        make_plan([TINY], [], 0, 3)
    assert make_plan([TINY], ["run.dir=/mnt/shared/x"], 0, 3).out == Path("/mnt/shared/x")
