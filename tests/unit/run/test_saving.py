"""Which steps are saved, what a run does while the ranks write, and what it leaves where that fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medr1_ray.base.manifest import NotSavedError, StoredFile, store
from medr1_ray.config import Config, RunSettings
from medr1_ray.learner.messages import LearnerLostError
from medr1_ray.records.checkpoints import Checkpoints, RunState, read_state
from medr1_ray.run.phases import Phases
from medr1_ray.run.saving import CheckpointWriter, Saving
from tests.faults.storage import a_config, a_state


class Run:
    """Steps of so many minutes, and what writes their checkpoints; `saved` has those that were published.

    Ranks write until `writing` is False, or until they are waited for.
    """

    def __init__(self, saved_before: int | None = None, **settings: Any) -> None:
        self.minutes = 0.0
        self.leaving = ""
        self.said: list[str] = []
        self.saved: list[int] = []
        self.begun: list[int] = []
        self.polls = 0
        self.writing = False
        self.no_room = False
        self.error: Exception | None = None
        self.now = saved_before or 0
        # Of the writer: the step that is being written.
        self.step: int | None = None
        self.briefly = False
        self.given_up: list[int] = []
        before = None if saved_before is None else (saved_before, Path(f"checkpoint-{saved_before}"))
        run = RunSettings.model_validate({"dir": "run", **settings})
        writer: Any = self
        self.saving = Saving(
            run, writer, self.poll, self.said.append, lambda: self.leaving, before, lambda: self.minutes * 60
        )

    def poll(self) -> None:
        self.polls += 1

    def begin(self, state: RunState, meanwhile: Callable[[], None]) -> None:
        assert self.step is None, "one at a time"
        meanwhile()
        self.begun.append(state.step)
        self.step = state.step

    def is_writing(self) -> bool:
        return self.writing

    def publish(self, meanwhile: Callable[[], None], *, briefly: bool = False) -> Path:
        assert self.step is not None
        meanwhile()
        step, self.step, self.briefly = self.step, None, briefly
        if self.error:
            raise self.error
        if self.no_room:
            raise NotSavedError("no space left")
        self.saved.append(step)
        return Path(f"checkpoint-{step}")

    def give_up(self) -> None:
        if self.step is not None:
            self.given_up.append(self.step)
        self.step = None

    def state(self) -> RunState:
        return a_state(self.now)

    def take_step(self, minutes: float = 1.0, steps: int = 1) -> None:
        self.minutes += minutes
        self.now += steps
        self.saving.if_due(self.now, self.now - steps, self.state)

    def save(self, step: int) -> Path:
        return self.saving.save(step, self.state)


def test_by_steps_where_a_multiple_was_reached_or_passed() -> None:
    run = Run(save_every=3, save_minutes=0)
    for _ in range(4):
        run.take_step(minutes=1e6, steps=2)
    assert run.begun == [4, 6]


def test_by_minutes_since_the_last_one_whatever_made_it() -> None:
    run = Run(save_every=5, save_minutes=2.5)
    for _ in range(9):
        run.take_step()
    assert run.begun == [3, 5, 8]


def test_zero_switches_each_off() -> None:
    run = Run(save_every=0, save_minutes=0)
    for _ in range(9):
        run.take_step(minutes=1e6)
    assert run.begun == []


def test_a_checkpoint_is_published_when_the_ranks_have_written_and_the_run_goes_on_until_then() -> None:
    run = Run(save_every=3, save_minutes=0)
    run.writing = True
    for _ in range(5):
        run.take_step()
        run.saving.publish_if_written()
    assert (run.begun, run.saved) == ([3], [])
    run.writing = False
    run.saving.publish_if_written()
    assert run.saved == [3]
    run.writing = True
    run.take_step()
    assert (run.begun, run.saved) == ([3, 6], [3])
    run.writing = False
    run.take_step()
    assert run.saved == [3, 6], "at the next step at the latest"
    for _ in range(2):
        run.take_step()
    assert run.saved == [3, 6, 9], "at once, where nothing is written behind"


def test_one_that_is_due_waits_for_the_one_before_while_the_pool_goes_on() -> None:
    run = Run(save_every=2, save_minutes=0)
    run.writing = True
    run.take_step(steps=2)
    polls = run.polls
    assert polls == 1, "while the ranks copy"
    run.take_step(steps=2)
    assert (run.begun, run.saved) == ([2, 4], [2])
    assert run.polls == polls + 2


def test_a_step_is_saved_once_and_the_one_that_a_run_goes_on_from_is() -> None:
    run = Run(saved_before=4)
    assert run.save(4) == Path("checkpoint-4")
    run.saving.at_a_stop(4, run.state)
    assert run.begun == []
    run.take_step()
    for _ in range(2):
        assert run.save(5) == Path("checkpoint-5")
    assert run.saved == [5]


def test_a_stop_waits_for_what_is_being_written_and_for_nothing_else() -> None:
    run = Run(save_every=1, save_minutes=0)
    run.writing = True
    run.take_step()
    polls = run.polls
    run.saving.at_a_stop(1, run.state)
    assert (run.begun, run.saved) == ([1], [1]), "the last step is being written: it is not written again"
    run.take_step()
    run.now, polls = 3, run.polls
    run.saving.at_a_stop(3, run.state)
    assert run.saved == [1, 2, 3]
    assert run.polls == polls, "the pool may raise, as its actors die with their nodes"


def test_nothing_is_saved_at_a_stop_before_the_first_step() -> None:
    run = Run()
    run.saving.at_a_stop(0, run.state)
    run.leaving = "a node leaves"
    run.saving.before_a_node_leaves(0, run.state)
    assert run.begun == []


def test_while_a_node_leaves_every_step_is_there_before_the_run_goes_on_and_it_is_told_once() -> None:
    run = Run(save_minutes=0)
    run.writing = True
    run.take_step()
    run.leaving = "Ray drains the node of learner-1 (90 s left)"
    for _ in range(3):
        run.saving.before_a_node_leaves(run.now, run.state)
    assert run.saved == [1]
    run.take_step()
    run.leaving = ""
    run.take_step()
    assert run.saved == [1, 2]
    assert run.said == ["Ray drains the node of learner-1 (90 s left): each step is saved until then"]


def test_what_has_no_room_is_tried_again_after_the_next_step_and_not_in_a_wait() -> None:
    run = Run(save_every=2, save_minutes=0)
    run.no_room = True
    run.writing = True
    run.leaving = "a node leaves"
    run.take_step(steps=2)
    for _ in range(5):
        run.saving.before_a_node_leaves(run.now, run.state)
    assert run.begun == [2, 2], "once as it is due, and once more as the node leaves"
    run.take_step()
    run.no_room = False
    run.take_step()
    assert run.begun == [2, 2, 3, 4]
    assert run.saved == [3, 4], "by then there is room for that of step 3"
    not_saved = "NOT SAVED: no space left. Earlier checkpoints are as they were; the run goes on and tries again after "
    assert [line for line in run.said if "SAVED" in line or "saved at last" in line] == [
        f"{not_saved}each step",
        "saved at last: checkpoint-3",
    ]
    run.no_room = True
    with pytest.raises(NotSavedError):
        run.save(5)


def test_a_write_that_failed_behind_is_told_and_tried_again_at_once() -> None:
    run = Run(save_every=4, save_minutes=0)
    run.no_room = True
    run.writing = True
    run.take_step(steps=4)
    assert run.said == [], "not known yet"
    run.writing = False
    run.saving.publish_if_written()
    assert len(run.said) == 1
    run.no_room = False
    run.take_step()
    run.saving.publish_if_written()
    assert (run.begun, run.saved) == ([4, 5], [5])
    assert run.said[-1] == "saved at last: checkpoint-5"


def test_a_stop_tries_once_more_what_could_not_be_written() -> None:
    run = Run(save_every=1, save_minutes=0)
    run.no_room = True
    run.take_step()
    with pytest.raises(NotSavedError):
        run.saving.at_a_stop(1, run.state)
    assert run.begun == [1, 1]


@pytest.mark.parametrize("error", [RuntimeError("engine and learner disagree"), ValueError("a reward failed")])
def test_after_an_error_what_is_being_written_is_published(error: Exception) -> None:
    run = Run(save_every=1, save_minutes=0)
    run.writing = True
    run.take_step()
    run.saving.after_an_error(error)
    assert (run.saved, run.briefly, run.given_up) == ([1], True, [])
    assert run.said == ["waiting for the checkpoint of step 1, which is being written"]
    run.saving.after_an_error(error)
    assert len(run.said) == 1, "there is none any more"


@pytest.mark.parametrize("error", [LearnerLostError("learner-1 died"), KeyboardInterrupt()])
def test_it_is_given_up_where_a_rank_is_lost_or_the_run_is_to_end_at_once(error: BaseException) -> None:
    run = Run(save_every=1, save_minutes=0)
    run.writing = True
    run.take_step()
    run.saving.after_an_error(error)
    assert (run.saved, run.given_up, run.said) == ([], [1], [])


def test_a_failure_after_an_error_hides_it_not() -> None:
    run = Run(save_every=1, save_minutes=0)
    run.writing = True
    run.take_step()
    run.error = LearnerLostError("learner-0 is late")
    run.saving.after_an_error(RuntimeError("the error to tell"))
    assert run.saved == []


class Ranks:
    """Write one file; `error` is raised instead of an answer."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.error: BaseException | None = None
        self.writing = False

    def begin_save(self, folder: Path, meanwhile: Callable[[], None]) -> None:
        meanwhile()
        self.folder = folder

    def is_saving(self) -> bool:
        return self.writing

    def finish_save(self, meanwhile: Callable[[], None], *, briefly: bool) -> list[StoredFile]:
        assert self.folder is not None
        meanwhile()
        (self.folder / "weights").write_text("half")
        if self.error:
            raise self.error
        return [store(self.folder, "weights")]


