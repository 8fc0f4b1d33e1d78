"""Calls that every actor gets at once: who answers, who is given up, and what is said of the others."""

from __future__ import annotations

from typing import Any

import pytest
from ray.exceptions import ActorDiedError, GetTimeoutError, RayTaskError

from medr1_ray.pool import engine_calls as module
from medr1_ray.pool.actor_states import Leave
from medr1_ray.pool.actors import RolloutActors
from medr1_ray.pool.engine_calls import EngineCalls
from medr1_ray.weights.messages import WeightGroup, WeightMember
from tests.unit.pool.world import Method, World, a_config, install, update

LIMIT = 10.0


class Calls:
    """What the actors were asked, by the names of method and actor; `error_of` is raised by `ray.get` of an actor."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, tuple[Any, ...]]] = []
        self.waited: list[tuple[int, int, float]] = []
        self.error_of: dict[str, Exception] = {}

    def method(self, called: str, actor: str, answer: Any = None) -> Method:
        def call(*arguments: Any) -> Any:
            self.asked.append((called, actor, arguments))
            return actor, answer

        return Method(call)

    def wait(self, references: list[Any], num_returns: int, timeout: float) -> None:
        self.waited.append((len(references), num_returns, timeout))

    def get(self, reference: Any, timeout: float) -> Any:
        assert timeout == 0, "`ray.wait` has waited already"
        actor, answer = reference
        if actor in self.error_of:
            raise self.error_of[actor]
        return answer


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    install(world, monkeypatch)
    return world


@pytest.fixture
def calls(world: World, monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls()
    monkeypatch.setattr(module.ray, "wait", calls.wait)
    monkeypatch.setattr(module.ray, "get", calls.get)
    return calls


@pytest.fixture
def actors(world: World, calls: Calls) -> RolloutActors:
    """Three that serve; each has the methods that are called here."""
    made = RolloutActors(a_config(actors=3), world, world.said.append, world.launch, lambda: world.now)  # type: ignore[arg-type]
    made.wait_until_up()
    made.load_weights(update(0))
    for number, (name, handle) in enumerate(made.up.items()):
        for method in ("sleep", "wake", "join_weight_group"):
            setattr(handle, method, calls.method(method, name))
        handle.weight_member = calls.method("weight_member", name, WeightMember(name, "first", number + 1))
    return made


def test_every_actor_is_asked_at_once_and_all_are_waited_for(actors: RolloutActors, calls: Calls) -> None:
    engines = EngineCalls(actors, LIMIT)
    engines.sleep()
    engines.wake()
    names = ["rollout-0", "rollout-1", "rollout-2"]
    assert calls.asked == [("sleep", name, ()) for name in names] + [("wake", name, ()) for name in names]
    assert calls.waited == [(3, 3, LIMIT)] * 2


def test_the_members_are_those_that_answered(actors: RolloutActors, calls: Calls, world: World) -> None:
    engines = EngineCalls(actors, LIMIT)
    assert [(member.actor, member.ranks) for member in engines.weight_members()] == [
        ("rollout-0", 1),
        ("rollout-1", 2),
        ("rollout-2", 3),
    ]
    calls.error_of["rollout-1"] = ActorDiedError()
    assert [member.actor for member in engines.weight_members()] == ["rollout-0", "rollout-2"]
    assert actors.take_gone() == ["rollout-1"]
    assert actors.counts().gone[Leave.LOST] == 1
    assert world.killed == ["rollout-1"]


def test_only_the_named_actors_join_each_at_its_own_place(actors: RolloutActors, calls: Calls) -> None:
    places = {f"rollout-{i}": WeightGroup("host:1", 4, i) for i in (2, 0)}
    EngineCalls(actors, LIMIT).join_weight_group(places)
    assert calls.asked == [("join_weight_group", name, (places[name],)) for name in ("rollout-0", "rollout-2")]
    assert calls.waited == [(2, 2, LIMIT)]


def test_an_actor_that_does_not_answer_is_named_with_the_call_and_the_limit(
    actors: RolloutActors, calls: Calls
) -> None:
    calls.error_of["rollout-1"] = GetTimeoutError()
    with pytest.raises(RuntimeError, match=r"^rollout-1: `sleep\(\)` timed out after 10 s \(cluster\.sync_timeout_sec"):
        EngineCalls(actors, LIMIT).sleep()


def test_a_method_that_raises_ends_the_call_and_keeps_the_actor(actors: RolloutActors, calls: Calls) -> None:
    traceback = "Traceback (most recent call last):\n  ...\nRuntimeError: the engine has no weights"
    calls.error_of["rollout-2"] = RayTaskError("wake", traceback, RuntimeError())
    with pytest.raises(RuntimeError, match=r"(?s)^rollout-2: `wake\(\)` failed: .*RuntimeError: the engine has no"):
        EngineCalls(actors, LIMIT).wake()
    assert actors.take_gone() == []


def test_without_actors_there_is_nothing_to_wait_for(world: World, calls: Calls) -> None:
    world.places = 0
    actors = RolloutActors(a_config(actors=1), world, world.said.append, world.launch, lambda: world.now)  # type: ignore[arg-type]
    assert EngineCalls(actors, LIMIT).weight_members() == []
    assert calls.waited == []
