"""Where a run writes: refuses a directory that belongs to another run.

    runs/<name>/ config.yaml  metrics.jsonl  spans.jsonl  timeline.json  summary.json
                 rollouts/  evaluations/  checkpoints/  logs/
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medr1_ray.config import Config
from medr1_ray.config.loading import changeable_settings, first_difference, load_config, write_config


@dataclass(frozen=True)
class RunDirectory:
    """An opened run directory; all paths are absolute, because actors have other working directories."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluations"

    @property
    def logs(self) -> Path:
        return self.path / "logs"


def check_run_directory(config: Config, *, resume: bool) -> RunDirectory:
    """Check that a new run may use its directory, or that it holds the run to resume; creates nothing.

    Raises:
        ValueError: a new run's directory holds a run already, a run to resume is not there, or settings that make
            the run what it is were changed.
    """
    directory = RunDirectory(config.run.dir.absolute())
    if resume:
        _check_same_run(config, directory)
    elif directory.config.exists():
        raise ValueError(
            f"run.dir={str(config.run.dir)!r} holds a run already; continue it with --resume, choose another run.dir, "
            "or delete it"
        )
    return directory


def open_run_directory(config: Config, *, resume: bool) -> RunDirectory:
    """Create the directory of a new run, or open that of a run to resume.

    Raises:
        ValueError: as `check_run_directory`, or the directory cannot be written.
    """
    directory = check_run_directory(config, resume=resume)
    try:
        directory.logs.mkdir(parents=True, exist_ok=True)
        directory.checkpoints.mkdir(exist_ok=True)
        write_config(config, directory.config)
    except OSError as error:
        raise ValueError(
            f"run.dir={str(config.run.dir)!r} cannot be written ({error.strerror}); choose a folder that can"
        ) from error
    return directory


def _check_same_run(config: Config, directory: RunDirectory) -> None:
    if not directory.config.exists():
        raise ValueError(
            f"run.dir={str(config.run.dir)!r} holds no run to resume ({directory.config.name} is missing); "
            "start without --resume"
        )
    before = load_config([directory.config])
    found = first_difference(before, config, changeable=False)
    if found:
        raise ValueError(
            f"{found.key} is {found.now!r}, but the run in {directory.path} was started with {found.before!r}; a "
            f"resumed run may change only {', '.join(changeable_settings())}. Set it back, or start a new run"
        )
