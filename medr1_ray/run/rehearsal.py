"""Rehearsing a save before the first step: what would end a run at its first checkpoint ends it at its start."""

from __future__ import annotations

import shutil
from pathlib import Path

from medr1_ray.config import Config
from medr1_ray.model.checkpoint_saving import rehearse_save
from medr1_ray.model.shape import read_shape
from medr1_ray.sizing.memory import checkpoint_bytes, checkpoints_at_once

GIB = 2**30


def rehearse_checkpoint(config: Config, folder: Path) -> None:
    """Find out whether the run's checkpoints can be saved in `folder`: room on the disk, permission, and format.

    Raises:
        ValueError: they cannot.
    """
    rehearsed = folder / ".rehearsal"
    try:
        rehearsed.mkdir(parents=True, exist_ok=True)
        rehearse_save(config.model.folder, rehearsed)
    except OSError as error:
        raise ValueError(
            f"run.dir={str(config.run.dir)!r}: a checkpoint cannot be written there ({error}); give another run.dir"
        ) from None
    finally:
        shutil.rmtree(rehearsed, ignore_errors=True)
    size = checkpoint_bytes(config, read_shape(config.model.folder))
    # A resumed run has some of them already.
    missing = max(1, checkpoints_at_once(config) - len(list(folder.glob("checkpoint-*"))))
    free = shutil.disk_usage(folder).free
    if free < missing * size:
        raise ValueError(
            f"run.dir={str(config.run.dir)!r}: its disk has {free / GIB:,.2f} GiB free, and {missing} checkpoints of "
            f"{size / GIB:,.2f} GiB are to be saved there; make room, give another run.dir, or lower "
            f"run.keep_checkpoints (now {config.run.keep_checkpoints})"
        )
