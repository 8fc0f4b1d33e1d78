"""Paths in a Ray job: its working directory is a temporary copy that Ray makes of `--working-dir`.

Ray leaves out of it what .gitignore lists, such as `data/` and `models/`, and deletes it some time after the job.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

# Ray's name of the variable (2.60), whose value is JSON; `ray job submit` sets it in the job's driver.
_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def in_ray_job() -> bool:
    """Return whether this process is the driver of a Ray job."""
    return _JOB_VARIABLE in os.environ


def require_lasting(key: str, folder: Path) -> None:
    """Check that results written to `folder`, given as `key`, do not go with the copy.

    Raises:
        ValueError: this is a Ray job, and the folder lies in its copy.
    """
    if _in_copy(folder):
        raise ValueError(
            f"{key}={str(folder)!r} lies in this Ray job's temporary copy of --working-dir, where results would be "
            f"lost; give an absolute path in a folder that all nodes share, e.g. {key}={_shared(folder)}"
        )


def require_copied(key: str, path: Path) -> None:
    """Check that what is read from `path`, given as `key`, came into the copy, if it should lie there.

    Raises:
        ValueError: this is a Ray job, and its copy lacks the path.
    """
    if _in_copy(path) and not path.exists():
        raise ValueError(
            f"{key}={str(path)!r} is not in this Ray job's temporary copy of --working-dir (Ray leaves out what "
            f".gitignore lists); give an absolute path in a folder that all nodes share, e.g. {key}={_shared(path)}"
        )


def _in_copy(path: Path) -> bool:
    job = json.loads(os.environ.get(_JOB_VARIABLE, "{}"))
    if not job.get("runtime_env", {}).get("working_dir"):
        return False
    # A relative path that leads out of the copy ends among Ray's own temporary files.
    return not path.is_absolute() or Path(os.path.normpath(path)).is_relative_to(Path.cwd())


def _shared(path: Path) -> Path:
    inside = Path(os.path.relpath(path)).parts
    return Path("/mnt/shared", *(part for part in inside if part != ".."))
