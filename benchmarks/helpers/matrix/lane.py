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
from multiprocessing.connection import wait
from pathlib import Path

from benchmarks.helpers.kept_engines import KeptEngines
from benchmarks.helpers.matrix.settings import MatrixSettings, Trained, overrides, run_directory
from medr1_ray.config.loading import load_config

LOG_LINES = 15


_kept: KeptEngines | None = None


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
    _kept = _kept or KeptEngines()
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


def _train(settings: MatrixSettings, row: Trained, kept: KeptEngines) -> None:
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
