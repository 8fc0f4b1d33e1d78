"""What the actors of a run ask Ray for."""

from __future__ import annotations

from dataclasses import dataclass

from medr1_ray.config import Config

REWARD_ACTOR_CPUS = 0.1


@dataclass(frozen=True)
class Demand:
    """Logical CPUs and GPUs of one kind of actor; `count` of them."""

    name: str
    count: int
    cpus: float
    gpus: float


def demands(config: Config) -> tuple[Demand, ...]:
    """The learner ranks, the rollout actors and the reward actors."""
    learner, rollout = config.learner, config.rollout
    return (
        Demand("learner rank", learner.world_size, learner.cpus_per_rank, learner.gpus_per_rank),
        Demand("rollout actor", rollout.actors, rollout.cpus_per_actor, rollout.gpus_per_actor),
        Demand("reward actor", config.reward.actors, REWARD_ACTOR_CPUS, 0.0),
    )
