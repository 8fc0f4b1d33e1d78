"""A run writes into its own directory only, and is resumed as the run that it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medr1_ray.config import Config
from medr1_ray.records.directory import RunDirectory, check_run_directory, open_run_directory


def _config(directory: Path, **sections: dict[str, Any]) -> Config:
    settings: dict[str, Any] = {
        "run": {"dir": directory},
        "data": {"format": "phantoms", "root": "p"},
        "train": {"steps": 4},
    }
    for section, values in sections.items():
        settings[section] = {**settings.get(section, {}), **values}
    return Config.model_validate(settings)


def opened(config: Config, *, resume: bool = False) -> RunDirectory:
    """Open a directory as a run does, and leave it as one that has ended."""
    directory = open_run_directory(config, resume=resume)
    directory.close()
    return directory


def saved(config: Config) -> None:
    """Leave a run with a checkpoint."""
    directory = opened(config)
    (directory.checkpoints / "checkpoint-2").mkdir()
    (directory.checkpoints / "latest").write_text("checkpoint-2\n")


def test_a_second_run_in_the_same_place_is_refused(tmp_path: Path) -> None:
    saved(_config(tmp_path))
    with pytest.raises(ValueError, match=r"holds a run already \(checkpoint-2\); continue it with --resume"):
        open_run_directory(_config(tmp_path), resume=False)


def test_a_run_that_ended_before_its_first_checkpoint_can_be_started_again(tmp_path: Path) -> None:
    first = opened(_config(tmp_path))
    (tmp_path / "rollouts").mkdir()
    (first.logs / "rollout-0.log").touch()
    again = opened(_config(tmp_path, train={"seed": 1}))
    assert again.set_aside is None, "nothing was trained"
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "mine.txt").touch()
    for n in (1, 2):
        third = opened(_config(tmp_path, train={"seed": 2}))
        assert third.set_aside == tmp_path / f"earlier-{n}"
        assert (third.set_aside / "metrics.jsonl").exists()
        assert not (tmp_path / "metrics.jsonl").exists()
        assert (tmp_path / "mine.txt").exists()
        (tmp_path / "metrics.jsonl").write_text("{}\n")


@pytest.mark.parametrize("name", ["config.yaml", "metrics.2024.jsonl", "rollouts/mine.txt", "wandb/x"])
def test_files_that_no_run_left_are_neither_replaced_nor_moved(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    top = name.partition("/")[0]
    with pytest.raises(ValueError, match=rf"has a '{top}' that no run left there, .*; choose another folder"):
        open_run_directory(_config(tmp_path), resume=False)
    assert (tmp_path / name).read_text() == "mine"
    # Others are in nobody's way.
    (tmp_path / name).rename(tmp_path / "notes.txt")
    if top != name:
        (tmp_path / top).rmdir()
    opened(_config(tmp_path))


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    running = open_run_directory(_config(tmp_path), resume=False)
    for resume in (False, True):
        with pytest.raises(ValueError, match=r"is in use by process \d+ on .*; wait for it, stop it"):
            check_run_directory(_config(tmp_path), resume=resume)
    running.close()
    check_run_directory(_config(tmp_path), resume=False)


def test_a_directory_that_cannot_be_made_is_refused_and_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match=r"cannot be made: .*file is a file; choose another folder"):
            check_run_directory(_config(place), resume=False)
    check_run_directory(_config(tmp_path / "a" / "b"), resume=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_run_is_resumed_with_its_data_and_model_under_other_paths(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (tmp_path / "link").symlink_to(model)
    run = tmp_path / "run"
    saved(_config(run, model={"path": str(model)}))
    opened(_config(run, model={"path": str(tmp_path / "link")}, data={"root": "elsewhere"}), resume=True)
    with pytest.raises(ValueError, match=r"model\.path is"):
        opened(_config(run, model={"path": "other"}), resume=True)


def test_a_run_without_a_checkpoint_is_not_resumed(tmp_path: Path) -> None:
    opened(_config(tmp_path))
    with pytest.raises(ValueError, match=r"no checkpoint to resume from in .* Start without --resume"):
        check_run_directory(_config(tmp_path), resume=True)


def test_resuming_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run to resume"):
        open_run_directory(_config(tmp_path), resume=True)


def test_secrets_are_not_written_and_may_differ_in_a_resumed_run(tmp_path: Path) -> None:
    def secret(word: str) -> dict[str, Any]:
        return {"rollout": {"engine": {"hf_token": word}}, "prompt": {"system": f"https://me:{word}@example.org"}}

    saved(_config(tmp_path, **secret("hf_one")))
    assert "hf_one" not in (tmp_path / "config.yaml").read_text()
    opened(_config(tmp_path, **secret("hf_two")), resume=True)
    other = {"prompt": {"system": "https://me:hf_two@example.com"}}
    with pytest.raises(ValueError, match=r"prompt\.system is .*\.com.* was started with .*\.org") as error:
        opened(_config(tmp_path, **other), resume=True)
    assert "hf_two" not in str(error.value)


def test_a_resumed_run_may_go_on_for_longer(tmp_path: Path) -> None:
    saved(_config(tmp_path))
    opened(_config(tmp_path, train={"steps": 8}, rollout={"actors": 2}), resume=True)


@pytest.mark.parametrize(
    ("section", "values", "key"),
    [
        ("learner", {"weight_decay": 0.1}, "learner.weight_decay"),
        ("data", {"seed": 5}, "data.seed"),
        ("rollout", {"temperature": 0.5}, "rollout.temperature"),
        ("reward", {"functions": {"format": 1.0}}, "reward.functions is"),
    ],
)
def test_a_resumed_run_stays_the_same_run(
    tmp_path: Path, section: str, values: dict[str, Any], key: str
) -> None:
    saved(_config(tmp_path))
    with pytest.raises(ValueError, match=key):
        open_run_directory(_config(tmp_path, **{section: values}), resume=True)


def test_neither_command_resumes_a_run_of_the_other(tmp_path: Path) -> None:
    supervised = _config(tmp_path).model_copy(update={"objective": "sft"})
    saved(supervised)
    with pytest.raises(ValueError, match=r"objective is 'grpo', but the run .* was started with 'sft'"):
        open_run_directory(_config(tmp_path), resume=True)
