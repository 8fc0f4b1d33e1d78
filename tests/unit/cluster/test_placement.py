"""Placement groups: waiting for one, what is said meanwhile, and what is asked of the autoscaler."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from medr1_ray.cluster import placement
from medr1_ray.cluster.placement import (
    Place,
    SharedPlace,
    describe_missing,
    draining_nodes,
    release_nodes,
    request_nodes,
    require_possible,
    wait_for_place,
)
from medr1_ray.cluster.resources import Demand
from medr1_ray.config import Config

DEMAND = Demand("learner rank", 2, 1, 1, {"market-type": "on-demand"})


def a_config(**sections: Any) -> Config:
    data = {"format": "phantoms", "root": Path("data")}
    return Config.model_validate({"run": {"dir": Path("run")}, "data": data, "train": {"steps": 1}, **sections})


def node(cpus: float, gpus: float = 0.0, alive: bool = True, **labels: str) -> dict[str, Any]:
    return {"NodeID": "n", "Alive": alive, "Resources": {"CPU": cpus, "GPU": gpus}, "Labels": labels}


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The nodes of the cluster, to be filled by the test; half of what they have is free."""
    there: list[dict[str, Any]] = []

    def resources(share: float) -> Callable[[], dict[str, float]]:
        return lambda: {
            kind: share * sum(n["Resources"][kind] for n in there if n["Alive"]) for kind in ("CPU", "GPU")
        }

    monkeypatch.setattr(ray, "nodes", lambda: there)
    monkeypatch.setattr(ray, "cluster_resources", resources(1))
    monkeypatch.setattr(ray, "available_resources", resources(0.5))
    return there


