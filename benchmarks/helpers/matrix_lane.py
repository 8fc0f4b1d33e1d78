"""A lane of a matrix experiment: a process that trains one model after another on the same engines.

One process per lane, because a process can be connected to only one Ray cluster at a time. Engines and reward actors
are kept from one training to the next, until a training needs different ones (Think and No-Think differ in their
lengths) or fails.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from contextlib import ExitStack
from multiprocessing.connection import wait
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.helpers.matrix_settings import MatrixSettings, Trained, overrides, run_directory
from medr1_ray.config import Config
from medr1_ray.config.loading import load_config

if TYPE_CHECKING:
    from medr1_ray.pool.shared_actors import SharedActors

LOG_LINES = 15


class _Kept:
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


_kept: _Kept | None = None


def end_with_parent() -> None:
    """End this process when its parent has ended, even by SIGKILL.

    It would otherwise wait for work indefinitely and keep its engines alive. Ray's processes end with their driver.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)  # `sys.exit` would only end this thread

    threading.Thread(target=watch, daemon=True).start()


def train_row(settings: MatrixSettings, row: Trained) -> float:
    """Train a row's model in this process, resuming from its last checkpoint if it has one; return the seconds.

    Raises:
        RuntimeError: the training failed; the message includes the end of its log.
    """
    global _kept
    _kept = _kept or _Kept()
    start = time.monotonic()
    log = settings.out / "logs" / f"{row.slug}.log"
    log.parent.mkdir(exist_ok=True)
    _write_output_to(log)
    try:
        _train(settings, row, _kept)
    except BaseException as error:
        _kept.end()  # the actors may still be working for the failed training
        if not isinstance(error, Exception):
            raise
        print(f"{type(error).__name__}: {error}", flush=True)
        last = "\n".join(log.read_text().splitlines()[-LOG_LINES:])
        raise RuntimeError(f"the training of {row.slug} failed ({log}):\n{last}") from None
    return round(time.monotonic() - start, 1)


def _train(settings: MatrixSettings, row: Trained, kept: _Kept) -> None:
    from medr1_ray.sft import sft
    from medr1_ray.train import train

    directory = run_directory(settings, row)
    begun = (directory / "checkpoints" / "latest").exists()
    command = settings.methods[row.method].command
    objective = ["objective=sft"] if command == "sft" else []
    config = load_config(settings.configs, [*overrides(settings, row), *objective])
    engines = kept.engines(config, settings.out / "engines")
    (sft if command == "sft" else train)(config, resume=begun, engines=engines)


def _write_output_to(path: Path) -> None:
    """Redirect the output of this process, and of processes that it starts from now on, to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    # The descriptors rather than `sys.stdout`: engines and Ray's processes inherit them.
    with path.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
