"""When a run saves: after so many steps or minutes, before a node of the learner's leaves, and again after a save that
had no room."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from medr1_ray.base.manifest import NotSavedError
from medr1_ray.config import RunSettings

_MINUTE_SECONDS = 60.0


class Saving:
    """Publishes the checkpoints of a run when they are due, and each step's once.

    Args:
        settings: `save_every` and `save_minutes`.
        say: takes a line for the operator.
        leaving: what to say of the learner's nodes that are about to go away; empty where none is.
        saved: step and path of the checkpoint that the run goes on from.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        settings: RunSettings,
        say: Callable[[str], None],
        leaving: Callable[[], str] = lambda: "",
        saved: tuple[int, Path] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._say = say
        self._leaving = leaving
        self._saved = saved
        self._clock = clock
        self._since_seconds = clock()
        self._unsaved = False  # a checkpoint was due and could not be written
        self._told = ""

    def save(self, step: int, publish: Callable[[], Path]) -> Path:
        """Publish the checkpoint of this step, unless there is one already; returns its path.

        Raises NotSavedError where it cannot be written.
        """
        if self._saved is None or self._saved[0] != step:
            self._saved = step, publish()
            self._since_seconds = self._clock()
        return self._saved[1]

    def at_a_stop(self, step: int, publish: Callable[[], Path]) -> None:
        """`save`, unless nothing has been learned."""
        if step:
            self.save(step, publish)

    def if_due(self, step: int, steps_before: int, publish: Callable[[], Path]) -> None:
        """After an update that brought the run from `steps_before` to `step`: publish a checkpoint where one is due.

        One that cannot be written, for want of room, is tried again after the next step.
        """
        every, minutes = self._settings.save_every, self._settings.save_minutes
        by_steps = every > 0 and step // every > steps_before // every
        by_time = minutes > 0 and self._clock() - self._since_seconds >= minutes * _MINUTE_SECONDS
        if by_steps or by_time or self._unsaved:
            self._try(step, publish)
        self.before_a_node_leaves(step, publish)

    def before_a_node_leaves(self, step: int, publish: Callable[[], Path]) -> None:
        """Publish a checkpoint of this step, which is done, where a node of the learner's is about to go away."""
        leaving = self._leaving()
        if leaving and leaving != self._told:
            self._say(f"{leaving}: each step is saved until then")
        self._told = leaving
        # What could not be saved is tried again after the next step, and not in every round of a wait.
        if leaving and step and not self._unsaved:
            self._try(step, publish)

    def _try(self, step: int, publish: Callable[[], Path]) -> None:
        try:
            path = self.save(step, publish)
        except NotSavedError as error:
            if not self._unsaved:
                again = "the run goes on and tries again after each step"
                self._say(f"NOT SAVED: {error}. Earlier checkpoints are as they were; {again}")
            self._unsaved = True
            return
        if self._unsaved:
            self._say(f"saved at last: {path}")
        self._unsaved = False
