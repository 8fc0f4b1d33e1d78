"""The ledger: every group is used, dropped or in flight, whatever happens in between."""

from __future__ import annotations

import random

import pytest

from medr1_ray.pool.group_ledger import GroupStage, Ledger, room


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _ready(ledger: Ledger, prompt_id: str, version: int = 0, actor: str = "a") -> None:
    ledger.issue(prompt_id)
    ledger.assign(prompt_id, actor)
    assert ledger.generated(prompt_id, actor, version)
    ledger.scored(prompt_id)


def test_a_group_walks_from_issue_to_use() -> None:
    ledger = Ledger(Clock())
    _ready(ledger, "p")
    assert ledger.at(GroupStage.READY) == ["p"]
    ledger.use("p", zero_variance=True)
    counts = ledger.counts()
    assert (counts.issued, counts.used, counts.zero_variance, counts.in_flight) == (1, 1, 1, 0)


def test_an_id_in_flight_cannot_be_issued_again() -> None:
    ledger = Ledger(Clock())
    ledger.issue("p")
    with pytest.raises(ValueError, match="'p'"):
        ledger.issue("p")


def test_groups_of_a_lost_actor_wait_again_and_its_late_answer_is_refused() -> None:
    ledger = Ledger(Clock())
    for prompt_id, actor in (("p", "a"), ("q", "b"), ("r", "a")):
        ledger.issue(prompt_id)
        ledger.assign(prompt_id, actor)
    assert ledger.lose_actor("a") == ["p", "r"]
    assert ledger.at(GroupStage.WAITING) == ["p", "r"]
    ledger.assign("p", "b")
    assert not ledger.generated("p", "a", 0)
    assert ledger.generated("p", "b", 0)
    assert ledger.actor_of("p") is None
    assert (ledger.counts().reissued, ledger.counts().late) == (2, 1)
    assert not ledger.generated("p", "b", 0), "a second copy of the same answer is late as well"
    assert ledger.counts().in_flight == 3


def test_staleness_is_measured_at_use() -> None:
    ledger = Ledger(Clock())
    _ready(ledger, "old", version=3)
    _ready(ledger, "new", version=4)
    assert ledger.drop_stale(version=6, max_staleness=2) == ["old"]
    assert ledger.counts().dropped == {"stale": 1}
    assert ledger.at(GroupStage.READY) == ["new"]


def test_overdue_names_the_actor() -> None:
    clock = Clock()
    ledger = Ledger(clock)
    ledger.issue("p")
    ledger.assign("p", "rollout-0")
    for clock.now in (5.0, 10.0):
        assert ledger.overdue(10.0) == {}
    clock.now = 10.1
    assert ledger.overdue(10.0) == {}, "looked at a moment ago"
    clock.now = 10.5
    assert ledger.overdue(10.0) == {"p": "rollout-0"}
    ledger.generated("p", "rollout-0", 0)
    for clock.now in (15.0, 20.0, 25.0):
        assert ledger.overdue(10.0) == {}, "reward actors have limits of their own"


def test_time_in_which_nobody_looked_makes_nothing_overdue() -> None:
    """What was done then has not been fetched: an actor would be given up that did its work."""
    clock = Clock()
    ledger = Ledger(clock)
    ledger.issue("p")
    ledger.assign("p", "rollout-0")
    clock.now = 4.0
    assert ledger.overdue(10.0) == {}
    clock.now = 500.0
    assert ledger.overdue(10.0) == {}
    for clock.now in (503.0, 506.0):
        assert ledger.overdue(10.0) == {}
    clock.now = 506.5
    assert ledger.overdue(10.0) == {"p": "rollout-0"}, "4 s before and 6.5 s after"


def test_a_group_is_put_back_by_the_actor_that_has_it_alone() -> None:
    ledger = Ledger(Clock())
    ledger.issue("p")
    ledger.assign("p", "a")
    ledger.put_back("p", "b")
    assert ledger.actor_of("p") == "a"
    ledger.put_back("p", "a")
    assert ledger.at(GroupStage.WAITING) == ["p"]
    ledger.put_back("p", "a")
    ledger.put_back("unknown", "a")
    assert ledger.counts().reissued == 1


def test_a_group_may_be_dropped_at_any_stage_but_under_an_actors_hands() -> None:
    ledger = Ledger(Clock())
    for prompt_id in "pqr":
        ledger.issue(prompt_id)
    ledger.drop("p", "waiting")
    ledger.assign("q", "a")
    with pytest.raises(AssertionError, match="GENERATING, not one of"):
        ledger.drop("q", "generating")
    ledger.assign("r", "a")
    ledger.generated("r", "a", 0)
    ledger.drop("r", "reward_error")
    assert ledger.counts().dropped == {"waiting": 1, "reward_error": 1}


def test_load_counts_what_generates() -> None:
    ledger = Ledger(Clock())
    for prompt_id in "pqr":
        ledger.issue(prompt_id)
    ledger.assign("p", "a")
    ledger.assign("q", "a")
    assert ledger.load_of(["a", "b"]) == {"a": 2, "b": 0}


def test_the_sums_hold_over_random_histories() -> None:
    rng = random.Random(0)
    ledger = Ledger(Clock(), issued=5, used=3, dropped={"stale": 2})
    for i in range(2000):
        event = rng.randrange(7)
        if event == 0:
            ledger.issue(f"p{i}")
        elif event == 1 and (waiting := ledger.at(GroupStage.WAITING)):
            ledger.assign(rng.choice(waiting), rng.choice("ab"))
        elif event == 2 and i % 40 == 0:
            ledger.lose_actor(rng.choice("ab"))
        elif event == 3 and (generating := ledger.at(GroupStage.GENERATING)):
            ledger.generated(rng.choice(generating), rng.choice("ab"), i // 100 - rng.randrange(3))
        elif event == 4 and (scoring := ledger.at(GroupStage.SCORING)):
            ledger.scored(rng.choice(scoring))
        elif event == 5:
            ledger.drop_stale(i // 100, max_staleness=1)
        elif ready := ledger.at(GroupStage.READY):
            ledger.use(ready[0], zero_variance=False)
        ledger.counts()
    assert ledger.counts().used > 3
    assert ledger.counts().dropped["stale"] > 2


@pytest.mark.parametrize(
    ("in_flight", "max_staleness", "versions_ahead", "versions_per_step", "expected"),
    [
        (0, 0, 0, 1, 8),  # synchronous, weights published: one step's worth
        (8, 0, 0, 1, 0),
        (0, 0, 1, 1, 0),  # synchronous, during the update: whatever starts now is born stale
        (0, 2, 0, 1, 24),  # three steps' worth: used 0, 1 and 2 versions later
        (16, 2, 1, 1, 0),  # during the update of the asynchronous loop: two steps' worth
        (8, 2, 1, 1, 8),
        (0, 2, 0, 2, 16),  # two optimizer steps per rollout: used 0 and 2 versions later
        (30, 2, 0, 1, 0),
    ],
)
def test_room(
    in_flight: int, max_staleness: int, versions_ahead: int, versions_per_step: int, expected: int
) -> None:
    assert (
        room(
            in_flight,
            groups_per_step=8,
            versions_per_step=versions_per_step,
            max_staleness=max_staleness,
            versions_ahead=versions_ahead,
        )
        == expected
    )
