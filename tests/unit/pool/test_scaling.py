"""The number of rollout actors follows from what was measured; the expected values are computed by hand."""

from __future__ import annotations

import pytest

from medr1_ray.pool.scaling import Scaling


def scaling(overlapping: bool, target: float = 0.2, fewest: int = 1, most: int = 10) -> Scaling:
    return Scaling((fewest, most), target, every=2, overlapping=overlapping)


def measure(measured: Scaling, waiting: float, other: float, busy: float) -> Scaling:
    for _ in range(2):
        measured.measure(waiting, other, busy)
    return measured


def test_generation_that_overlaps_the_update_has_the_whole_step() -> None:
    # 1 actor, busy all of a step of 12 + 4 s. At 20 % idle a step takes 4 / 0.8 = 5 s: 16 / 5 = 3.2 actors.
    measured = measure(scaling(overlapping=True), waiting=12, other=4, busy=16)
    assert measured.choose(1) == 4
    assert measured.idle_fraction == 12 / 16


def test_generation_that_waits_for_the_update_has_the_rest_of_the_step() -> None:
    # 2 actors, busy for 6 s each beside 8 s of update. At 20 % idle a step takes 10 s, 2 s of it rollout: 12 / 2 = 6.
    assert measure(scaling(overlapping=False), waiting=6, other=8, busy=12).choose(2) == 6


def test_it_shrinks_when_fewer_would_do_and_stays_between_fewest_and_most() -> None:
    # Never waits; 6 actor-seconds a step of 4 / 0.8 = 5 s: 1.2 actors.
    assert measure(scaling(overlapping=True), waiting=0.1, other=4, busy=6).choose(8) == 2
    assert measure(scaling(overlapping=True, fewest=3), waiting=0.1, other=4, busy=6).choose(8) == 3
    assert measure(scaling(overlapping=True, most=6), waiting=30, other=1, busy=31).choose(4) == 6


def test_actors_that_are_still_missing_are_not_asked_for_twice() -> None:
    # As above, 16 actor-seconds: 4 are needed, 4 are wanted already, whoever of them has come so far.
    assert measure(scaling(overlapping=True), waiting=12, other=4, busy=16).choose(4) == 4


@pytest.mark.parametrize("overlapping", [True, False])
def test_the_number_settles(overlapping: bool) -> None:
    """Simulated: 12 actor-seconds a step, 4 s of update."""
    measured, actors, history = scaling(overlapping), 1, []
    for _ in range(6):
        generation = 12 / actors
        waiting = max(0.0, generation - 4) if overlapping else generation
        actors = measure(measured, waiting, 4.0, 12.0).choose(actors)
        history.append(actors)
    assert len(set(history)) == 1, history
    idle = measured.idle_fraction
    assert idle is not None
    assert idle <= 0.2 or actors == 10, "10 is the most"


def test_nothing_changes_before_enough_was_measured() -> None:
    measured = scaling(overlapping=True)
    measured.measure(100, 1, 101)
    assert measured.choose(1) == 1


def test_a_step_that_lost_an_actor_is_no_measure() -> None:
    measured = scaling(overlapping=True)
    # It waited 300 s for a deadline: taken for the learner's work, one actor would do.
    measured.measure(12, 300, 16, actors_lost=1)
    assert measure(measured, waiting=12, other=4, busy=16).choose(4) == 4
    assert measured.idle_fraction == 0.75
