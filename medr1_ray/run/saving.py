"""When a run saves, and how it goes on meanwhile: the ranks write behind it, one checkpoint at a time.

A checkpoint is due after so many steps or minutes, before a node of the learner's leaves, and again after one that had
no room. The ranks copy what it holds, and the run goes on; once all have written it is published, between two steps or
in a wait for groups. One that is due while another is being written waits for that. Where the run may end (a stop, a
node's notice, the last step) nothing goes on before the checkpoint is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from medr1_ray.base.manifest import NotSavedError, store
from medr1_ray.config import Config, RunSettings
from medr1_ray.evaluation.settings import write_asked_with
from medr1_ray.learner.messages import LearnerLostError
from medr1_ray.records.checkpoints import Checkpoints, RunState, Unpublished
from medr1_ray.run.phases import Phases

if TYPE_CHECKING:
    from medr1_ray.learner.handle import Learner

_MINUTE_SECONDS = 60.0
# How often `meanwhile` is called in a wait for an upload.
_MEANWHILE_SECONDS = 0.2

Meanwhile = Callable[[], None]


def _nothing() -> None:
    """During a wait that nothing else may end."""


class CheckpointWriter:
    """Leads ranks and driver through one checkpoint after the other."""

    def __init__(self, config: Config, learner: Learner, checkpoints: Checkpoints, phases: Phases) -> None:
        self._config = config
        self._learner = learner
        self._checkpoints = checkpoints
        self._phases = phases
        self._unpublished: Unpublished | None = None

    @property
    def step(self) -> int | None:
        """Of the checkpoint that is being written, if there is one."""
        return self._unpublished.step if self._unpublished else None

    def begin(self, state: RunState, meanwhile: Meanwhile) -> None:
        """Let the ranks copy and write; returns when they have copied. Raises NotSavedError."""
        assert self._unpublished is None, "one at a time"
        with self._phases.timed("checkpoint"):
            self._unpublished = self._checkpoints.begin(state)
            with self._given_up_after_an_error():
                self._learner.begin_save(self._unpublished.folder, meanwhile)

    def is_writing(self) -> bool:
        """Whether `publish` would wait: for a rank, or for the upload of the checkpoint before. Does not wait."""
        return self._learner.is_saving() or not self._checkpoints.may_publish()

    def publish(self, meanwhile: Meanwhile, *, briefly: bool = False) -> Path:
        """Wait until the ranks have written; returns the checkpoint. `briefly` as in `Learner.finish_save`.

        Raises NotSavedError where there was no room, and there is no checkpoint.
        """
        assert self._unpublished is not None, "nothing is being written"
        with self._phases.timed("checkpoint"), self._given_up_after_an_error():
            folder = self._unpublished.folder
            files = self._learner.finish_save(meanwhile, briefly=briefly)
            while not self._checkpoints.may_publish(_MEANWHILE_SECONDS):
                meanwhile()
            asked_with = store(folder, write_asked_with(self._config, folder))
            path = self._checkpoints.publish(self._unpublished, [*files, asked_with])
        self._unpublished = None
        return path

    def give_up(self) -> None:
        """Publish nothing of what is being written."""
        if self._unpublished is not None:
            self._checkpoints.give_up(self._unpublished)
            self._unpublished = None

    @contextmanager
    def _given_up_after_an_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.give_up()
            raise


class Saving:
    """Saves a run when it is due, and each step once. `state` gives the state of the moment that it is called in.

    Args:
        settings: `save_every` and `save_minutes`.
        writer: does it.
        meanwhile: called repeatedly while the run waits for the ranks and may go on afterwards.
        say: takes a line for the operator.
        leaving: what to say of the learner's nodes that are about to go away; empty where none is.
        saved: step and path of the checkpoint that the run goes on from.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        settings: RunSettings,
        writer: CheckpointWriter,
        meanwhile: Meanwhile,
        say: Callable[[str], None],
        leaving: Callable[[], str] = lambda: "",
        saved: tuple[int, Path] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._writer = writer
        self._meanwhile = meanwhile
        self._say = say
        self._leaving = leaving
        self._saved = saved
        self._clock = clock
        self._since_seconds = clock()
        self._unsaved = False  # a checkpoint was due and could not be written
        self._told = ""

    def save(self, step: int, state: Callable[[], RunState]) -> Path:
        """Publish the checkpoint of this step, unless there is one already; returns its path.

        Waits until it is written, and for nothing else: what the pool would say of its actors could end the run first.
        Raises NotSavedError where it cannot be written.
        """
        self._finish(_nothing)
        if self._saved is None or self._saved[0] != step:
            self._begin(state, _nothing)
            self._publish(_nothing)
        assert self._saved is not None
        return self._saved[1]

    def at_a_stop(self, step: int, state: Callable[[], RunState]) -> None:
        """`save`, unless nothing has been learned."""
        if step:
            self.save(step, state)

    def after_an_error(self, error: BaseException) -> None:
        """Publish what is being written before the run ends with `error`, where the ranks are there to end it: a
        resumed run goes on from it."""
        if self._writer.step is not None and isinstance(error, Exception) and not isinstance(error, LearnerLostError):
            self._say(f"waiting for the checkpoint of step {self._writer.step}, which is being written")
            # The error that ends the run is the one to tell.
            with suppress(Exception):
                self._writer.publish(_nothing, briefly=True)
        self._writer.give_up()

    def if_due(self, step: int, steps_before: int, state: Callable[[], RunState]) -> None:
        """After an update that brought the run from `steps_before` to `step`: save where that is due.

        What cannot be written, for want of room, is tried again after the next step.
        """
        self.publish_if_written()
        every, minutes = self._settings.save_every, self._settings.save_minutes
        by_steps = every > 0 and step // every > steps_before // every
        by_time = minutes > 0 and self._clock() - self._since_seconds >= minutes * _MINUTE_SECONDS
        if by_steps or by_time or self._unsaved:
            self._finish(self._meanwhile)
            with self._told_if_not_saved():
                self._begin(state, self._meanwhile)
            # It is, where the ranks do not write behind the training.
            self.publish_if_written()
        self.before_a_node_leaves(step, state)

    def publish_if_written(self) -> None:
        """Publish what was being written, if the ranks are done; does not wait."""
        if self._writer.step is not None and not self._writer.is_writing():
            self._finish(self._meanwhile)

    def before_a_node_leaves(self, step: int, state: Callable[[], RunState]) -> None:
        """Publish a checkpoint of this step, which is done, where a node of the learner's is about to go away."""
        leaving = self._leaving()
        if leaving and leaving != self._told:
            self._say(f"{leaving}: each step is saved until then")
        self._told = leaving
        # What could not be saved is tried again after the next step, and not in every round of a wait.
        if leaving and step and not self._unsaved:
            with self._told_if_not_saved():
                self.save(step, state)

    def _begin(self, state: Callable[[], RunState], meanwhile: Meanwhile) -> None:
        self._since_seconds = self._clock()
        self._writer.begin(state(), meanwhile)

    def _finish(self, meanwhile: Meanwhile) -> None:
        """Publish what is being written, if anything is."""
        if self._writer.step is not None:
            with self._told_if_not_saved():
                self._publish(meanwhile)

    def _publish(self, meanwhile: Meanwhile) -> None:
        step = self._writer.step
        assert step is not None
        path = self._writer.publish(meanwhile)
        self._saved = step, path
        if self._unsaved:
            self._say(f"saved at last: {path}")
        self._unsaved = False

    @contextmanager
    def _told_if_not_saved(self) -> Iterator[None]:
        try:
            yield
        except NotSavedError as error:
            if not self._unsaved:
                again = "the run goes on and tries again after each step"
                self._say(f"NOT SAVED: {error}. Earlier checkpoints are as they were; {again}")
            self._unsaved = True
