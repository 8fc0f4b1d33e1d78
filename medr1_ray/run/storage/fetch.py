"""Before a resume: what the storage has and run.dir lacks is brought there, whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from medr1_ray.base.manifest import MANIFEST_FILE
from medr1_ray.base.signs_of_life import still
from medr1_ray.config import Config
from medr1_ray.records.checkpoints import Checkpoints, has_checkpoint, latest_checkpoint, step_of
from medr1_ray.records.directory import (
    RunDirectory,
    check_run_directory,
    check_same_run,
    lock_directory,
    set_aside,
)
from medr1_ray.run.storage.objects import Storage
from medr1_ray.run.storage.owner import require_unowned
from medr1_ray.run.storage.stored_run import (
    CHECKPOINTS,
    download_files,
    read_config,
    require_no_run,
    stored_checkpoints,
)


def check_storage(config: Config, *, resume: bool) -> None:
    """Check that a run can write to its storage, and that a new one finds none there.

    Raises:
        ValueError: it cannot, or there is one.
    """
    storage = Storage.of(config)
    if storage is None:
        return
    storage.rehearse()
    if not resume:
        require_no_run(storage)


def would_bring(config: Config) -> str | None:
    """Return the checkpoint that `bring_newest` would try first; None also where the storage cannot be asked, which
    `check_storage` tells."""
    try:
        storage = Storage.of(config)
        newer = _newer_checkpoints(config, storage) if storage else []
    except ValueError:
        return None
    return newer[0] if newer else None


def bring_newest(config: Config, say: Callable[[str], None]) -> None:
    """Bring the storage's newest whole checkpoint, and the run's files, to run.dir, if that goes on from an older one.

    What run.dir has of an older training is moved to `earlier-<n>/`, except checkpoints. The checkpoint comes last: a
    start that is interrupted before does it all again.

    Raises:
        ValueError: run.dir cannot be used, the storage does not answer or holds another run, another process writes
            there, or neither of both has a whole checkpoint.
    """
    storage = Storage.of(config)
    if storage is None or not stored_checkpoints(storage):
        return
    directory = RunDirectory(config.run.dir.absolute())
    has_some = has_checkpoint(directory.checkpoints)
    check_run_directory(config, resume=has_some)
    partial = directory.path / ".from_storage"
    newer = _newer_checkpoints(config, storage)
    directory.path.mkdir(parents=True, exist_ok=True)
    lock = lock_directory(config, directory)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        _require_same_run(config, storage, partial)
        if not newer:
            return
        require_unowned(storage, say)
        for name in newer:
            say(f"bringing {name} from {storage}")
            with still(f"bringing {name} from {storage}"):
                damage = storage.download(f"{CHECKPOINTS}/{name}", partial / name)
            if damage is None:
                _put_in_place(config, storage, directory, partial, name, say)
                return
            say(f"{storage}: {name} is damaged and is not used: {damage}")
            shutil.rmtree(partial / name, ignore_errors=True)
        if not has_some:
            raise ValueError(
                f"{storage} has no whole checkpoint: {damage} in {name}. Bring one back there, or delete the run"
            )
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        lock.release()


def _newer_checkpoints(config: Config, storage: Storage) -> list[str]:
    """The checkpoints that are newer than the one from which run.dir goes on, in the order in which they are tried.

    None where run.dir has the first of them itself: it was rolled back from there, which stays so.
    """
    stored, here = stored_checkpoints(storage), config.run.dir / "checkpoints"
    if not stored or not has_checkpoint(here):
        return stored
    manifest = here / stored[0] / MANIFEST_FILE
    # Whole or not: where it is damaged, the one before is taken.
    if manifest.is_file() and manifest.read_bytes() == storage.read(f"{CHECKPOINTS}/{stored[0]}/{MANIFEST_FILE}"):
        return []
    # Later ones that are here are another past.
    goes_on_from = step_of(latest_checkpoint(here).name) or 0
    return [name for name in stored if (step_of(name) or 0) > goes_on_from]


def _require_same_run(config: Config, storage: Storage, partial: Path) -> None:
    """Before anything here is touched: the URL may be another run's."""
    if content := read_config(storage):
        recorded = partial / "config.yaml"
        recorded.write_bytes(content)
        check_same_run(config, recorded, str(storage))


def _put_in_place(
    config: Config, storage: Storage, directory: RunDirectory, partial: Path, name: str, say: Callable[[str], None]
) -> None:
    files = download_files(storage, partial / "files", say)
    if aside := set_aside(directory):
        say(f"{aside} has what was here of an older training of this run")
    for file in files:
        target = directory.path / file.relative_to(partial / "files")
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, target)
    directory.checkpoints.mkdir(exist_ok=True)
    Checkpoints(directory.checkpoints, config.run.keep_checkpoints).adopt(partial / name, name)
