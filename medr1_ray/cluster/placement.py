"""Where actors go: placement groups with names, and words for what is missing while one waits for a place."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from medr1_ray.cluster.resources import Demand, demands, unplaceable
from medr1_ray.config import Config

_POLL_SECONDS = 0.2
_SAY_EVERY_SECONDS = 15.0


@dataclass(frozen=True)
class Place:
    """A placement group with a bundle for each actor of the demand, asked for and perhaps not yet there."""

    name: str
    demand: Demand
    group: PlacementGroup

    def is_there(self) -> bool:
        return bool(placement_group_table(self.group)["state"] == "CREATED")

    def node_id(self) -> str:
        """Hex id of the node of its first bundle."""
        return str(placement_group_table(self.group)["bundles_to_node_id"][0])

    def options(self, bundle: int = 0) -> dict[str, Any]:
        """Ray's options of an actor that fills one of its bundles."""
        strategy = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=bundle)
        return {
            "num_cpus": self.demand.cpus,
            "num_gpus": self.demand.gpus,
            "scheduling_strategy": strategy,
        }

    def give_back(self) -> None:
        remove_placement_group(self.group)


@dataclass(frozen=True)
class SharedPlace(Place):
    """One bundle of another's placement group; given back, it is `free` for the next."""

    bundle: int
    free: list[int]

    def node_id(self) -> str:
        return str(placement_group_table(self.group)["bundles_to_node_id"][self.bundle])

    def options(self, bundle: int = 0) -> dict[str, Any]:
        return super().options(self.bundle)

    def give_back(self) -> None:
        self.free.append(self.bundle)


def ask_for_place(name: str, demand: Demand, strategy: str) -> Place:
    """Ask for a bundle for each actor of the demand; `strategy` is Ray's (`PACK`, `STRICT_PACK`)."""
    group = placement_group(
        [demand.resources] * demand.count,
        strategy=strategy,
        name=name,
        bundle_label_selector=[dict(demand.labels)] * demand.count if demand.labels else None,
    )
    return Place(name, demand, group)


def wait_for_place(
    place: Place, timeout_seconds: float, say: Callable[[str], None], meanwhile: Callable[[], None]
) -> None:
    """Wait, and `say` now and then what is missing and for how long; `meanwhile` is called again and again.

    Raises:
        RuntimeError: not there within the limit (`cluster.placement_timeout_seconds`).
    """
    start = said = time.monotonic()
    while not place.is_there():
        now = time.monotonic()
        if now - start > timeout_seconds:
            raise RuntimeError(
                f"no place for {place.name} after cluster.placement_timeout_seconds={timeout_seconds:g}: "
                f"{describe_missing(place.demand)}. Add nodes, ask for less, or raise the limit"
            )
        if now - said > _SAY_EVERY_SECONDS:
            said = now
            say(f"waiting for a place for {place.name} for {now - start:.0f} s: {describe_missing(place.demand)}")
        meanwhile()
        time.sleep(_POLL_SECONDS)


def describe_missing(demand: Demand) -> str:
    """What is asked for and what the cluster has, in one sentence."""
    total, free = ray.cluster_resources(), ray.available_resources()
    has = ", ".join(f"{free.get(kind, 0):g} of {total.get(kind, 0):g} {kind}s" for kind in ("CPU", "GPU"))
    return f"it needs {demand.describe()}; free in the cluster of {len(alive_nodes())} nodes: {has}"


def alive_nodes() -> list[Mapping[str, Any]]:
    """Ray's tables of the nodes that are alive: `NodeID`, `Resources`, `Labels`."""
    return [node for node in ray.nodes() if node["Alive"]]


def draining_nodes() -> dict[str, float]:
    """Nodes that are to go (`ray drain-node`, an autoscaler, a preemption notice): hex id to the seconds left.

    The seconds are infinite where no deadline was given.
    """
    now = time.time()
    found: dict[str, int] = ray._private.state.state.get_draining_nodes()
    return {node_id: at / 1000 - now if at else math.inf for node_id, at in found.items()}


def require_possible(config: Config) -> None:
    """Fail at once where the run cannot fit the cluster, and nobody can add nodes to it.

    Raises:
        ValueError: with what is asked for and what there is.
    """
    nodes = alive_nodes()
    if _can_grow(nodes):
        return
    fewest, _ = config.rollout.actor_range
    problem = unplaceable(
        demands(config, fewest), [(node["Resources"], node["Labels"]) for node in nodes]
    )
    if problem:
        raise ValueError(
            f"{problem}; the cluster has no autoscaler that could add nodes. Ask for less (learner.world_size, "
            "learner.gpus_per_rank, rollout.min_actors, rollout.actors, rollout.gpus_per_actor, cluster.labels) or "
            "add nodes"
        )


def request_nodes(config: Config, rollout_actors: int) -> None:
    """Ask the autoscaler for a cluster that fits the run with so many rollout actors.

    The request stays until the next one. A cluster without an autoscaler does nothing with it.
    """
    wanted = [demand for demand in demands(config, rollout_actors) for _ in range(demand.count)]
    request_resources(
        bundles=[demand.resources for demand in wanted],
        bundle_label_selectors=[dict(demand.labels) for demand in wanted],
    )


def release_nodes() -> None:
    """Withdraw the request, so that the autoscaler may end nodes that are idle."""
    request_resources(bundles=[])


def _can_grow(nodes: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a cluster launcher or KubeRay made the nodes: it names each node's type, `ray start` does not."""
    return any(node["Labels"].get("ray.io/node-group") for node in nodes)
