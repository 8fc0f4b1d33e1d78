"""Settings of the cluster: number of rollout actors, placement, weight transport and timeouts."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from medr1_ray.config.field_types import MayChange, PositiveFloat, PositiveInt, Settings

WeightTransport = Literal["object_store", "nccl", "ipc"]


class PoolSize(Settings):
    """Number of rollout actors; a part of the `rollout` section."""

    actors: Annotated[PositiveInt, MayChange] = 1
    """Rollout actors at the start; lost ones are replaced."""
    min_actors: Annotated[PositiveInt | None, MayChange] = None
    """Fewest that the run starts with, and keeps when it scales down; default: `actors`."""
    max_actors: Annotated[PositiveInt | None, MayChange] = None
    """Most that the run scales up to when the learner waits for groups; default: `actors`."""
    target_idle_fraction: Annotated[PositiveFloat, Field(lt=1), MayChange] = 0.2
    """Target of the scaling: fraction of the time that the learner may wait for groups."""
    scale_every: Annotated[PositiveInt, MayChange] = 5
    """Steps measured between two decisions about the number of actors."""

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
    """Ray node labels that an actor's node must have, by role, e.g. `{market-type: on-demand}`.

    A value may use Ray's operators: `!spot`, `in(a,b)`, `!in(a,b)`. The driver runs on the head node, and so do
    encoders without labels; nodes with theirs must see `data.root`.
    """

    learner: dict[str, str] = Field(default_factory=dict)
    rollout: dict[str, str] = Field(default_factory=dict)
    reward: dict[str, str] = Field(default_factory=dict)
    encoder: dict[str, str] = Field(default_factory=dict)


class ClusterSettings(Settings):
    """The Ray cluster, the weight transport, and all timeouts."""

    address: str | None = None
    """Ray address; null joins the cluster of the job (RAY_ADDRESS) or starts a local one."""
    labels: PlacementLabels = PlacementLabels()
    weight_transport: Literal["auto", WeightTransport] = "auto"
    """How weights reach the engines: through Ray's object store (works everywhere), by NCCL broadcast between GPUs, or
    by CUDA IPC on a shared GPU (`colocated`). A validated `Config` has the one that `auto` stands for."""
    colocated: bool = False
    """Share each learner rank's GPU with one engine, which sleeps while the learner updates; for small clusters."""
    placement_timeout_seconds: PositiveFloat = 900.0
    """How long the learner, or a run without any rollout actor, waits for resources. The default lets an autoscaler
    start machines with GPUs, which takes minutes; a cluster that cannot grow and is too small is refused at once."""
    start_timeout_seconds: PositiveFloat = 600.0
    rollout_timeout_seconds: PositiveFloat = 600.0
    """Limit for one group; a rollout actor that exceeds it is treated as lost."""
    update_timeout_seconds: PositiveFloat = 1800.0
    sync_timeout_seconds: PositiveFloat = 300.0
    """Limit for loading weights; a rollout actor that exceeds it is treated as lost."""
