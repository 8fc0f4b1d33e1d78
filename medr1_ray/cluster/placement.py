"""Named placement groups for actors, and messages about the missing resources while one is pending."""

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
    """A requested placement group, possibly still pending, with one bundle for each actor of the demand."""

    name: str
    demand: Demand
    group: PlacementGroup

    def is_there(self) -> bool:
        return bool(placement_group_table(self.group)["state"] == "CREATED")

    def node_id(self) -> str:
        """Return the hex id of the first bundle's node."""
        return str(placement_group_table(self.group)["bundles_to_node_id"][0])

    def node_ids(self) -> list[str]:
        """Return the hex id of each bundle's node."""
        of_bundle = placement_group_table(self.group)["bundles_to_node_id"]
        return [str(of_bundle[bundle]) for bundle in range(self.demand.count)]

    def options(self, bundle: int = 0) -> dict[str, Any]:
        """Return Ray's options for an actor that fills the given bundle."""
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
    """One bundle of another place's group; giving it back appends the bundle to `free`, for the next actor."""

    bundle: int
    free: list[int]

    def node_id(self) -> str:
        return str(placement_group_table(self.group)["bundles_to_node_id"][self.bundle])

    def options(self, bundle: int = 0) -> dict[str, Any]:
        return super().options(self.bundle)

    def give_back(self) -> None:
        self.free.append(self.bundle)


def ask_for_place(name: str, demand: Demand, strategy: str) -> Place:
    """Request a placement group with one bundle per actor; `strategy` is Ray's (`PACK`, `STRICT_PACK`)."""
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
    """Wait until Ray has created the placement group.

    Args:
        say: receives a line about the missing resources every 15 seconds.
        meanwhile: called between polls.

    Raises:
        RuntimeError: it was not created within `timeout_seconds` (`cluster.placement_timeout_seconds`).
    """
    start = said = time.monotonic()
    while not place.is_there():
        now = time.monotonic()
        if now - start > timeout_seconds:
            raise RuntimeError(
                f"no place for {place.name} after cluster.placement_timeout_seconds={timeout_seconds:g}: "
                f"{describe_missing(place.demand)}. Add nodes, request less, or raise the timeout"
            )
        if now - said > _SAY_EVERY_SECONDS:
            said = now
            say(f"waiting for a place for {place.name} for {now - start:.0f} s: {describe_missing(place.demand)}")
        meanwhile()
        time.sleep(_POLL_SECONDS)


def describe_missing(demand: Demand) -> str:
    """Return a sentence with the demand and the cluster's free resources."""
    total, free = ray.cluster_resources(), ray.available_resources()
    has = ", ".join(f"{free.get(kind, 0):g} of {total.get(kind, 0):g} {kind}s" for kind in ("CPU", "GPU"))
    return f"it needs {demand.describe()}; free in the cluster of {len(alive_nodes())} nodes: {has}"


def alive_nodes() -> list[Mapping[str, Any]]:
    """Return Ray's records of the nodes that are alive, with `NodeID`, `Resources` and `Labels`."""
    return [node for node in ray.nodes() if node["Alive"]]


def draining_nodes() -> dict[str, float]:
    """Return the draining nodes (`ray drain-node`, an autoscaler, a preemption notice): hex id to seconds left.

    The seconds are infinite for a node without a deadline.
    """
    now = time.time()
    # Ray's private API (2.60): the records of `ray.nodes()` do not say which nodes drain.
    found: dict[str, int] = ray._private.state.state.get_draining_nodes()
    # Ray's deadlines are in milliseconds since the epoch, 0 if there is none.
    return {node_id: at / 1000 - now if at else math.inf for node_id, at in found.items()}


def require_possible(config: Config) -> None:
    """Check that the run fits the cluster, unless an autoscaler may add nodes to it.

    Raises:
        ValueError: with the demand and the cluster's resources.
    """
    nodes = alive_nodes()
    if _can_grow(nodes):
        return
    fewest, _ = config.rollout.actor_range  # a run can start with these
    problem = unplaceable(
        demands(config, fewest), [(node["Resources"], node["Labels"]) for node in nodes]
    )
    if problem:
        raise ValueError(
            f"{problem}; the cluster has no autoscaler that could add nodes. Request less (learner.world_size, "
            "learner.gpus_per_rank, rollout.min_actors, rollout.actors, rollout.gpus_per_actor, cluster.labels) or "
            "add nodes"
        )


def request_nodes(config: Config, rollout_actors: int) -> None:
    """Ask the autoscaler for nodes that fit the run with `rollout_actors` rollout actors.

    The request stands until the next one. A cluster without an autoscaler ignores it.
    """
    wanted = [demand for demand in demands(config, rollout_actors) for _ in range(demand.count)]
    request_resources(
        bundles=[demand.resources for demand in wanted],
        bundle_label_selectors=[dict(demand.labels) for demand in wanted],
    )


def release_nodes() -> None:
    """Withdraw the request, so that the autoscaler may terminate idle nodes.

    The autoscaler meets a standing request with whole nodes, whatever runs on them: left in place after scaling down,
    it kept an idle node in addition to the remaining actor's.
    """
    request_resources(bundles=[])


def _can_grow(nodes: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a cluster launcher or KubeRay made the nodes: both label a node's type, `ray start` does not."""
    return any(node["Labels"].get("ray.io/node-group") for node in nodes)
