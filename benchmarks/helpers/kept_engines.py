"""Engines and reward actors that are kept from one run of this process to the next."""

from __future__ import annotations

import os
from contextlib import ExitStack
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING

from medr1_ray.config import Config

if TYPE_CHECKING:
    from medr1_ray.pool.shared_actors import SharedActors


class KeptEngines:
    """The engines and reward actors of this process."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._engines: SharedActors | None = None
        self._number = 0
        # Ray ends its cluster in an `atexit` handler, which child processes of multiprocessing do not run.
        Finalize(None, self.end, exitpriority=1)

    def engines(self, config: Config, folder: Path) -> SharedActors | None:
        """Return the running engines if they fit `config`, else new ones, which log to a new folder in `folder`.

        None where engines share the learner's GPUs (`cluster.colocated`): each training then starts its own.
        """
        from medr1_ray.pool.shared_actors import open_engines

        if config.cluster.colocated:
            self.end()
            return None
        if self._engines is not None:
            try:
                self._engines.require_fit(config)
            except ValueError:
                self.end()
        if self._engines is None:
            self._number += 1
            run = config.run.model_copy(update={"dir": folder / f"{os.getpid()}-{self._number}"})
            self._engines = self._open.enter_context(open_engines(config.model_copy(update={"run": run})))
        return self._engines

    def end(self) -> None:
        self._engines = None
        self._open.close()
