"""A lane of a matrix experiment: a process that trains one model after the other on the same engines.

A process for each lane, since a process has one Ray cluster at a time. Engines are kept from one training to the next,
until one needs others (Think and No-Think differ in their lengths) or has failed.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import threading
import time
from contextlib import ExitStack
from multiprocessing.connection import wait
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.matrix_settings import MatrixSettings, Trained, overrides, run_directory
from medr1_ray.config import Config
from medr1_ray.config.loading import load_config

if TYPE_CHECKING:
    from medr1_ray.pool.shared_actors import Engines

LOG_LINES = 15


class _Kept:
    """This process's engines."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._engines: Engines | None = None
        self._number = 0
        # A child of multiprocessing runs no `atexit`, where Ray would end its cluster.
        Finalize(None, self.end, exitpriority=1)

    def engines(self, config: Config, folder: Path) -> Engines | None:
        """Those that are up where they fit, else new ones, which log to `folder`; None where each training brings its
        own, since they share the learner's GPUs."""
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
    """End this process when the one that started it is gone, however it went: it would wait for work for ever, and its
    engines with it. Ray's processes end with their driver."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def train_row(settings: MatrixSettings, row: Trained) -> float:
    """Train a row's model in this process, or go on with it from its last checkpoint; returns seconds.

    Raises:
        RuntimeError: the training failed, with the end of its log.
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
        _kept.end()
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
    if directory.exists() and not begun:
        shutil.rmtree(directory)  # cut off before its first checkpoint: there is nothing to go on from
    command = settings.methods[row.method].command
    objective = ["objective=sft"] if command == "sft" else []
    config = load_config(settings.configs, [*overrides(settings, row), *objective])
    engines = kept.engines(config, settings.out / "engines")
    (sft if command == "sft" else train)(config, resume=begun, engines=engines)


def _write_output_to(path: Path) -> None:
    """What this process prints from now on, and what the processes print that it starts."""
    sys.stdout.flush()
    sys.stderr.flush()
    with path.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
