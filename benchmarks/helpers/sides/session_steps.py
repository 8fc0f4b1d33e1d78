"""A training session that runs one step at a time, for the benchmarks of the whole step."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.helpers.shapes import WORK, Shape, run_config
from medr1_ray.config import Config

if TYPE_CHECKING:
    from medr1_ray.run.session import Session


@dataclass(frozen=True)
class Step:
    """Wall-clock seconds of one iteration of the training loop, and of the driver's phases in it."""

    seconds: float
    phases: dict[str, float]


def step_config(shape: Shape, name: str, max_staleness: int, threads: int, *overrides: str) -> Config:
    """Return settings with `threads` single-threaded engines and a learner of `threads` threads.

    Empties the run directory. In a synchronous run (`max_staleness` 0) engines and learner take turns, so each has all
    cores to itself.
    """
    name = f"{name}-{max_staleness}"
    shutil.rmtree(WORK / "runs" / name, ignore_errors=True)
    threads_of_each = [f"rollout.actors={threads}", f"learner.threads={threads}"]
    return run_config(shape, name, [f"train.max_staleness={max_staleness}", *threads_of_each, *overrides])


class OurSteps:
    """A running session that is advanced by one iteration of `medr1_ray/train.py`'s loop at a time."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def take(self) -> Step:
        """Run one iteration."""
        session = self._session
        before = dict(session.totals.seconds)
        start = time.perf_counter()
        groups = session.take_groups()
        report = session.update(groups)
        session.sync_weights()
        session.log_step(groups, report)
        seconds = time.perf_counter() - start
        after = session.totals.seconds
        return Step(seconds, {name: value - before.get(name, 0.0) for name, value in after.items()})

    def settle(self) -> None:
        """Wait until the engines have finished their groups.

        They start on the next step's groups as soon as they have the weights, and would otherwise still be generating
        during the other side's turn. The next iteration therefore finds its groups ready, and must not be counted.
        """
        self._session.pool.finish()


@contextmanager
def our_steps(config: Config) -> Iterator[OurSteps]:
    """Open a training session, whose engines have the first weights."""
    from medr1_ray.run.opening import open_session

    with open_session(config, resume=False) as session:
        session.sync_weights()
        yield OurSteps(session)
