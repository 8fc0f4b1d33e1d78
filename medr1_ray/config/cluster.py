"""Settings of the cluster: how many rollout actors, where actors may be placed, and every deadline."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from medr1_ray.config.field_types import PositiveFloat, PositiveInt, Settings


class PoolSize(Settings):
    """How many rollout actors there are: a part of `rollout`."""

    actors: PositiveInt = 1
    """How many to start with; lost ones are replaced."""
    min_actors: PositiveInt | None = None
    """Fewest that the run starts with and keeps when it shrinks; by default `actors`."""
    max_actors: PositiveInt | None = None
    """Most that it grows to when the learner waits for groups; by default `actors`."""
    target_idle_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the time that the learner may wait for groups: what the number of actors is chosen for."""
    scale_every: PositiveInt = 5
    """Steps that are measured before the number of actors is chosen anew."""

    @property
    def actor_range(self) -> tuple[int, int]:
        """Fewest and most rollout actors."""
        return self.min_actors or self.actors, self.max_actors or self.actors

    @property
    def is_elastic(self) -> bool:
        fewest, most = self.actor_range
        return fewest < most

    @model_validator(mode="after")
    def _actors_in_range(self) -> Self:
        fewest, most = self.actor_range
        if not fewest <= self.actors <= most:
            raise ValueError(
                f"rollout.actors={self.actors} must lie between rollout.min_actors={fewest} and "
                f"rollout.max_actors={most}"
            )
        return self


class PlacementLabels(Settings):
    """Ray node labels that a place must have, by role, e.g. `{market-type: on-demand}`.

    A value may be one of Ray's operators: `!spot`, `in(a,b)`, `!in(a,b)`. The driver runs on the head node.
    """

    learner: dict[str, str] = Field(default_factory=dict)
    rollout: dict[str, str] = Field(default_factory=dict)
    reward: dict[str, str] = Field(default_factory=dict)


class ClusterSettings(Settings):
    """Ray, and the deadlines of everything that waits."""

    address: str | None = None
    """Ray address; none joins the cluster of the job (RAY_ADDRESS) or starts a local one."""
    labels: PlacementLabels = PlacementLabels()
    weight_transport: Literal["object_store", "nccl", "ipc"] = "object_store"
    """How weights reach the engines: through Ray's object store (anywhere), by NCCL broadcast between GPUs, or by CUDA
    IPC on one GPU (`colocated`)."""
    colocated: bool = False
    """Each learner rank shares its GPU with one engine, which sleeps while the learner updates; for small clusters."""
    placement_timeout_seconds: PositiveFloat = 120.0
    """How long the learner, or a run without any rollout actor, waits for a place."""
    start_timeout_seconds: PositiveFloat = 600.0
    rollout_timeout_seconds: PositiveFloat = 600.0
    """A rollout actor that takes longer for a group is given up."""
    update_timeout_seconds: PositiveFloat = 1800.0
    sync_timeout_seconds: PositiveFloat = 300.0
    """A rollout actor that takes longer to load weights is given up."""