class Clock:
    """A clock that sleeping moves on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(placement.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(placement.time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Pending(Place):
    """A place that is there from the given time on."""

    def __init__(self, clock: Clock, at: float) -> None:
        super().__init__("learner", DEMAND, group=None)  # type: ignore[arg-type]
        object.__setattr__(self, "_is_there", lambda: clock.now >= at)

    def is_there(self) -> bool:
        return bool(self._is_there())  # type: ignore[attr-defined]


def test_one_waits_until_the_place_is_there_and_says_every_15_seconds_what_is_missing(
    nodes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes += [node(8, 2), node(4, alive=False)]
    clock, said, turns = Clock(monkeypatch), list[str](), list[float]()
    wait_for_place(Pending(clock, at=1040), 120, said.append, lambda: turns.append(clock.now))
    # After 15 s and 30 s and one poll each (0.2 s): once more than 15 s have passed.
    assert [line.partition(": ")[0] for line in said] == [
        "waiting for a place for learner for 15 s",
        "waiting for a place for learner for 30 s",
    ]
    assert said[0].endswith(
        "it needs 2 x (1 CPU, 1 GPU) on nodes labelled market-type=on-demand; free in the cluster of 1 nodes: "
        "4 of 8 CPUs, 1 of 2 GPUs"
    )
    assert len(turns) == pytest.approx(40 / 0.2, abs=1), "the driver's other work goes on"


def test_one_does_not_wait_longer_than_the_limit(nodes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    nodes.append(node(8))
    clock = Clock(monkeypatch)
    says = r"no place for learner after cluster\.placement_timeout_seconds=20: it needs 2 x"
    with pytest.raises(RuntimeError, match=says):
        wait_for_place(Pending(clock, at=math.inf), 20, lambda line: None, lambda: None)
    assert clock.now == pytest.approx(1020, abs=0.5)
    wait_for_place(Pending(clock, at=0), 0.001, lambda line: pytest.fail(line), lambda: pytest.fail("no need"))


def test_a_shared_place_gives_its_bundle_to_the_next_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[Any] = []
    monkeypatch.setattr(placement, "remove_placement_group", removed.append)
    monkeypatch.setattr(placement, "placement_group_table", lambda group: {"bundles_to_node_id": {0: "a", 1: "b"}})
    monkeypatch.setattr(placement, "PlacementGroupSchedulingStrategy", lambda group, placement_group_bundle_index: (
        group, placement_group_bundle_index
    ))
    free: list[int] = [5]
    group: Any = "group"
    shared = SharedPlace("rollout-1", DEMAND, group, bundle=1, free=free)
    assert shared.node_id() == "b"
    assert shared.options() == {"num_cpus": 1, "num_gpus": 1, "scheduling_strategy": ("group", 1)}
    shared.give_back()
    assert (free, removed) == ([5, 1], []), "the group belongs to the learner"
    own = Place("rollout-1", DEMAND, group)
    assert own.node_id() == "a"
    assert own.node_ids() == ["a", "b"], "one for each actor of the demand"
    assert own.options()["scheduling_strategy"] == ("group", 0)
    assert own.options(1)["scheduling_strategy"] == ("group", 1)
    own.give_back()
    assert removed == ["group"]


def test_a_place_has_a_bundle_for_each_actor_on_nodes_with_the_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def group(bundles: Any, **settings: Any) -> str:
        asked.append((bundles, settings))
        return "group"

    monkeypatch.setattr(placement, "placement_group", group)
    place = placement.ask_for_place("learner", DEMAND, "STRICT_PACK")
    bundles, settings = asked[0]
    assert bundles == [{"CPU": 1, "GPU": 1}] * 2
    assert settings["bundle_label_selector"] == [{"market-type": "on-demand"}] * 2
    assert (settings["strategy"], settings["name"]) == ("STRICT_PACK", "learner")
    assert (place.name, place.demand, place.group) == ("learner", DEMAND, "group")
    placement.ask_for_place("reward", Demand("reward actor", 1, 0.1, 0, {}), "PACK")
    assert asked[1][1]["bundle_label_selector"] is None


def test_a_place_is_there_when_ray_has_created_it(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place("learner", DEMAND, group="group")  # type: ignore[arg-type]
    for state, there in (("PENDING", False), ("CREATED", True), ("RESCHEDULING", False), ("REMOVED", False)):
        monkeypatch.setattr(placement, "placement_group_table", lambda group, state=state: {"state": state})
        assert place.is_there() is there


def test_seconds_left_of_a_draining_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    state = ray._private.state.state
    monkeypatch.setattr(type(state), "get_draining_nodes", lambda self: {"a": 1_030_000, "b": 0, "c": 999_000})
    assert draining_nodes() == {"a": 30.0, "b": math.inf, "c": -1.0}


def test_a_run_that_does_not_fit_is_refused_unless_the_cluster_can_grow(nodes: list[dict[str, Any]]) -> None:
    config = a_config(rollout={"actors": 4, "min_actors": 2, "gpus_per_actor": 1})
    nodes.append(node(8, 1))
    nodes.append(node(8, 4, alive=False))
    with pytest.raises(ValueError, match=r"2 x \(1 CPU, 1 GPU\).* the cluster has no autoscaler .*rollout\.min_actors"):
        require_possible(config)
    nodes.append(node(1, 1))
    require_possible(config)  # two GPUs: with the fewest actors it can start
    nodes[:] = [node(8, **{"ray.io/node-group": "head"})]
    require_possible(config)


def test_the_autoscaler_is_asked_for_every_actor_and_the_request_withdrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(placement, "request_resources", lambda **request: asked.append(request))
    config = a_config(
        rollout={"actors": 2, "max_actors": 3, "gpus_per_actor": 1},
        cluster={"labels": {"rollout": {"market-type": "spot"}}},
    )
    request_nodes(config, rollout_actors=3)
    # One learner rank on a CPU, three rollout actors, one reward actor.
    assert asked[0]["bundles"] == [{"CPU": 1}, *[{"CPU": 1, "GPU": 1}] * 3, {"CPU": 0.1}]
    assert asked[0]["bundle_label_selectors"] == [{}, *[{"market-type": "spot"}] * 3, {}]
    release_nodes()
    assert asked[1] == {"bundles": []}


def test_a_cluster_without_gpus_has_none_of_them_free(nodes: list[dict[str, Any]]) -> None:
    nodes.append(node(2))
    assert describe_missing(DEMAND).endswith("free in the cluster of 1 nodes: 1 of 2 CPUs, 0 of 0 GPUs")
