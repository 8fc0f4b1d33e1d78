"""A save that would fail is found out before the first step."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from medr1_ray.config import Config
from medr1_ray.model.shape import read_shape
from medr1_ray.run import rehearsal as module
from medr1_ray.run.rehearsal import rehearse_checkpoint
from medr1_ray.sizing.memory import checkpoint_bytes

Usage = namedtuple("Usage", ["total", "used", "free"])


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config.model_validate(
        {
            "run": {"dir": str(tmp_path / "run"), "save_every": 2, "keep_checkpoints": 2},
            "data": {"format": "phantoms", "root": "x"},
            "train": {"steps": 10},
        }
    )


def test_a_rehearsal_leaves_nothing(config: Config) -> None:
    folder = config.run.dir / "checkpoints"
    rehearse_checkpoint(config, folder)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("there", "count"), [(0, 3), (1, 2), (5, 1)])
def test_the_disk_must_have_room_for_the_checkpoints_that_are_to_come(
    config: Config, monkeypatch: pytest.MonkeyPatch, there: int, count: int
) -> None:
    folder = config.run.dir / "checkpoints"
    for step in range(there):
        (folder / f"checkpoint-{step}").mkdir(parents=True)
    needed = count * checkpoint_bytes(config, read_shape(config.model.folder))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: Usage(0, 0, needed))
    rehearse_checkpoint(config, folder)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: Usage(0, 0, needed - 1))
    with pytest.raises(ValueError, match=rf"run\.dir='.*/run': its disk has .* GiB free, and {count} checkpoints of 0"):
        rehearse_checkpoint(config, folder)


def test_a_folder_that_cannot_be_written_is_refused(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    (config.run.dir).mkdir()
    (config.run.dir / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(ValueError, match=r"run\.dir='.*': a checkpoint cannot be written there .*; give another run"):
        rehearse_checkpoint(config, config.run.dir / "checkpoints")
    (config.run.dir / "checkpoints").unlink()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(ValueError, match=r"cannot be written there \(\[Errno 28\] No space left on device\)"):
        rehearse_checkpoint(config, config.run.dir / "checkpoints")
    assert list((config.run.dir / "checkpoints").iterdir()) == []
