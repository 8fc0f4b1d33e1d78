"""A run writes into its own directory only, and is resumed as the run that it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medr1_ray.config import Config
from medr1_ray.records.directory import open_run_directory


def _config(directory: Path, **sections: dict[str, Any]) -> Config:
    settings: dict[str, Any] = {
        "run": {"dir": directory},
        "data": {"format": "phantoms", "root": "p"},
        "train": {"steps": 4},
    }
    for section, values in sections.items():
        settings[section] = {**settings.get(section, {}), **values}
    return Config.model_validate(settings)


def test_a_second_run_in_the_same_place_is_refused(tmp_path: Path) -> None:
    open_run_directory(_config(tmp_path), resume=False)
    with pytest.raises(ValueError, match="--resume"):
        open_run_directory(_config(tmp_path), resume=False)


def test_resuming_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run to resume"):
        open_run_directory(_config(tmp_path), resume=True)


def test_a_resumed_run_may_go_on_for_longer(tmp_path: Path) -> None:
    open_run_directory(_config(tmp_path), resume=False)
    open_run_directory(_config(tmp_path, train={"steps": 8}, rollout={"actors": 2}), resume=True)


@pytest.mark.parametrize(
    ("section", "values", "key"),
    [
        ("learner", {"learning_rate": 1e-3}, "learner.learning_rate"),
        ("data", {"seed": 5}, "data.seed"),
        ("rollout", {"temperature": 0.5}, "rollout.temperature"),
        ("reward", {"functions": {"format": 1.0}}, "reward.functions is"),
    ],
)
def test_a_resumed_run_stays_the_same_run(
    tmp_path: Path, section: str, values: dict[str, Any], key: str
) -> None:
    open_run_directory(_config(tmp_path), resume=False)
    with pytest.raises(ValueError, match=key):
        open_run_directory(_config(tmp_path, **{section: values}), resume=True)


def test_neither_command_resumes_a_run_of_the_other(tmp_path: Path) -> None:
    supervised = _config(tmp_path).model_copy(update={"objective": "sft"})
    open_run_directory(supervised, resume=False)
    with pytest.raises(ValueError, match=r"objective is 'grpo', but the run .* was started with 'sft'"):
        open_run_directory(_config(tmp_path), resume=True)