def a_writer(config: Config) -> tuple[CheckpointWriter, Ranks, Path]:
    ranks: Any = Ranks()
    folder = config.run.dir / "checkpoints"
    return CheckpointWriter(config, ranks, Checkpoints(folder, 2), Phases({})), ranks, folder


def test_it_waits_for_the_upload_before_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, _, folder = a_writer(a_config(tmp_path))
    uploading = [True] * 3
    monkeypatch.setattr(Checkpoints, "may_publish", lambda self, wait_seconds=0.0: not uploading)
    writer.begin(a_state(1), lambda: None)
    assert writer.is_writing()
    polls: list[int] = []

    def poll() -> None:
        polls.append(len(uploading))
        assert names(folder) == [".checkpoint-1.partial"]
        if len(polls) > 1:  # the first is of the wait for the ranks
            uploading.pop()

    writer.publish(poll)
    assert polls == [3, 3, 2, 1]
    assert names(folder) == ["checkpoint-1", "latest"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_state_is_taken_before_anything_else_happens(tmp_path: Path) -> None:
    writer, ranks, folder = a_writer(a_config(tmp_path))
    state = a_state(3)
    writer.begin(state, lambda: state.groups_dropped.update(stale=1))
    assert (writer.step, writer.is_writing(), names(folder)) == (3, False, [".checkpoint-3.partial"])
    ranks.writing = True
    assert writer.is_writing()
    published = writer.publish(lambda: state.totals.seconds.update(rollout=9.0))
    assert (published, writer.step) == (folder / "checkpoint-3", None)
    assert read_state(published) == a_state(3)
    assert names(published) == ["manifest.json", "medr1_ray.json", "state.json", "weights"]


@pytest.mark.parametrize("error", [NotSavedError("no room"), RuntimeError("learner-0 failed"), KeyboardInterrupt()])
def test_after_a_failure_nothing_is_left(tmp_path: Path, error: BaseException) -> None:
    writer, ranks, folder = a_writer(a_config(tmp_path))
    writer.begin(a_state(1), lambda: None)
    writer.publish(lambda: None)
    writer.begin(a_state(2), lambda: None)
    ranks.error = error
    with pytest.raises(type(error)):
        writer.publish(lambda: None)
    assert (writer.step, names(folder)) == (None, ["checkpoint-1", "latest"])
    writer.begin(a_state(2), lambda: None)
    writer.give_up()
    writer.give_up()
    assert (writer.step, names(folder)) == (None, ["checkpoint-1", "latest"])


def test_a_rank_that_fails_as_it_copies_leaves_nothing(tmp_path: Path) -> None:
    writer, _, folder = a_writer(a_config(tmp_path))

    def lost() -> None:
        raise LearnerLostError("learner-0 died")

    with pytest.raises(LearnerLostError):
        writer.begin(a_state(1), lost)
    assert (writer.step, names(folder)) == (None, [])
