"""The number of rollout actors that keeps the learner busy, from measured steps. No Ray here.

Seconds of a step: `waiting` for groups, and `other` for everything else (update, weight sync).
Generation takes `busy` actor-seconds a step, however many actors share it. To wait for no more than the fraction t of
the time, a step may last other / (1 - t), of which other * t / (1 - t) is waiting. The groups must be done

- in the whole of that step, where generation goes on during the update (asynchronous),
- in its waiting alone, where it does not (synchronous),

so that `busy` divided by these seconds is the number of actors. Groups that share an engine do not slow each other
down in proportion, so the number is approached in rounds, each measured anew.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from medr1_ray.config import Config


@dataclass
class Scaling:
    """Chooses the number of rollout actors after every `every` measured steps.

    `range` is the fewest and the most, `target_idle_fraction` the share of the time that the learner may wait for
    groups, `overlapping` whether generation goes on while the learner updates.
    """

    range: tuple[int, int]
    target_idle_fraction: float
    every: int
    overlapping: bool
    _waiting: float = field(default=0.0, init=False)
    _other: float = field(default=0.0, init=False)
    _busy: float = field(default=0.0, init=False)
    _steps: int = field(default=0, init=False)
    _lost: int = field(default=0, init=False)
    _idle_fraction: float | None = field(default=None, init=False)

    @classmethod
    def of(cls, config: Config) -> Scaling:
        """For a run with these settings."""
        rollout = config.rollout
        return cls(rollout.actor_range, rollout.target_idle_fraction, rollout.scale_every, config.train.overlaps)

    @property
    def idle_fraction(self) -> float | None:
        """Share of the time that the learner waited for groups in the steps measured last."""
        return self._idle_fraction

    def measure(
        self, waiting_seconds: float, other_seconds: float, busy_seconds: float, actors_lost: int = 0
    ) -> None:
        """Record one step; the seconds are those at the top of this file.

        A step in which an actor was lost (of `actors_lost` so far) does not count: it may have waited for a deadline,
        which says nothing about how many actors are needed.
        """
        # `actors_lost` is a running total, so a larger number means a loss in this step.
        if actors_lost > self._lost:
            self._lost = actors_lost
            return
        self._waiting += waiting_seconds
        self._other += other_seconds
        self._busy += busy_seconds
        self._steps += 1

    def choose(self, target: int) -> int:
        """The number of actors from now on; the current `target` until enough steps have been measured.

        It grows only when the learner waits for longer than it may, and shrinks only when it does not.
        """
        if self._steps < self.every:
            return target
        waiting, other, busy = self._waiting, self._other, self._busy
        self._waiting = self._other = self._busy = 0.0
        self._steps = 0
        idle = self._idle_fraction = waiting / (waiting + other)
        window = other / (1 - self.target_idle_fraction)
        if not self.overlapping:
            window *= self.target_idle_fraction
        needed = math.ceil(busy / window)
        fewest, most = self.range
        # The measured idle fraction decides the direction; the formula only says how far.
        chosen = max(needed, target) if idle > self.target_idle_fraction else min(needed, target)
        return min(max(chosen, fewest), most)
