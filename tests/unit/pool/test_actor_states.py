"""The membership: every actor that was asked for is somewhere, whatever happens in whatever order."""

from __future__ import annotations

import random

import pytest

from medr1_ray.pool.actor_states import LONGEST_PAUSE_SECONDS, ActorStage, ActorStates, Leave


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def a_member(members: ActorStates, stage: ActorStage = ActorStage.SERVING) -> str:
    """A new member, taken as far as this stage."""
    name = members.ask()
    walk = (members.placed, members.up, members.joined, lambda name: members.drain(name, 5.0))
    for step, reached in zip(walk, list(ActorStage)[1:], strict=True):
        if list(ActorStage).index(stage) < list(ActorStage).index(reached):
            break
        step(name)
    assert members.stage(name) is stage
    return name


def test_a_pool_asks_for_what_is_missing_and_a_draining_member_counts_as_missing() -> None:
    members = ActorStates(Clock(), target=3)
    assert members.missing() == 3
    names = [a_member(members) for _ in range(3)]
    assert members.missing() == 0
    members.drain(names[1], limit_seconds=5.0)
    assert members.missing() == 1, "the replacement is asked for while the other one still drains"
    assert members.superfluous() == []
    assert members.ask() == "rollout-3", "no name comes twice"


def test_those_furthest_from_serving_go_first_and_then_the_youngest() -> None:
    members = ActorStates(Clock(), target=6)
    serving, young, joining, starting, wanted = (
        a_member(members, stage)
        for stage in (*[ActorStage.SERVING] * 2, ActorStage.JOINING, ActorStage.STARTING, ActorStage.WANTED)
    )
    members.target = 1
    assert members.superfluous() == [wanted, starting, joining, young]
    assert serving not in members.superfluous()


def test_nobody_serves_who_has_not_been_given_the_weights() -> None:
    members = ActorStates(Clock(), target=1)
    name = a_member(members, ActorStage.STARTING)
    with pytest.raises(AssertionError, match=r"STARTING, not ActorStage\.JOINING"):
        members.joined(name)


def test_failed_starts_are_followed_by_growing_pauses_until_one_joins() -> None:
    clock = Clock()
    members = ActorStates(clock, target=1)
    pauses = []
    for _ in range(9):
        members.leave(a_member(members, ActorStage.STARTING), Leave.FAILED)
        start = clock.now
        while not members.missing():
            clock.now += 0.5
        pauses.append(clock.now - start)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert pauses[-1] == LONGEST_PAUSE_SECONDS
    assert members.counts().failures_in_a_row == 9
    a_member(members, ActorStage.SERVING)
    assert members.counts().failures_in_a_row == 0


def test_a_lost_node_is_followed_by_no_pause() -> None:
    members = ActorStates(Clock(), target=1)
    members.leave(a_member(members), Leave.LOST)
    assert members.missing() == 1


def test_late_are_those_that_start_or_drain_for_too_long() -> None:
    clock = Clock()
    members = ActorStates(clock, target=3)
    stages = (ActorStage.WANTED, ActorStage.STARTING, ActorStage.DRAINING)
    wanted, starting, draining = (a_member(members, stage) for stage in stages)
    clock.now = 5.1
    assert members.late(start_limit_seconds=10.0) == [draining]
    clock.now = 10.1
    assert members.late(start_limit_seconds=10.0) == [starting, draining]
    assert members.seconds_at_stage(wanted) == 10.1


def test_the_time_without_a_serving_member_begins_when_the_last_one_stops() -> None:
    clock = Clock()
    members = ActorStates(clock, target=2)
    first, second = a_member(members), a_member(members)
    clock.now = 3.0
    members.leave(first, Leave.LOST)
    assert members.empty_seconds() == 0.0
    clock.now = 4.0
    members.drain(second, limit_seconds=100.0)
    clock.now = 6.0
    members.leave(second, Leave.DRAINED)
    members.leave(a_member(members, ActorStage.STARTING), Leave.LOST)
    clock.now = 9.0
    assert members.empty_seconds() == 5.0


@pytest.mark.parametrize("seed", range(20))
def test_the_sums_hold_over_random_histories(seed: int) -> None:
    rng = random.Random(seed)
    clock = Clock()
    members = ActorStates(clock, target=rng.randint(1, 5))
    seen: set[str] = set()
    gone = dict.fromkeys(Leave, 0)
    forward = {ActorStage.WANTED: members.placed, ActorStage.STARTING: members.up, ActorStage.JOINING: members.joined}
    for _ in range(400):
        clock.now += rng.random()
        event = rng.choice(("ask", "forward", "forward", "forward", "leave", "drain", "retire", "target"))
        present = members.at(*ActorStage)
        if event == "ask":
            for _ in range(members.missing()):
                name = members.ask()
                assert name not in seen
                seen.add(name)
        elif event == "target":
            members.target = rng.randint(0, 6)
        elif event == "retire":
            for name in members.superfluous():
                members.leave(name, Leave.CANCELLED)
                gone[Leave.CANCELLED] += 1
            assert members.counts().present - len(members.at(ActorStage.DRAINING)) <= members.target
        elif present:
            name = rng.choice(present)
            stage = members.stage(name)
            assert stage is not None
            if event == "forward" and stage in forward:
                forward[stage](name)
            elif event == "drain" and stage is ActorStage.SERVING:
                members.drain(name, rng.random())
            elif event == "leave":
                why = rng.choice(list(Leave))
                members.leave(name, why)
                gone[why] += 1
        counts = members.counts()
        assert counts.asked == len(seen)
        assert counts.gone == gone
        assert counts.present == len(seen) - sum(gone.values())
        assert counts.serving == 0 or members.empty_seconds() == 0.0
    assert seen
    assert sum(gone.values()) > 0
