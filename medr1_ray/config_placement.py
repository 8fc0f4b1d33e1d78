"""Which GPUs learner and engines have, and how weights pass between them: what goes together and what does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medr1_ray.config import Config


def refuse_impossible_placement(config: Config) -> None:
    """Raises ValueError for a `cluster.weight_transport` or `cluster.colocated` that the other settings rule out."""
    cluster, learner, rollout = config.cluster, config.learner, config.rollout
    gpus = (
        f"learner.gpus_per_rank={learner.gpus_per_rank:g}, rollout.gpus_per_actor={rollout.gpus_per_actor:g}"
    )
    on_gpus = learner.gpus_per_rank > 0 and rollout.gpus_per_actor > 0
    if cluster.weight_transport != "object_store" and not on_gpus:
        raise ValueError(
            f"cluster.weight_transport={cluster.weight_transport} moves weights between GPUs, but {gpus}; give both "
            "GPUs, or use cluster.weight_transport=object_store"
        )
    if cluster.weight_transport == "ipc" and not cluster.colocated:
        raise ValueError(
            "cluster.weight_transport=ipc lets an engine read the memory of a learner rank on the same GPU; set "
            "cluster.colocated=true, or use nccl or object_store"
        )
    if not cluster.colocated:
        return
    fewest, most = rollout.actor_range
    sizes = (
        f"rollout.actors={rollout.actors} (from {fewest} to {most}), learner.world_size={learner.world_size}"
    )
    problems = (
        (
            cluster.weight_transport == "nccl",
            "cluster.weight_transport=nccl: NCCL refuses two ranks on one GPU; use ipc or object_store",
        ),
        (
            not on_gpus,
            f"{gpus}: learner ranks and engines share GPUs, which there must be; use a fraction for each, e.g. 0.5",
        ),
        (
            abs(learner.gpus_per_rank + rollout.gpus_per_actor - 1) > 1e-6,
            f"{gpus}: the fractions of a shared GPU must add up to 1, e.g. 0.5 and 0.5",
        ),
        (
            (fewest, rollout.actors, most) != (learner.world_size,) * 3,
            f"{sizes}: each rank shares its GPU with one engine; use as many of each, and neither "
            "rollout.min_actors nor rollout.max_actors",
        ),
        (
            rollout.tensor_parallel_size > 1,
            f"rollout.tensor_parallel_size={rollout.tensor_parallel_size}: an engine has the one GPU that it "
            "shares; use 1",
        ),
        (
            config.train.max_staleness > 0,
            f"train.max_staleness={config.train.max_staleness}: engines sleep while the learner updates, so that "
            "nothing is generated ahead; use 0",
        ),
    )
    for found, problem in problems:
        if found:
            raise ValueError(f"cluster.colocated=true with {problem}")
