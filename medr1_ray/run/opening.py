"""The door to a session. What is wrong is refused before Ray and the learner are imported, which takes seconds."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from medr1_ray.config import Config
from medr1_ray.run.start_checks import check_start

if TYPE_CHECKING:
    from medr1_ray.pool.shared_actors import SharedActors
    from medr1_ray.run.session import Session


def open_session(
    config: Config, *, resume: bool, engines: SharedActors | None = None
) -> AbstractContextManager[Session]:
    """Check settings, data and model; return what starts a session on entering and ends it on leaving
    (`startup.started_session`).

    Raises:
        ValueError: a setting, the data or the model is not usable; nothing has been started.
    """
    dataset = check_start(config, resume=resume)
    from medr1_ray.run.startup import started_session

    return started_session(config, dataset, resume=resume, engines=engines)
