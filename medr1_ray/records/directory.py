"""Where a run writes: refuses a directory that belongs to another run, or that another process is writing to.

    runs/<name>/ config.yaml  metrics.jsonl  spans.jsonl  timeline.json  summary.json
                 rollouts/  recorded/  evaluations/  checkpoints/  logs/
                 earlier-<n>/   what a run left that ended before its first checkpoint

A run that has saved a checkpoint is continued with --resume. One that has not can be started again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from medr1_ray.base.writable_folder import require_writable
from medr1_ray.config import Config, require_lasting
from medr1_ray.config.loading import (
    changeable_settings,
    first_difference,
    load_config,
    without_secrets,
    write_config,
)
from medr1_ray.data.readers.manifest import MANIFEST_FILE
from medr1_ray.records.checkpoints import has_checkpoint, latest_checkpoint
from medr1_ray.records.file_lock import FileLock

LOCK_FILE = ".lock"
# What a run leaves of its training; its settings are written anew, and its logs go on.
_OF_A_TRAINING = (
    *("metrics*.jsonl", "spans.jsonl", "timeline*.json", "summary.json"),
    *("rollouts", "recorded", "evaluations"),
)
_OF_TRACKERS = ("wandb", "wandb_id", "tensorboard")
_CONFIG_FILE = "config.yaml"
_OF_OTHERS = {
    "config.json": "a model",
    MANIFEST_FILE: "prepared data",
    "QA_information": "data in OmniMedVQA's layout",
    "settings.json": "an evaluation or a matrix",
}


@dataclass(frozen=True)
class RunDirectory:
    """A run directory; all paths are absolute, because actors have other working directories.

    Once opened it is locked for this process, until `close`. `set_aside` is the folder with the files of a run that
    ended before its first checkpoint.
    """

    path: Path
    set_aside: Path | None = None
    _lock: FileLock | None = field(default=None, repr=False)

    @property
    def config(self) -> Path:
        return self.path / _CONFIG_FILE

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluations"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def close(self) -> None:
        if self._lock is not None:
            self._lock.release()


def check_run_directory(config: Config, *, resume: bool) -> RunDirectory:
    """Check that a new run may use its directory, or that it holds the run to resume; creates nothing.

    Raises:
        ValueError: the directory cannot be made, is in use, would go with a Ray job, or holds a model or data; a new
            run's directory holds a run with a checkpoint; a run to resume is not there or has no checkpoint, or
            settings that make the run what it is were changed.
    """
    require_lasting("run.dir", config.run.dir)
    directory = RunDirectory(config.run.dir.absolute())
    require_writable(f"run.dir={str(config.run.dir)!r}", directory.path)
    _require_own(config, directory, resume=resume)
    if (directory.path / LOCK_FILE).exists():
        lock_directory(config, directory).release()
    if resume:
        _check_same_run(config, directory)
        latest_checkpoint(directory.checkpoints)
    elif has_checkpoint(directory.checkpoints):
        saved = latest_checkpoint(directory.checkpoints).name
        raise ValueError(
            f"run.dir={str(config.run.dir)!r} holds a run already ({saved}); continue it with --resume, choose another "
            "run.dir, or delete it"
        )
    return directory


def open_run_directory(config: Config, *, resume: bool) -> RunDirectory:
    """Create and lock the directory of a new run, or open that of a run to resume.

    Raises:
        ValueError: as `check_run_directory`, or the directory cannot be written.
    """
    directory = check_run_directory(config, resume=resume)
    try:
        directory.path.mkdir(parents=True, exist_ok=True)
        lock = lock_directory(config, directory)
        aside = None if resume else set_aside(directory)
        directory.logs.mkdir(exist_ok=True)
        directory.checkpoints.mkdir(exist_ok=True)
        write_config(config, directory.config)
    except OSError as error:
        raise ValueError(
            f"run.dir={str(config.run.dir)!r} cannot be written ({error.strerror}); choose a folder that can"
        ) from error
    return RunDirectory(directory.path, aside, lock)


def _require_own(config: Config, directory: RunDirectory, *, resume: bool) -> None:
    """Raise ValueError where a run would write among files that are of another kind, or over somebody's own."""
    given = f"run.dir={str(config.run.dir)!r}"
    for name, what in _OF_OTHERS.items():
        if (directory.path / name).exists():
            raise ValueError(f"{given} holds {what} ({name}); choose another folder, for the run alone")
    # What a run of ours left has its lock; what a new run would replace or move aside must not be of others.
    if not resume and not (directory.path / LOCK_FILE).exists() and not has_checkpoint(directory.checkpoints):
        names = (_CONFIG_FILE, *_OF_A_TRAINING, *_OF_TRACKERS)
        if found := sorted(path.name for name in names for path in directory.path.glob(name)):
            raise ValueError(
                f"{given} has a {found[0]!r} that no run left there, and this one would write its own; choose another "
                "folder, for the run alone"
            )
    # Phantoms are drawn into folders of their own.
    if config.data.format != "phantoms" and config.data.root.resolve() == directory.path.resolve():
        raise ValueError(f"{given} is data.root too; choose another folder, for the run alone")


def lock_directory(config: Config, directory: RunDirectory) -> FileLock:
    """Lock a run's directory, which is there, for this process. Raises ValueError where another one has it."""
    try:
        return FileLock(directory.path / LOCK_FILE)
    except BlockingIOError as error:
        raise ValueError(
            f"run.dir={str(config.run.dir)!r} is in use by {error}; wait for it, stop it, or choose another run.dir"
        ) from None


def set_aside(directory: RunDirectory) -> Path | None:
    """Move what a run left of its training but checkpoints; return the folder, or None if there is nothing."""
    left = [path for pattern in (*_OF_A_TRAINING, *_OF_TRACKERS) for path in directory.path.glob(pattern)]
    # `rollouts` and `evaluations` are made before anything is trained.
    if not any(path.is_file() or any(path.iterdir()) for path in left):
        return None
    target = next(folder for n in count(1) if not (folder := directory.path / f"earlier-{n}").exists())
    target.mkdir()
    for path in left:
        path.rename(target / path.name)
    return target


def _check_same_run(config: Config, directory: RunDirectory) -> None:
    if not directory.config.exists():
        raise ValueError(
            f"run.dir={str(config.run.dir)!r} holds no run to resume ({directory.config.name} is missing); "
            + (
                f"bring {directory.config.name} back, or start a new run from a checkpoint of it (model.path)"
                if has_checkpoint(directory.checkpoints)
                else "start without --resume"
            )
        )
    check_same_run(config, directory.config, str(directory.path))


def check_same_run(config: Config, recorded: Path, where: str) -> None:
    """Raise ValueError where the settings recorded of the run in `where` are not those of the run to resume."""
    before = load_config([recorded], as_recorded=True)
    found = first_difference(before, without_secrets(_with_model_path_of(before, config)), changeable=False)
    if found:
        raise ValueError(
            f"{found.key} is {found.now!r}, but the run in {where} was started with {found.before!r}; a "
            f"resumed run may change only {', '.join(changeable_settings())}. Set it back, or start a new run"
        )


def _with_model_path_of(before: Config, config: Config) -> Config:
    """Return the settings with the model's path as it was, if the path given now leads to the same folder."""
    if config.model.folder.resolve() != before.model.folder.resolve():
        return config
    return config.model_copy(update={"model": config.model.model_copy(update={"path": before.model.path})})
