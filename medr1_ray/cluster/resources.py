"""Resource demands of a run's actors, and whether given nodes can meet them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medr1_ray.config import Config

REWARD_ACTOR_CPUS = 0.1


class NotStartedError(RuntimeError):
    """An actor that a run cannot do without did not start."""


@dataclass(frozen=True)
class Demand:
    """Demand of `count` actors of one kind: logical CPUs and GPUs of each, and labels that their nodes must have."""

    name: str
    count: int
    cpus: float
    gpus: float
    labels: Mapping[str, str]

    @property
    def resources(self) -> dict[str, float]:
        """CPUs and GPUs of one actor under Ray's names, without zero amounts."""
        return {kind: amount for kind, amount in (("CPU", self.cpus), ("GPU", self.gpus)) if amount}

    def describe(self) -> str:
        """Return the demand in words, e.g. `2 x (1 CPU, 1 GPU) on nodes labelled market-type=spot`."""
        amounts = ", ".join(f"{amount:g} {kind}" for kind, amount in self.resources.items())
        labels = ", ".join(f"{label}={value}" for label, value in self.labels.items())
        return f"{self.count} x ({amounts})" + (f" on nodes labelled {labels}" if labels else "")


def demands(config: Config, rollout_actors: int | None = None) -> tuple[Demand, ...]:
    """Return the demands of learner ranks, rollout actors (`rollout.actors` unless given) and reward actors."""
    learner, rollout, labels = config.learner, config.rollout, config.cluster.labels
    actors = rollout.actors if rollout_actors is None else rollout_actors
    return (
        Demand("learner rank", learner.world_size, learner.cpus_per_rank, learner.gpus_per_rank, labels.learner),
        Demand("rollout actor", actors, rollout.cpus_per_actor, rollout.gpus_per_actor, labels.rollout),
        Demand("reward actor", config.reward.actors, REWARD_ACTOR_CPUS, 0.0, labels.reward),
    )


def unplaceable(
    wanted: Sequence[Demand], nodes: Sequence[tuple[Mapping[str, float], Mapping[str, str]]]
) -> str | None:
    """Return why nodes with these resources and labels cannot meet the demands even when idle, or None if they might.

    Checks each demand on its own and then the totals. These are necessary conditions: a run that fits is never refused.
    """
    for demand in wanted:
        fitting = [resources for resources, labels in nodes if labels_match(demand.labels, labels)]
        places = sum(
            min(math.floor(node.get(kind, 0.0) / amount) for kind, amount in demand.resources.items())
            for node in fitting
        )
        if places < demand.count:
            return (
                f"the run needs {demand.describe()} for its {demand.name}s, but the {len(nodes)} nodes have room "
                f"for {places} of them"
                + (f" ({len(fitting)} nodes have the labels)" if demand.labels else "")
            )
    for kind in ("CPU", "GPU"):
        needed = sum(demand.count * demand.resources.get(kind, 0.0) for demand in wanted)
        there = sum(resources.get(kind, 0.0) for resources, _ in nodes)
        if needed > there:
            parts = ", ".join(
                f"{demand.count} {demand.name}s: {demand.count * demand.resources[kind]:g}"
                for demand in wanted
                if kind in demand.resources
            )
            return f"the run needs {needed:g} {kind}s ({parts}), but the {len(nodes)} nodes have {there:g}"
    return None


def labels_match(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Return whether node labels match Ray's label selector: `value`, `!value`, `in(a,b)` or `!in(a,b)`."""

    def matches(wanted: str, found: str | None) -> bool:
        positive = wanted.removeprefix("!")
        inner = positive[3:-1] if positive.startswith("in(") and positive.endswith(")") else positive
        return (found in [value.strip() for value in inner.split(",")]) != wanted.startswith("!")

    return all(matches(wanted, labels.get(label)) for label, wanted in selector.items())
