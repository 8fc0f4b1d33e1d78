"""How the driver leads both ends of a transport: the order of the calls, and who is told what."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from medr1_ray.cluster.resources import NotStartedError
from medr1_ray.learner.batching import nothing
from medr1_ray.learner.messages import LearnerLateError
from medr1_ray.pool.actors import RolloutActors
from medr1_ray.pool.group_ledger import Ledger
from medr1_ray.pool.groups import RolloutPool
from medr1_ray.run.weight_sync import BroadcastSync, ColocatedSync, WeightSync, make_weight_sync
from medr1_ray.weights.messages import WeightGroup, WeightMember, WeightUpdate
from tests.unit.pool.world import World, a_config, a_stream, install, reward_actors


class Both:
    """Learner and pool in one, recording calls.

    In the `broken` first loads the last member dies and no member reports, as in a broadcast that waits for one. Who is
    a member then is asked of those that are left.
    """

    def __init__(self, *ranks: int, broken: int = 0) -> None:
        self.calls: list[str] = []
        self.polled: list[str] = []
        self.engines = self
        self.members = {f"rollout-{i}": WeightMember(f"rollout-{i}", "first", n) for i, n in enumerate(ranks)}
        self.places: dict[str, WeightGroup] = {}
        self.broken = broken
        self.renew_weights: Any = None

    def poll(self) -> None:
        self.polled.append(self.calls[-1])

    def publish_weights(
        self, version: int, *, to_newcomers: bool = True, meanwhile: Callable[[], None] = nothing
    ) -> str:
        self.calls.append(f"publish {version}{' to newcomers' if to_newcomers else ''}")
        meanwhile()
        return f"update {version}"

    def load_weights(self, update: str, break_off: Any = None) -> list[str]:
        self.calls.append(f"load {update}{' of ' + ', '.join(break_off.args) if break_off else ''}")
        if self.broken:
            self.broken -= 1
            self.members.popitem()
            return []
        return list(self.members)

    def wait_until_up(self) -> None:
        self.calls.append("wait")
        self.members["rollout-9"] = WeightMember("rollout-9", "first", 1)

    def release_weights(self, meanwhile: Callable[[], None] = nothing) -> None:
        self.calls.append("release")
        meanwhile()

    def send_weights(self) -> str:
        self.calls.append("send")
        return "sending"

    def weight_group_address(self) -> str:
        return "host:1"

    def finish(self, call: str) -> None:
        self.calls.append(f"end of {call}")

    def sleep(self) -> None:
        self.calls.append("sleep")

    def wake(self) -> None:
        self.calls.append("wake")

    def weight_members(self) -> list[WeightMember]:
        return list(self.members.values())

    def join_weight_group(self, *arguments: Any) -> str:
        """The learner's (address, world size), or the engines' (places by name)."""
        if isinstance(arguments[0], str):
            self.calls.append(f"learner joins {arguments[0]} of {arguments[1]}")
        else:
            self.calls.append("engines join")
            self.places = arguments[0]
        return "joining"


def sync_of(kind: type[WeightSync], both: Both) -> WeightSync:
    return kind(both, both)  # type: ignore[arg-type]


JOINING = ["learner joins host:1 of 8", "engines join", "end of joining"]


def broadcast(version: int, newcomers: str = "") -> list[str]:
    return [f"publish {version}{newcomers}", "send", f"load update {version} of host:1", "end of sending"]


def test_apart_an_update_is_published_and_loaded() -> None:
    both = Both(1, 1)
    plain = sync_of(WeightSync, both)
    plain.make_room()
    plain.sync(3)
    assert both.calls == ["publish 3 to newcomers", "load update 3"]


def test_colocated_the_engines_sleep_before_the_update_and_wake_when_the_learner_has_let_go() -> None:
    both = Both(1, 1)
    colocated = sync_of(ColocatedSync, both)
    colocated.make_room()
    colocated.sync(3)
    assert both.calls == ["sleep", "publish 3 to newcomers", "load update 3", "release", "wake"]


@pytest.mark.parametrize("kind", [WeightSync, ColocatedSync, BroadcastSync])
def test_the_pool_goes_on_while_the_learner_publishes(kind: type[WeightSync]) -> None:
    both = Both(1, 1)
    sync_of(kind, both).sync(3)
    released = ["release"] if kind is ColocatedSync else []
    assert both.polled == ["publish 3 to newcomers", *released]


def test_a_group_is_built_once_and_every_engine_gets_its_own_offset() -> None:
    both = Both(2, 1, 4)
    broadcasting = sync_of(BroadcastSync, both)
    broadcasting.sync(0)
    broadcasting.sync(1)
    assert both.calls == [*JOINING, *broadcast(0, " to newcomers"), *broadcast(1)]
    assert {name: place.rank_offset for name, place in both.places.items()} == {
        "rollout-0": 1,
        "rollout-1": 3,
        "rollout-2": 4,
    }
    assert {place.world_size for place in both.places.values()} == {8}


def test_a_restarted_engine_of_the_same_name_makes_a_new_group() -> None:
    both = Both(2, 1, 4)
    broadcasting = sync_of(BroadcastSync, both)
    broadcasting.sync(0)
    both.calls.clear()
    both.members["rollout-1"] = WeightMember("rollout-1", "second", 1)
    broadcasting.sync(1)
    assert both.calls == [*JOINING, *broadcast(1, " to newcomers")]


def test_a_broken_broadcast_is_repeated_in_a_new_group_of_those_that_are_left() -> None:
    both = Both(2, 1, 4, broken=1)
    sync_of(BroadcastSync, both).sync(5)
    left = [JOINING[0].replace("8", "4"), *JOINING[1:]]
    assert both.calls == [*JOINING, *broadcast(5, " to newcomers"), *left, *broadcast(5, " to newcomers")]
    assert set(both.places) == {"rollout-0", "rollout-1"}


def test_a_broadcast_that_breaks_again_and_again_is_an_error() -> None:
    both = Both(2, 1, 4, 1, broken=3)
    with pytest.raises(RuntimeError, match="policy version 5 reached 0 of 2 rollout actors"):
        sync_of(BroadcastSync, both).sync(5)
    assert both.calls[-1] == "end of sending"  # the learner is not left behind in the broadcast


def test_where_nobody_is_left_the_group_is_built_of_those_that_come() -> None:
    both = Both(1, broken=1)
    sync_of(BroadcastSync, both).sync(5)
    assert both.calls[len(JOINING) + 4] == "wait"
    assert set(both.places) == {"rollout-9"}


@pytest.mark.parametrize("kind", [BroadcastSync, ColocatedSync])
def test_weights_that_do_not_last_can_be_renewed_for_newcomers(kind: type[WeightSync]) -> None:
    both = Both(1)
    sync_of(kind, both).sync(5)
    both.calls.clear()
    both.renew_weights()
    assert any(call.startswith("publish 5") for call in both.calls)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    install(world, monkeypatch)
    return world


def test_a_broadcast_outlives_an_engine_process_that_dies_in_it(world: World) -> None:
    """With the real pool: the actor of the dead engine stays alive, and each of its calls fails."""
    actors, pool = a_pool(world, actors=3)
    learner = Both()
    learner.publish_weights = lambda version, **_: passing(version)  # type: ignore[assignment]
    broadcasting = BroadcastSync(learner, pool)  # type: ignore[arg-type]
    broadcasting.sync(1)
    assert len(actors.serving) == 3

    def send_weights() -> str:
        if not world.killed:
            world.engine_dead.add("rollout-1")
            world.failing |= {"rollout-0", "rollout-2"}  # whom it leaves waiting in the broadcast
        return "sending"

    learner.send_weights = send_weights  # type: ignore[method-assign]

    def happens() -> None:
        if "rollout-1" in world.killed:
            world.failing.clear()

    world.happens = happens
    broadcasting.sync(2)
    assert {actors.serving[name].version for name in ("rollout-0", "rollout-2")} == {2}
    assert not actors.has("rollout-1")


@pytest.mark.parametrize("error", [LearnerLateError("learner-0: still sending"), ValueError("weights are not finite")])
def test_what_is_not_the_broadcasts_fault_is_not_tried_again(error: Exception) -> None:
    both = Both(1, 1)

    def finish(call: str) -> None:
        both.calls.append(f"end of {call}")
        if call == "sending":
            raise error

    both.finish = finish  # type: ignore[method-assign]
    with pytest.raises(type(error), match=str(error)):
        sync_of(BroadcastSync, both).sync(5)
    assert both.calls.count("send") == 1


def test_a_rank_that_fails_in_a_broadcast_may_be_the_fault_of_a_member() -> None:
    both, failures = Both(1, 1), [RuntimeError("learner-0 failed while sending weights: broken off")]

    def finish(call: str) -> None:
        if call == "sending" and failures:
            raise failures.pop()

    both.finish = finish  # type: ignore[method-assign]
    sync_of(BroadcastSync, both).sync(5)
    assert both.calls.count("send") == 2


def test_an_actor_that_cannot_start_ends_the_run_though_a_broadcast_goes_on(world: World) -> None:
    """The pool tells of it in the middle of the first sync; tried again, that would wait for nobody for ever."""
    world.silent.add("rollout-1")
    actors, pool = a_pool(world, actors=2, min_actors=1)
    world.load_seconds = 4.0
    learner = Both()
    learner.publish_weights = lambda version, **_: passing(version)  # type: ignore[assignment]

    def send_weights() -> str:
        learner.calls.append("send")
        actors.lose("rollout-1", "ValueError: other code", own_failure=True)
        return "sending"

    learner.send_weights = send_weights  # type: ignore[method-assign]
    with pytest.raises(NotStartedError, match="rollout-1 did not start: ValueError: other code"):
        BroadcastSync(learner, pool).sync(0)  # type: ignore[arg-type]
    assert learner.calls.count("send") == 1


def passing(version: int) -> WeightUpdate:
    return WeightUpdate(version, (), f"digest {version}", lasting=False)


def a_pool(world: World, **rollout: Any) -> tuple[RolloutActors, RolloutPool]:
    config = a_config(**rollout)
    actors = RolloutActors(config, world, world.said.append, world.launch, lambda: world.now)
    pool = RolloutPool(config, actors, reward_actors(world, config), a_stream(), Ledger(lambda: world.now))
    actors.wait_until_up()
    return actors, pool


@pytest.mark.parametrize(
    ("transport", "colocated", "kind"),
    [
        ("object_store", False, WeightSync),
        ("nccl", False, BroadcastSync),
        ("ipc", True, ColocatedSync),
        ("object_store", True, ColocatedSync),
    ],
)
def test_the_settings_choose_the_class(transport: str, colocated: bool, kind: type[WeightSync]) -> None:
    config = SimpleNamespace(cluster=SimpleNamespace(weight_transport=transport, colocated=colocated))
    learner, pool = Both(1), Both(1)
    made = make_weight_sync(config, learner, pool)  # type: ignore[arg-type]
    assert type(made) is kind
    assert (made._learner, made._pool) == (learner, pool)
