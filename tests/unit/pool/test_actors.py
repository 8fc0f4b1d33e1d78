"""The actors without Ray: actors answer when the test's world lets them, and the clock moves when somebody waits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError

from medr1_ray.base.stopping import StopAskedError, finishing, heeding_signals
from medr1_ray.cluster.resources import NotStartedError
from medr1_ray.pool.actor_states import ActorStage, Leave
from medr1_ray.pool.actors import RolloutActors
from medr1_ray.weights.messages import LoadReport, WeightUpdate
from tests.unit.pool.world import Method, Place, World, a_config, ask_to_stop, install, update


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    install(world, monkeypatch)
    return world


def some_actors(world: World, **rollout: Any) -> RolloutActors:
    return RolloutActors(a_config(**rollout), world, world.said.append, world.launch, lambda: world.now)


def serving_actors(world: World, **rollout: Any) -> RolloutActors:
    actors = some_actors(world, **rollout)
    actors.wait_until_up()
    actors.load_weights(update(0))
    actors.tick()
    return actors


def pass_time(world: World, actors: RolloutActors, seconds: float) -> None:
    end = world.now + seconds
    while world.now < end:
        world.poll(0.5)
        actors.tick()


def test_a_run_begins_with_the_fewest_and_the_others_join_in_the_background(world: World) -> None:
    world.silent.add("rollout-1")
    actors = some_actors(world, actors=2, min_actors=1)
    actors.wait_until_up()
    assert actors.serving.keys() == set(), "nobody serves before the first weights"
    actors.load_weights(update(0))
    assert actors.serving.keys() == {"rollout-0"}
    world.silent.clear()
    pass_time(world, actors, 5)
    assert actors.serving.keys() == {"rollout-0", "rollout-1"}
    assert any("rollout-1 has joined with version 0" in text for text in world.said)


def test_those_that_are_up_and_wait_for_a_sync_are_somebody(world: World) -> None:
    """In a long update: weights that do not last come with the sync after it."""
    actors = some_actors(world, actors=2)
    actors.wait_until_up()
    passing = WeightUpdate(0, (), "digest 0", lasting=False)
    actors.load_weights(passing, lambda: None)
    for name in ("rollout-0", "rollout-1"):
        actors.lose(name, "killed")
    pass_time(world, actors, 500)
    assert actors.up.keys() == {"rollout-2", "rollout-3"}
    actors.load_weights(passing, lambda: None)
    assert actors.serving.keys() == {"rollout-2", "rollout-3"}


def test_a_colocated_engine_stays_with_its_rank_on_a_node_that_is_drained(world: World) -> None:
    config = a_config(actors=1)
    config = config.model_copy(update={"cluster": config.cluster.model_copy(update={"colocated": True})})
    places = iter([Place(world, "rollout-0")])
    actors = RolloutActors(
        config, world, world.said.append, world.launch, lambda: world.now, ask=lambda name: next(places)
    )
    actors.wait_until_up()
    actors.load_weights(update(0))
    world.draining["node of rollout-0"] = 60.0
    pass_time(world, actors, 30)
    assert actors.serving.keys() == {"rollout-0"}


def test_the_first_weights_come_one_after_the_other_and_nobody_is_said_to_join_late(world: World) -> None:
    actors = some_actors(world, actors=2)
    actors.wait_until_up()
    world.load_seconds_of["rollout-1"] = 5.0
    actors.load_weights(update(0))
    assert actors.serving.keys() == {"rollout-0", "rollout-1"}
    assert not any("has joined" in text for text in world.said)


def test_all_lost_at_the_first_weights_and_no_place_for_others_is_an_error(world: World) -> None:
    actors = some_actors(world, actors=2)
    actors.wait_until_up()
    world.now += 100  # a long start: it does not count as time in which nobody served
    world.places = -3  # what the two leave is gone as well
    world.dead |= {"rollout-0", "rollout-1"}
    begun = world.now
    assert actors.load_weights(update(0)) == []
    with pytest.raises(RuntimeError, match=r"no rollout actor has been serving for 3.*Waiting for rollout-2"):
        pass_time(world, actors, 100)
    assert 30 < world.now - begun < 36


def test_a_dead_actor_is_replaced_by_one_that_holds_the_current_weights(world: World) -> None:
    actors = serving_actors(world, actors=2)
    world.dead.add("rollout-0")
    start = world.now
    reports = actors.load_weights(update(1))
    assert world.now - start <= 2, "a sync does not wait for the dead"
    assert [report.version for report in reports] == [1]
    assert actors.take_gone() == ["rollout-0"]
    assert actors.take_gone() == []
    pass_time(world, actors, 5)
    assert actors.serving.keys() == {"rollout-1", "rollout-2"}
    assert actors.counts().gone[Leave.LOST] == 1


def test_a_sync_waits_for_a_silent_actor_up_to_its_deadline_only(world: World) -> None:
    actors = serving_actors(world, actors=2)
    world.silent.add("rollout-1")
    start = world.now
    assert len(actors.load_weights(update(1))) == 1
    assert 10 < world.now - start < 12
    assert actors.take_gone() == ["rollout-1"]
    assert "rollout-1" in world.killed
    reason = "`load_weights()` was not answered within cluster.sync_timeout_seconds=10"
    assert any(reason in text for text in world.said)


def test_no_sync_waits_for_an_actor_that_loads_its_first_weights(world: World) -> None:
    actors = serving_actors(world, actors=1, max_actors=2)
    actors.scale(2, "of the test")
    pass_time(world, actors, 1)
    world.load_seconds = 5.0
    pass_time(world, actors, 2)  # rollout-1 is up and loads version 0, slowly
    world.load_seconds = 1.0
    start = world.now
    actors.load_weights(update(1))
    assert world.now - start <= 2
    assert actors.serving.keys() == {"rollout-0"}, "version 0 is not current any more"
    pass_time(world, actors, 6)
    assert {name: actor.version for name, actor in actors.serving.items()} == {"rollout-0": 1, "rollout-1": 1}


def test_other_bytes_than_were_sent_are_never_served(world: World) -> None:
    actors = serving_actors(world, actors=2)
    broken = actors.serving["rollout-0"]
    broken.load_weights = Method(lambda sent: ("rollout-0", 1.0, LoadReport(sent.version, "other", 1.0, 1.0)))
    assert len(actors.load_weights(update(1))) == 1
    assert actors.take_gone() == ["rollout-0"]
    assert actors.counts().gone[Leave.FAILED] == 1


def test_a_preemption_notice_drains_and_a_replacement_is_asked_for_at_once(world: World) -> None:
    actors = serving_actors(world, actors=2)
    world.draining["node of rollout-0"] = 60.0
    pass_time(world, actors, 6)
    assert actors.draining == ["rollout-0"]
    assert actors.serving.keys() == {"rollout-1", "rollout-2"}
    assert len(actors.load_weights(update(1))) == 3, "it keeps up with the weights as long as it works"
    actors.has_drained("rollout-0")
    assert actors.take_gone() == ["rollout-0"]
    assert actors.counts().gone == {Leave.DRAINED: 1, Leave.CANCELLED: 0, Leave.LOST: 0, Leave.FAILED: 0}


def test_what_is_not_drained_in_time_is_issued_again(world: World) -> None:
    actors = serving_actors(world, actors=1)
    world.draining["node of rollout-0"] = 3.0
    pass_time(world, actors, 5)
    assert actors.take_gone() == ["rollout-0"]


def test_scaling_down_cancels_who_waits_and_drains_who_serves(world: World) -> None:
    world.places = 2
    actors = serving_actors(world, actors=2, min_actors=1, max_actors=4)
    actors.scale(3, "of the test")
    pass_time(world, actors, 2)
    assert actors.counts().at[ActorStage.WANTED] == 1
    actors.scale(1, "of the test")
    pass_time(world, actors, 1)
    assert actors.draining == ["rollout-1"]
    assert actors.counts().gone[Leave.CANCELLED] == 1
    assert [text for text in world.said if text.startswith("request")] == ["request 3", "request nothing"]


def test_a_failure_before_the_first_weights_ends_the_run(world: World) -> None:
    actors = some_actors(world, actors=1)
    actors.wait_until_up()
    with pytest.raises(RuntimeError, match=r"rollout-0 did not start: wrong model$"):
        actors.lose("rollout-0", "wrong model", own_failure=True)


def test_a_failed_start_points_at_the_actors_log_if_there_is_one(world: World, tmp_path: Path) -> None:
    config = a_config(actors=1)
    config = config.model_copy(update={"run": config.run.model_copy(update={"dir": tmp_path})})
    actors = RolloutActors(config, world, world.said.append, world.launch, lambda: world.now)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "rollout-0.log").touch()
    with pytest.raises(RuntimeError, match=rf"wrong model \(more in {tmp_path}/logs/rollout-0\.log\)$"):
        actors.lose("rollout-0", "wrong model", own_failure=True)


def test_a_wait_for_engines_is_broken_off_where_the_run_was_asked_to_stop(world: World) -> None:
    """As in a sync of a broadcast whose members are all gone."""
    world.silent.add("rollout-0")
    actors = some_actors(world, actors=1)
    ask_to_stop(world, 3)
    with heeding_signals(), finishing("this step"), pytest.raises(StopAskedError):
        actors.wait_until_up()
    assert world.now <= 4


def test_a_start_that_takes_too_long_ends_a_run_that_has_not_begun(world: World) -> None:
    world.silent.add("rollout-0")
    actors = some_actors(world, actors=1)
    with pytest.raises(RuntimeError, match=r"did not start: it did not start within cluster.start_timeout_seconds=20"):
        actors.wait_until_up()


def test_no_place_is_an_error_after_its_deadline(world: World) -> None:
    world.places = 1
    actors = some_actors(world, actors=2)
    with pytest.raises(RuntimeError, match=r"no place for rollout-1 after .*=30: 1 missing"):
        actors.wait_until_up()
    assert 30 < world.now < 32


def test_nobody_left_is_an_error_after_a_deadline_that_says_why(world: World) -> None:
    actors = serving_actors(world, actors=1)
    world.places = -1
    actors.lose("rollout-0", "its node died")
    with pytest.raises(RuntimeError, match=r"Most recent failure: rollout-0: its node died.*1 missing"):
        pass_time(world, actors, 100)
    assert 33 < world.now < 36
    assert any("waiting for rollout-1" in text for text in world.said)


def test_three_failed_starts_in_a_row_with_nobody_left_are_hopeless(world: World) -> None:
    actors = serving_actors(world, actors=1)
    actors.lose("rollout-0", "bad", own_failure=True)  # one that served: an actor can start
    for name, pause in (("rollout-1", 0), ("rollout-2", 1), ("rollout-3", 2)):
        pass_time(world, actors, pause + 1)
        assert actors.counts().at[ActorStage.STARTING] == 1
        actors.lose(name, "bad", own_failure=True)
    with pytest.raises(RuntimeError, match=r"3 in a row ended before they served\. .* rollout-3: bad.*--resume"):
        pass_time(world, actors, 1)


@pytest.mark.parametrize("wanted", [1, 4])
def test_actors_lost_before_the_run_begins_are_not_replaced_for_ever(world: World, wanted: int) -> None:
    """As on a node whose memory Ray keeps free by ending who starts there: each is lost, none fails on its own."""
    world.dead |= {f"rollout-{i}" for i in range(100)}
    actors = some_actors(world, actors=wanted)
    world.happens = lambda: pytest.fail("an endless loop") if world.now > 600 else None
    with pytest.raises(RuntimeError, match=r"in a row ended before they served\. Most recent failure: rollout-\d+: "):
        actors.wait_until_up()
    # One for each wanted actor, since they may share a node that is gone, and two more.
    assert actors.counts().lost >= wanted + 2
    assert actors.counts().asked < 3 * wanted + 3


def in_constructor(error: str) -> RayActorError:
    """What Ray raises where the constructor of an actor did: it keeps the text."""
    said = f"The actor died because of an error raised in its creation task, ray::RolloutActor.__init__()\n{error}"
    return RayActorError("a", said, actor_init_failed=True)


def test_an_engine_that_is_killed_on_the_first_start_is_replaced_and_a_wrong_setting_ends_the_run(world: World) -> None:
    actors = some_actors(world, actors=1)
    pass_time(world, actors, 1)
    killed = "medr1_ray.rollout.actor.EngineLostError: the engine process was ended by SIGKILL while it started"
    actors.on_error("rollout-0", in_constructor(killed))
    assert "rollout-0 is gone (lost): EngineLostError: the engine process was ended by SIGKILL" in world.said[-1]
    actors.wait_until_up()
    assert actors.up.keys() == {"rollout-1"}
    actors.scale(2, "of the test")
    pass_time(world, actors, 1)
    with pytest.raises(NotStartedError, match=r"^rollout-2 did not start: RuntimeError: vLLM did not start: no"):
        actors.on_error("rollout-2", in_constructor("RuntimeError: vLLM did not start: no such key"))


def passing_update(version: int) -> WeightUpdate:
    return WeightUpdate(version, (), f"digest {version}", lasting=False)


def test_a_newcomer_waits_for_the_next_sync_where_updates_do_not_last(world: World) -> None:
    actors = serving_actors(world, actors=1, max_actors=2)
    actors.load_weights(passing_update(1))
    actors.scale(2, "the test says so")
    pass_time(world, actors, 5)
    assert actors.up.keys() == {"rollout-0", "rollout-1"}
    assert actors.serving.keys() == {"rollout-0"}
    assert len(actors.load_weights(passing_update(2))) == 2
    actors.tick()
    assert actors.serving.keys() == {"rollout-0", "rollout-1"}


def test_a_broken_broadcast_costs_only_the_dead_actor(world: World) -> None:
    actors = serving_actors(world, actors=2)
    world.dead.add("rollout-0")
    world.failing.add("rollout-1")
    assert actors.load_weights(passing_update(1), lambda: None) == []
    assert actors.take_gone() == ["rollout-0"]
    assert actors.up.keys() == {"rollout-1"}
    world.failing.clear()
    assert len(actors.load_weights(passing_update(1), lambda: None)) == 1
    assert actors.counts().gone[Leave.FAILED] == 0


@pytest.mark.parametrize("together", [True, False])
def test_an_actor_whose_engine_died_in_a_load_is_given_up_at_once(world: World, together: bool) -> None:
    """Not only where the actor is gone with it: it would fail every later call."""
    actors = serving_actors(world, actors=2)
    world.engine_dead.add("rollout-0")
    start = world.now
    broken_off: list[float] = []
    break_off = (lambda: broken_off.append(world.now - start)) if together else None
    assert len(actors.load_weights(passing_update(1), break_off)) == 1
    assert world.now - start <= 2
    assert broken_off == [0.5] * together, "those that are left need not wait for it, and hear so once"
    assert actors.take_gone() == ["rollout-0"]
    assert actors.up.keys() == {"rollout-1"}


def test_one_that_fails_alone_is_given_up(world: World) -> None:
    """Weights that an engine reads by itself: nobody else can be at fault, and it holds a mixture."""
    actors = serving_actors(world, actors=2)
    world.failing.add("rollout-0")
    assert len(actors.load_weights(passing_update(1))) == 1
    assert actors.take_gone() == ["rollout-0"]
