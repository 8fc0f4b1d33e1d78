"""How the driver leads both ends of a transport: the order of the calls, and who is told what."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from medr1_ray.run.weight_sync import BroadcastSync, ColocatedSync, WeightSync, make_weight_sync
from medr1_ray.weights.messages import WeightGroup, WeightMember


class Both:
    """Learner and pool in one, recording calls.

    `broken` loads fail. As in the real pool the members stay: an actor whose engine failed in a broadcast is asked
    again.
    """

    def __init__(self, *ranks: int, broken: int = 0) -> None:
        self.calls: list[str] = []
        self.engines = self
        self.members = {f"rollout-{i}": WeightMember(f"rollout-{i}", "first", n) for i, n in enumerate(ranks)}
        self.places: dict[str, WeightGroup] = {}
        self.broken = broken
        self.unreported = 0

    def publish_weights(self, version: int, *, to_newcomers: bool = True) -> str:
        self.calls.append(f"publish {version}{' to newcomers' if to_newcomers else ''}")
        return f"update {version}"

    def load_weights(self, update: str) -> list[str]:
        self.calls.append(f"load {update}")
        if self.broken:
            self.broken -= 1
            raise RuntimeError("the broadcast broke")
        return list(self.members)[self.unreported :]

    def release_weights(self) -> None:
        self.calls.append("release")

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
    return [f"publish {version}{newcomers}", "send", f"load update {version}", "end of sending"]


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


def test_a_broken_broadcast_is_repeated_in_a_new_group() -> None:
    both = Both(2, 1, 4, broken=1)
    sync_of(BroadcastSync, both).sync(5)
    assert both.calls == [*JOINING, *broadcast(5, " to newcomers")] * 2


def test_a_member_that_is_gone_before_the_second_attempt_is_not_in_its_group() -> None:
    both = Both(2, 1, 4, broken=1)
    attempt = both.weight_members

    def without_the_last() -> list[WeightMember]:
        return attempt() if both.broken else attempt()[:-1]

    both.weight_members = without_the_last  # type: ignore[method-assign]
    both.unreported = 1
    sync_of(BroadcastSync, both).sync(5)
    assert "learner joins host:1 of 4" in both.calls
    assert set(both.places) == {"rollout-0", "rollout-1"}


def test_a_broadcast_that_breaks_again_is_an_error() -> None:
    both = Both(2, 1, 4, broken=2)
    with pytest.raises(RuntimeError, match="the broadcast broke"):
        sync_of(BroadcastSync, both).sync(5)
    assert both.calls[-1] == "end of sending"  # the learner is not left behind in the broadcast


def test_an_engine_that_does_not_report_breaks_the_broadcast() -> None:
    both = Both(2, 1)
    both.unreported = 1
    with pytest.raises(RuntimeError, match="policy version 5 reached 1 of 2 rollout actors"):
        sync_of(BroadcastSync, both).sync(5)


def test_without_any_engine_there_is_nothing_to_build_a_group_of() -> None:
    with pytest.raises(RuntimeError, match="no rollout actor is up to load policy version 5"):
        sync_of(BroadcastSync, Both()).sync(5)


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
