"""Planning: which trainings a matrix has, and that methods differ in the method alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.helpers.matrix.settings import NAMES, Trained, load_matrix_settings, overrides, rows
from medr1_ray.config.loading import load_config
from medr1_ray.types import Mode
from tests.repository import REPOSITORY

MATRICES = REPOSITORY / "configs" / "matrix"


@pytest.mark.parametrize(
    ("file", "models"),
    [("phantoms", 2 * (8 + 5 + 8)), ("omnimedvqa", 2 * 2 * (8 + 5))],
)
def test_the_experiments_have_the_matrices_of_the_paper(file: str, models: int) -> None:
    planned = list(rows(load_matrix_settings(MATRICES / f"{file}.yaml")))
    assert len({row.slug for row in planned}) == len(planned) == models


@pytest.mark.parametrize(
    ("file", "mode", "weighted"),
    [("phantoms", "think", False), ("omnimedvqa", "think", False), ("phantoms", "no_think", True)],
)
def test_methods_differ_in_nothing_that_the_data_depend_on(file: str, mode: Mode, weighted: bool) -> None:
    settings = load_matrix_settings(MATRICES / f"{file}.yaml")
    for name in NAMES["modality"]:
        made = {
            method: load_config(
                [REPOSITORY / path for path in settings.configs],
                overrides(settings, Trained("modality", mode, method, name)),
            )
            for method in settings.methods
        }
        assert made["grpo"].data == made["sft"].data
        assert made["grpo"].data.modalities == (name,)
        assert bool(made["grpo"].data.sampling_weights) == weighted
        assert made["grpo"].mode == made["sft"].mode == mode
        assert made["grpo"].train.seed == made["sft"].train.seed
        assert (made["grpo"].train.steps, made["grpo"].train.prompts_per_step) == (
            made["sft"].train.steps,
            made["sft"].train.prompts_per_step,
        )
        assert made["grpo"].run.dir != made["sft"].run.dir


def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    file = tmp_path / "m.yaml"
    file.write_text("out: x\nconfigs: [a.yaml]\nmethods: {grpo: {command: tain}}\naxes: {no_think: {modality: []}}\n")
    with pytest.raises(ValueError, match=r"methods\.grpo\.command"):
        load_matrix_settings(file)


def test_of_several_wrong_keys_each_is_named_and_the_right_ones_once(tmp_path: Path) -> None:
    file = tmp_path / "m.yaml"
    file.write_text("outt: x\nconfig: [a.yaml]\nmethods: {grpo: {command: sft}}\naxes: {no_think: {modality: []}}\n")
    with pytest.raises(ValueError, match=r"outt is not a setting; did you mean out\? .*; config is not a s") as caught:
        load_matrix_settings(file)
    assert str(caught.value).count("the top level has: out, configs, methods") == 1
