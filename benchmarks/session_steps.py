"""A training session whose steps are taken one at a time, for the benchmarks of the whole step."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shapes import WORK, Shape, run_config

from medr1_ray.config import Config

if TYPE_CHECKING:
    from medr1_ray.run.session import Session


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


class OurSteps:
    """A running session, one round of `train.py`'s loop at a time."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def take(self) -> Step:
        """One round."""
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
        """Let the engines finish: they begin with the next step's groups as soon as they have the weights, and would
        go on in another side's turn. So the round after it finds its groups made, and does not count."""
        self._session.pool.finish()


@contextmanager
def our_steps(config: Config) -> Iterator[OurSteps]:
    """A session that trains."""
    from medr1_ray.run.startup import open_session

    with open_session(config, resume=False) as session:
        session.sync_weights()
        yield OurSteps(session)
