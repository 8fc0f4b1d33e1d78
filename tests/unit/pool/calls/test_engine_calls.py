"""Calls that every actor gets at once: who answers, who is given up, and what is said of the others."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from medr1_ray.pool.actor_states import Leave
from medr1_ray.pool.actors import RolloutActors
from medr1_ray.pool.calls.engine_calls import EngineCalls
from medr1_ray.weights.messages import WeightGroup, WeightMember
from tests.unit.pool.world import Method, World, a_config, install, update

LIMIT = 10.0  # `a_config`'s cluster.sync_timeout_seconds
METHODS = ("sleep", "wake", "forget_run", "join_weight_group")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    install(world, monkeypatch)
    return world


@pytest.fixture
def asked() -> list[tuple[str, str, tuple[Any, ...]]]:
    """What the actors were asked, by the names of method and actor."""
    return []


@pytest.fixture
def actors(world: World, asked: list[tuple[str, str, tuple[Any, ...]]]) -> RolloutActors:
    """Three that serve, and note what they are asked."""
    made = RolloutActors(a_config(actors=3), world, world.said.append, world.launch, lambda: world.now)
    made.wait_until_up()
    made.load_weights(update(0))

    def noted(method: str, name: str, answer: Any = None) -> Method:
        def call(*arguments: Any) -> Any:
            asked.append((method, name, arguments))
            return name, 1.0, answer

        return Method(call)

    for number, (name, handle) in enumerate(made.up.items()):
        for method in METHODS:
            setattr(handle, method, noted(method, name))
        handle.weight_member = noted("weight_member", name, WeightMember(name, "first", number + 1))
    return made


NAMES = ["rollout-0", "rollout-1", "rollout-2"]


def test_every_actor_is_asked_at_once_and_all_are_waited_for(actors: RolloutActors, asked: Any, world: World) -> None:
    engines = EngineCalls(actors)
    start = world.now
    for call in (engines.sleep, engines.wake, engines.forget_run):
        call()
    assert asked == [(method, name, ()) for method in METHODS[:3] for name in NAMES]
    assert world.now - start == 3 * 1.0


def test_the_members_are_those_that_answered(actors: RolloutActors, world: World) -> None:
    engines = EngineCalls(actors)
    assert [(member.actor, member.ranks) for member in engines.weight_members()] == list(
        zip(NAMES, (1, 2, 3), strict=True)
    )
    world.dead.add("rollout-1")
    world.engine_dead.add("rollout-2")
    assert [member.actor for member in engines.weight_members()] == ["rollout-0"]
    assert actors.take_gone() == ["rollout-1", "rollout-2"]
    assert world.killed == ["rollout-1", "rollout-2"]


def test_only_the_named_actors_join_each_at_its_own_place(actors: RolloutActors, asked: Any) -> None:
    places = {f"rollout-{i}": WeightGroup("host:1", 4, i) for i in (2, 0)}
    EngineCalls(actors).join_weight_group(places)
    assert asked == [("join_weight_group", name, (places[name],)) for name in ("rollout-2", "rollout-0")]


@pytest.mark.parametrize(
    ("method", "fault"),
    # The failing still say that they are there.
    sorted(
        {*product(("sleep", "wake", "forget_run", "weight_members"), ("silent", "dead", "engine_dead", "failing"))}
        - {("weight_members", "failing")}
    ),
)
def test_whatever_goes_wrong_with_an_actor_it_is_given_up_and_the_others_go_on(
    actors: RolloutActors, world: World, method: str, fault: str
) -> None:
    getattr(world, fault).add("rollout-1")
    start = world.now
    getattr(EngineCalls(actors), method)()
    assert world.now - start <= (LIMIT + 1 if fault == "silent" else 1)
    assert actors.up.keys() == {"rollout-0", "rollout-2"}
    own = fault == "failing"
    assert actors.counts().gone[Leave.FAILED if own else Leave.LOST] == 1
    if fault == "silent":
        assert "was not answered within cluster.sync_timeout_seconds=10" in world.said[-1]


def test_one_that_nobody_met_in_a_group_is_in_health(actors: RolloutActors, world: World) -> None:
    """Those that wait for a dead member fail as well, and are members of the next group."""
    world.dead.add("rollout-1")
    world.failing |= {"rollout-0", "rollout-2"}
    places = {name: WeightGroup("host:1", 4, i) for i, name in enumerate(NAMES)}
    with pytest.raises(RuntimeError, match=r"^rollout-0: `join_weight_group\(\)` failed: .*the broadcast broke$"):
        EngineCalls(actors).join_weight_group(places)
    assert actors.up.keys() == {"rollout-0", "rollout-2"}


def test_without_actors_there_is_nothing_to_wait_for(world: World) -> None:
    world.places = 0
    actors = RolloutActors(a_config(actors=1), world, world.said.append, world.launch, lambda: world.now)
    assert EngineCalls(actors).weight_members() == []
    assert world.now == 0
