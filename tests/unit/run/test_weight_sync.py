"""How the driver leads both ends of a transport: the order of the calls, and who is told what."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from medr1_ray.run.weight_sync import BroadcastChannel, ColocatedChannel, WeightChannel, weight_channel
from medr1_ray.weights.messages import WeightGroup, WeightMember


class Both:
    """Learner and pool in one, recording calls. `broken` syncs fail; each of them loses the last member."""

    def __init__(self, *ranks: int, broken: int = 0) -> None:
        self.calls: list[str] = []
        self.members = {f"rollout-{i}": WeightMember(f"rollout-{i}", "first", n) for i, n in enumerate(ranks)}
        self.places: dict[str, WeightGroup] = {}
        self.broken = broken
        self.unreported = 0

    def export_weights(self, version: int, *, to_newcomers: bool = True) -> str:
        self.calls.append(f"export {version}{' to newcomers' if to_newcomers else ''}")
        return f"update {version}"

    def load_weights(self, update: str) -> list[str]:
        self.calls.append(f"load {update}")
        if self.broken:
            self.broken -= 1
            self.members.popitem()
            raise RuntimeError("an engine died")
        return list(self.members)[self.unreported :]

    def release_weights(self) -> None:
        self.calls.append("release")

    def send_weights(self) -> str:
        self.calls.append("send")
        return "sending"

    def weight_group_address(self) -> str:
        return "host:1"

    def join_weight_group(self, address: str, world_size: int) -> str:
        self.calls.append(f"learner joins {address} of {world_size}")
        return "joining"

    def finish(self, call: str) -> None:
        self.calls.append(f"end of {call}")

    def call(self, method: str, what: str, arguments: Any = None) -> dict[str, Any]:
        if method == "weight_member":
            return dict(self.members)
        self.calls.append(method)
        if method == "join_weight_group":
            self.places = {name: place for name, (place,) in arguments.items()}
        return dict.fromkeys(self.members)


def channel(kind: type[WeightChannel], both: Both) -> WeightChannel:
    return kind(both, both)  # type: ignore[arg-type]


JOINING = ["learner joins host:1 of 8", "join_weight_group", "end of joining"]


def broadcast(version: int, newcomers: str = "") -> list[str]:
    return [f"export {version}{newcomers}", "send", f"load update {version}", "end of sending"]


def test_apart_an_update_is_exported_and_loaded() -> None:
    both = Both(1, 1)
    plain = channel(WeightChannel, both)
    plain.make_room()
    plain.sync(3)
    assert both.calls == ["export 3 to newcomers", "load update 3"]


def test_colocated_the_engines_sleep_before_the_update_and_wake_when_the_learner_has_let_go() -> None:
    both = Both(1, 1)
    colocated = channel(ColocatedChannel, both)
    colocated.make_room()
    colocated.sync(3)
    assert both.calls == ["sleep", "export 3 to newcomers", "load update 3", "release", "wake"]


def test_a_group_is_built_once_and_every_engine_gets_its_own_offset() -> None:
    both = Both(2, 1, 4)
    broadcasting = channel(BroadcastChannel, both)
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
    broadcasting = channel(BroadcastChannel, both)
    broadcasting.sync(0)
    both.calls.clear()
    both.members["rollout-1"] = WeightMember("rollout-1", "second", 1)
    broadcasting.sync(1)
    assert both.calls == [*JOINING, *broadcast(1, " to newcomers")]


def test_a_broken_broadcast_is_repeated_in_a_group_of_those_that_are_left() -> None:
    both = Both(2, 1, 4, broken=1)
    channel(BroadcastChannel, both).sync(5)
    again = ["learner joins host:1 of 4", *JOINING[1:], *broadcast(5, " to newcomers")]
    assert both.calls == [*JOINING, *broadcast(5, " to newcomers"), *again]


def test_a_broadcast_that_breaks_again_is_an_error() -> None:
    both = Both(2, 1, 4, broken=2)
    with pytest.raises(RuntimeError, match="an engine died"):
        channel(BroadcastChannel, both).sync(5)
    assert both.calls[-1] == "end of sending"  # the learner is not left behind in the broadcast


def test_an_engine_that_does_not_report_breaks_the_broadcast() -> None:
    both = Both(2, 1)
    both.unreported = 1
    with pytest.raises(RuntimeError, match="policy version 5 reached 1 of 2 rollout actors"):
        channel(BroadcastChannel, both).sync(5)


def test_without_any_engine_there_is_nothing_to_build_a_group_of() -> None:
    with pytest.raises(RuntimeError, match="no rollout actor is there to take policy version 5"):
        channel(BroadcastChannel, Both()).sync(5)


@pytest.mark.parametrize(
    ("transport", "colocated", "kind"),
    [
        ("object_store", False, WeightChannel),
        ("nccl", False, BroadcastChannel),
        ("ipc", True, ColocatedChannel),
        ("object_store", True, ColocatedChannel),
    ],
)
def test_the_settings_choose_the_channel(transport: str, colocated: bool, kind: type[WeightChannel]) -> None:
    config = SimpleNamespace(cluster=SimpleNamespace(weight_transport=transport, colocated=colocated))
    both = Both(1)
    assert type(weight_channel(config, both, both)) is kind  # type: ignore[arg-type]
