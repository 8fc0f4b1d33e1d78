"""A training session whose steps are taken one at a time, for the benchmarks of the whole step."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from shapes import WORK, Shape, run_config

from medr1_ray.config import Config


@dataclass(frozen=True)
class Step:
    """Wall-clock seconds of one round of the loop, and of the driver's phases in it."""

    seconds: float
    phases: dict[str, float]


def step_config(shape: Shape, name: str, max_staleness: int, threads: int, *overrides: str) -> Config:
    """Engines of one thread each; the learner has all cores, alone when synchronous. Empties the run directory."""
    name = f"{name}-{max_staleness}"
    shutil.rmtree(WORK / "runs" / name, ignore_errors=True)
    threads_of_each = [f"rollout.actors={threads}", f"learner.threads={threads}"]
    return run_config(shape, name, [f"train.max_staleness={max_staleness}", *threads_of_each, *overrides])


@contextmanager
def our_steps(config: Config) -> Iterator[Callable[[], Step]]:
    """A running session; each call is one round of `train.py`'s loop."""
    from medr1_ray.startup import open_session

    with open_session(config, resume=False) as session:
        session.sync_weights()

        def step() -> Step:
            before = dict(session.totals.seconds)
            start = time.perf_counter()
            groups = session.take_groups()
            report = session.update(groups)
            session.sync_weights()
            session.log_step(groups, report)
            seconds = time.perf_counter() - start
            after = session.totals.seconds
            return Step(seconds, {name: value - before.get(name, 0.0) for name, value in after.items()})

        yield step
