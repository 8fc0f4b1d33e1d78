"""Checks of combinations of settings from different sections."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medr1_ray.config.cluster import WeightTransport

if TYPE_CHECKING:
    from medr1_ray.config.schema import Config


def check_combinations(config: Config) -> None:
    """Raise ValueError for the first combination of settings that cannot work, or would give silently wrong results."""
    _check_supervised(config)
    _check_overlong_buffer(config)
    _check_importance_weights(config)
    _check_batches(config)
    _check_data_files(config)
    check_placement(config)


def _check_supervised(config: Config) -> None:
    if config.objective != "sft":
        return
    # The learner's head divides logits by this temperature, so SFT would fit another distribution.
    if config.rollout.temperature != 1:
        raise ValueError(
            f"rollout.temperature={config.rollout.temperature:g}: SFT maximises the likelihood at temperature 1; "
            "set it to 1"
        )
    for key in ("minibatches", "updates_per_rollout"):
        if (given := getattr(config.train, key)) != 1:
            raise ValueError(
                f"train.{key}={given}: SFT has no rollouts and takes one optimizer step per batch; set it to 1"
            )


def _check_overlong_buffer(config: Config) -> None:
    if config.reward.overlong_buffer_tokens > config.rollout.max_tokens:
        raise ValueError(
            f"reward.overlong_buffer_tokens={config.reward.overlong_buffer_tokens} is larger than rollout.max_tokens="
            f"{config.rollout.max_tokens}, the length that it ends at; use at most {config.rollout.max_tokens}"
        )


def _check_importance_weights(config: Config) -> None:
    rollout, train = config.rollout, config.train
    if config.loss.importance_cap is not None and (rollout.top_p < 1 or rollout.top_k > 0):
        raise ValueError(
            f"rollout.top_p={rollout.top_p}, rollout.top_k={rollout.top_k}: the rollout log-probabilities "
            "are used for importance ratios (loss.importance_cap is set), which are wrong under a truncated "
            "distribution. Use top_p=1 and top_k=0, or set loss.importance_cap to null"
        )
    if config.loss.importance_cap is None and train.max_staleness > 0:
        raise ValueError(
            f"train.max_staleness={train.max_staleness} needs loss.importance_cap (a positive number, e.g. 2.0): "
            "without it, completions of older policy versions would be used without off-policy correction"
        )


def _check_batches(config: Config) -> None:
    train = config.train
    if train.steps % train.steps_per_rollout:
        each = f"train.updates_per_rollout={train.updates_per_rollout}"
        if train.minibatches > 1:
            each = f"train.minibatches={train.minibatches} times {each}, the optimizer steps of one batch of rollouts"
        lower = train.steps // train.steps_per_rollout * train.steps_per_rollout
        raise ValueError(
            f"train.steps={train.steps} is not a multiple of {each}; choose a multiple, e.g. "
            f"{lower or train.steps_per_rollout}"
        )
    if config.learner.warmup_steps > train.steps:
        raise ValueError(
            f"learner.warmup_steps={config.learner.warmup_steps:g} is more than train.steps={train.steps}: the full "
            f"learning rate would never be reached; use at most {train.steps}, or a fraction of the steps below 1"
        )
    if train.prompts_per_step < config.learner.world_size:
        raise ValueError(
            f"train.prompts_per_step={train.prompts_per_step} is less than learner.world_size="
            f"{config.learner.world_size}: every rank needs a group; use at least {config.learner.world_size}"
        )
    if train.prompts_per_step % train.minibatches:
        more = -(-train.prompts_per_step // train.minibatches) * train.minibatches
        raise ValueError(
            f"train.minibatches={train.minibatches} does not divide train.prompts_per_step={train.prompts_per_step} "
            f"into equal parts; choose a divisor, or e.g. train.prompts_per_step={more}"
        )
    if train.prompts_per_step < config.learner.world_size * train.minibatches:
        raise ValueError(
            f"train.minibatches={train.minibatches}: {train.prompts_per_step // train.minibatches} of the "
            f"train.prompts_per_step={train.prompts_per_step} in each are less than learner.world_size="
            f"{config.learner.world_size}, and every rank needs a group; use fewer mini-batches or more prompts"
        )


def _check_data_files(config: Config) -> None:
    data = config.data
    if data.format == "medr1" and not (data.train_file and data.eval_file):
        raise ValueError(
            f"data.train_file={data.train_file}, data.eval_file={data.eval_file}: data.format=medr1 needs both "
            "(annotation files relative to data.root)"
        )
    if data.format == "table" and data.table is None:
        raise ValueError(
            "data.table.file=null: data.format=table needs the table's file, relative to data.root, e.g. "
            "data.table.file=questions.csv"
        )
    for key, value in (("table", data.table), ("image_root", data.image_root)):
        if data.format != "table" and value is not None:
            raise ValueError(
                f"data.{key} is given, but data.format={data.format}: it is a setting of data.format=table; add "
                f"data.{key}=null"
            )


def automatic_transport(config: Config) -> tuple[WeightTransport, str]:
    """Return the weight transport that `cluster.weight_transport=auto` stands for, and why."""
    learner_gpus, engine_gpus = config.learner.gpus_per_rank, config.rollout.gpus_per_actor
    if not (learner_gpus and engine_gpus):
        return "object_store", "not both sides have GPUs"
    if config.cluster.colocated:
        return "ipc", "each engine shares its GPU with a learner rank"
    if _may_share_a_gpu(config):
        return "object_store", "both sides have fractions of GPUs, which may be of the same one"
    return "nccl", "both sides have GPUs of their own"


def _may_share_a_gpu(config: Config) -> bool:
    """Whether a learner rank and an engine could be placed on one GPU, though nothing asks for it."""
    # Of a fraction, the rest may go to the other side.
    return not (config.learner.gpus_per_rank % 1 == config.rollout.gpus_per_actor % 1 == 0)


def check_placement(config: Config) -> None:
    """Raise ValueError if `cluster.weight_transport` or `cluster.colocated` contradicts the other settings."""
    cluster, learner, rollout = config.cluster, config.learner, config.rollout
    gpus = (
        f"learner.gpus_per_rank={learner.gpus_per_rank:g}, rollout.gpus_per_actor={rollout.gpus_per_actor:g}"
    )
    given = {"learner.gpus_per_rank": learner.gpus_per_rank, "rollout.gpus_per_actor": rollout.gpus_per_actor}
    for key, value in given.items():
        if value > 1 and value % 1:
            raise ValueError(f"{key}={value:g}: Ray gives a fraction of one GPU or whole GPUs; use {value // 1:g}")
    on_gpus = learner.gpus_per_rank > 0 and rollout.gpus_per_actor > 0
    if cluster.weight_transport in ("nccl", "ipc") and not on_gpus:
        raise ValueError(
            f"cluster.weight_transport={cluster.weight_transport} moves weights between GPUs, but {gpus}; assign "
            "GPUs to both, or use cluster.weight_transport=object_store"
        )
    if cluster.weight_transport == "nccl" and not cluster.colocated and _may_share_a_gpu(config):
        raise ValueError(
            f"cluster.weight_transport=nccl with {gpus}: the rest of a GPU may go to the other side, and NCCL refuses "
            "two ranks on one GPU; give both whole GPUs, or use cluster.weight_transport=object_store"
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
            f"{gpus}: learner ranks and engines share GPUs, so both need a fraction of one, e.g. 0.5",
        ),
        (
            # Not !=, because fractions such as 0.7 + 0.3 need not add up to exactly 1.
            abs(learner.gpus_per_rank + rollout.gpus_per_actor - 1) > 1e-6,
            f"{gpus}: the fractions of a shared GPU must add up to 1, e.g. 0.5 and 0.5",
        ),
        (
            (fewest, rollout.actors, most) != (learner.world_size,) * 3,
            f"{sizes}: each rank shares its GPU with one engine; set both to the same number, and leave "
            "out rollout.min_actors and rollout.max_actors",
        ),
        (
            rollout.tensor_parallel_size > 1,
            f"rollout.tensor_parallel_size={rollout.tensor_parallel_size}: an engine has only the one GPU "
            "that it shares; use 1",
        ),
        (
            config.train.max_staleness > 0,
            f"train.max_staleness={config.train.max_staleness}: engines sleep while the learner updates and "
            "cannot generate ahead; use 0",
        ),
    )
    for found, problem in problems:
        if found:
            raise ValueError(f"cluster.colocated=true with {problem}")
