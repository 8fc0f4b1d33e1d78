"""Which steps are saved: by steps, by time, before a node leaves, and once more where there was no room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medr1_ray.base.manifest import NotSavedError
from medr1_ray.config import RunSettings
from medr1_ray.run.saving import Saving


class Run:
    """Steps of so many minutes; `saved` has those that were published."""

    def __init__(self, saved_before: int | None = None, **settings: Any) -> None:
        self.minutes = 0.0
        self.leaving = ""
        self.said: list[str] = []
        self.saved: list[int] = []
        self.no_room = False
        self.step = saved_before or 0
        before = None if saved_before is None else (saved_before, Path(f"checkpoint-{saved_before}"))
        run = RunSettings.model_validate({"dir": "run", **settings})
        self.saving = Saving(run, self.said.append, lambda: self.leaving, before, lambda: self.minutes * 60)

    def publish(self) -> Path:
        if self.no_room:
            raise NotSavedError("no space left")
        self.saved.append(self.step)
        return Path(f"checkpoint-{self.step}")

    def take_step(self, minutes: float = 1.0, steps: int = 1) -> None:
        self.minutes += minutes
        self.step += steps
        self.saving.if_due(self.step, self.step - steps, self.publish)


def test_by_steps_where_a_multiple_was_reached_or_passed() -> None:
    run = Run(save_every=3, save_minutes=0)
    for _ in range(4):
        run.take_step(minutes=1e6, steps=2)
    assert run.saved == [4, 6]


def test_by_minutes_since_the_last_one_whatever_made_it() -> None:
    run = Run(save_every=5, save_minutes=2.5)
    for _ in range(9):
        run.take_step()
    assert run.saved == [3, 5, 8]


def test_zero_switches_each_off() -> None:
    run = Run(save_every=0, save_minutes=0)
    for _ in range(9):
        run.take_step(minutes=1e6)
    assert run.saved == []


def test_a_step_is_saved_once_and_the_one_that_a_run_goes_on_from_is() -> None:
    run = Run(saved_before=4)
    assert run.saving.save(4, run.publish) == Path("checkpoint-4")
    run.saving.at_a_stop(4, run.publish)
    assert run.saved == []
    run.take_step()
    for _ in range(2):
        assert run.saving.save(5, run.publish) == Path("checkpoint-5")
    assert run.saved == [5]


def test_nothing_is_saved_at_a_stop_before_the_first_step() -> None:
    run = Run()
    run.saving.at_a_stop(0, run.publish)
    run.leaving = "a node leaves"
    run.saving.before_a_node_leaves(0, run.publish)
    assert run.saved == []


def test_while_a_node_leaves_every_step_is_saved_and_it_is_told_once() -> None:
    run = Run(save_minutes=0)
    run.take_step()
    run.leaving = "Ray drains the node of learner-1 (90 s left)"
    for _ in range(3):
        run.saving.before_a_node_leaves(run.step, run.publish)
    run.take_step()
    run.leaving = ""
    run.take_step()
    assert run.saved == [1, 2]
    assert run.said == ["Ray drains the node of learner-1 (90 s left): each step is saved until then"]


def test_what_has_no_room_is_tried_again_after_the_next_step_and_not_in_a_wait() -> None:
    run = Run(save_every=2, save_minutes=0)
    tries: list[int] = []
    publish = run.publish

    def counted() -> Path:
        tries.append(run.step)
        return publish()

    run.publish = counted  # type: ignore[method-assign]
    run.no_room = True
    run.leaving = "a node leaves"
    run.take_step(steps=2)
    for _ in range(5):
        run.saving.before_a_node_leaves(run.step, run.publish)
    run.take_step()
    assert tries == [2, 3]
    run.no_room = False
    run.take_step()
    assert run.saved == [4]
    not_saved = "NOT SAVED: no space left. Earlier checkpoints are as they were; the run goes on and tries again after "
    assert [line for line in run.said if "SAVED" in line or "saved at last" in line] == [
        f"{not_saved}each step",
        "saved at last: checkpoint-4",
    ]
    run.no_room = True
    with pytest.raises(NotSavedError):
        run.saving.save(5, run.publish)
