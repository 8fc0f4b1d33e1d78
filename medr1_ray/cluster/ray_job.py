"""`ray job stop`: how long it leaves a job between SIGTERM and SIGKILL."""

from __future__ import annotations

import os

from medr1_ray.config import in_ray_job

# Ray's (2.60): read by the job's supervisor from its environment, which the job inherits.
_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
_DEFAULT_SECONDS = 3


def about_stopping() -> str | None:
    """Return what to say of a Ray job that `ray job stop` leaves Ray's default alone; None of any other process."""
    if not in_ray_job() or _VARIABLE in os.environ:
        return None
    return (
        f"`ray job stop` kills this job {_DEFAULT_SECONDS} s after it asks it to stop, which may be in the middle of "
        "an update or a save; for more, submit it with "
        f"""--runtime-env-json '{{"env_vars": {{"{_VARIABLE}": "300"}}}}'"""
    )
