"""The door to a session. A wrong setting is refused before Ray and the learner are imported, which takes seconds."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from medr1_ray.config import Config
from medr1_ray.run.start_checks import check_settings

if TYPE_CHECKING:
    from medr1_ray.pool.shared_actors import SharedActors
    from medr1_ray.run.session import Session


def open_session(
    config: Config, *, resume: bool, engines: SharedActors | None = None
) -> AbstractContextManager[Session]:
    """Check the settings; return what starts a session on entering and ends it on leaving (`startup.started_session`).

    Raises:
        ValueError: a setting is wrong; nothing has been started.
    """
    check_settings(config, resume=resume)
    from medr1_ray.run.startup import started_session

    return started_session(config, resume=resume, engines=engines)
