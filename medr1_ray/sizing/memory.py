"""Memory that a run needs, estimated from its settings and the model's shape.

The estimates are conservative: they assume the largest micro-batch and the longest sequences that the settings allow.
Sources: ZeRO (arXiv 1910.02054, section 3) for what is divided by the number of ranks; Korthikanti et al.
(arXiv 2205.05198, section 4) for the method of counting activations, applied here to the modules of Qwen2-VL.
Not counted: fragmentation and kernel workspaces.

Notation: b bytes per value in the compute dtype, h hidden size, i width of the MLP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from medr1_ray.config import Config
from medr1_ray.model.shape import ModelShape, TowerShape
from medr1_ray.model.weight_files import STATE_FILE_BYTES

FLOAT32_BYTES = 4
ADAM_BYTES = 12  # a float32 master weight and its two moments
DTYPE_BYTES = {"float32": 4, "bfloat16": 2}

# Main memory of processes besides their tensors, measured on Linux x86-64 with CPU builds (docs/log.md): what libraries
# allocate when they are imported, their pages, which the processes of an actor share, and what allocators keep. A CUDA
# context is extra.
LEARNER_PROCESS_BYTES = 672 * 2**20
ROLLOUT_PROCESSES_BYTES = 1536 * 2**20  # the actor and vLLM's engine process
CUDA_CONTEXT_BYTES = 600 * 2**20

Place = Literal["device", "main"]


@dataclass(frozen=True)
class Part:
    """One use of memory in one process; `place` is `device` for GPU memory (main memory where there is no GPU)."""

    name: str
    bytes: int
    place: Place
    how: str


@dataclass(frozen=True)
class MicroBatchSize:
    """The largest micro-batch that the settings allow: `rows` rows of `row_tokens` tokens each.

    With shorter prompts, more rows and so more images fit into the same number of tokens.
    """

    rows: int
    row_tokens: int
    tokens: int
    images: int
    """Upper bound, for prompts with hardly any text."""
    completion_tokens: int
    """Completion tokens of that many rows: the positions that need logits."""


def largest_micro_batch(config: Config, visual_tokens: int) -> MicroBatchSize:
    """Return the largest micro-batch of a rank, limited by `learner.micro_batch_tokens`.

    A group is one row, whose completions share the prompt, with an image of `visual_tokens` tokens. One that is longer
    than the limit is cut into rows of at most that; only a prompt with one completion may be longer.
    """
    budget, longest = config.learner.micro_batch_tokens, config.rollout.max_tokens
    group_tokens = config.completions_per_prompt * longest
    group = config.rollout.max_prompt_tokens + group_tokens
    row = max(config.rollout.max_prompt_tokens + longest, min(group, budget))
    share = -(-config.train.prompts_per_step // (config.learner.world_size * config.train.minibatches))

    def groups(tokens: int) -> int:
        return max(1, min(share, budget // tokens))

    rows, images = groups(group), groups(visual_tokens + group_tokens)
    tokens = max(row, min(share * group, budget))
    completion_tokens = min(images * group_tokens, max(longest, budget - images * visual_tokens))
    return MicroBatchSize(rows, row, tokens, images, completion_tokens)


def layer_activation_bytes(tower: TowerShape, value_bytes: int) -> int:
    """Return the bytes per token that one layer keeps for its backward pass; SDPA stores no attention probabilities.

    Kept are the inputs of both norms, of the query-key-value projection, of the output projection and of the MLP, and
    query, key and value (repeated for every head): 8 b h. A fused projection keeps 3 b h more: value is a view that
    keeps the whole output alive, and the attention outputs of the images are concatenated. A gated MLP keeps gate, its
    activation, up and their product (4 b i), and the layer's RMSNorms a float32 copy of their input each (8 h); a
    plain MLP keeps 3 b i.
    """
    widths = 11 if tower.fused else 8
    if tower.gated:
        return (8 + widths * value_bytes) * tower.hidden + 4 * value_bytes * tower.intermediate
    return widths * value_bytes * tower.hidden + 3 * value_bytes * tower.intermediate


def tower_activation_bytes(tower: TowerShape, tokens: int, value_bytes: int, checkpointed: bool) -> int:
    """Return the bytes a stack keeps; if checkpointed, every layer's input and one whole layer (being recomputed)."""
    layer = tokens * layer_activation_bytes(tower, value_bytes)
    if checkpointed:
        return tower.layers * tokens * value_bytes * tower.hidden + layer
    return tower.layers * layer


def learner_parts(config: Config, shape: ModelShape) -> tuple[Part, ...]:
    """Return the uses of memory of one learner rank."""
    learner, model = config.learner, config.model
    value_bytes, ranks, stage = DTYPE_BYTES[model.dtype], learner.world_size, learner.zero_stage
    zero = learner.deepspeed.get("zero_optimization", {})
    optimizer_place, parameter_place = (
        _offload_place(zero, key) for key in ("offload_optimizer", "offload_param")
    )
    adapters, trained = _adapter_parameters(config, shape), trained_parameters(config, shape)
    batch = largest_micro_batch(config, shape.visual_tokens(config.data.image_size))

    def shared(size: int, from_stage: int) -> tuple[int, str]:
        if stage >= from_stage and ranks > 1:
            return -(-size // ranks), f"1/{ranks} on each rank (ZeRO-{stage})"
        return size, "full copy on each rank"

    parameters, how_parameters = shared((shape.parameters + adapters) * value_bytes, 3)
    # Under bfloat16, ZeRO-1 keeps the gradients of the last pass in addition to their float32 sum.
    gradient_bytes = FLOAT32_BYTES + (value_bytes if stage == 1 and model.dtype == "bfloat16" else 0)
    gradients, how_gradients = shared(trained * gradient_bytes, 2)
    optimizer, how_optimizer = shared(trained * ADAM_BYTES, 1)
    parts = [
        Part("parameters", parameters, parameter_place, f"{model.dtype}, {how_parameters}"),
        Part("gradients", gradients, optimizer_place, f"float32, {how_gradients}"),
        Part("optimizer", optimizer, optimizer_place, f"float32 masters and two moments, {how_optimizer}"),
    ]
    # Measured with DeepSpeed 0.19.8: the last backward pass keeps a second copy of the gradients, the step a third.
    if stage < 3 and optimizer_place == "device":
        copies, how_copies = shared(2 * trained * FLOAT32_BYTES, 1)
        parts.append(Part("gradient copies", copies, "device", f"two in the optimizer step, {how_copies}"))
    if ranks > 1:
        bucket = int(zero.get("reduce_bucket_size", min(shape.parameters, 200_000_000)))
        parts.append(Part("reduce bucket", bucket * value_bytes, "device", f"{bucket:,} gradients at a time"))
    if stage == 3:
        live = min(shape.parameters, int(zero.get("stage3_max_live_parameters", 1_000_000_000)))
        parts.append(Part("all-gather", live * value_bytes, "device", f"up to {live:,} gathered parameters at a time"))
    # With adapters the reference is the policy with its adapters off.
    if config.takes_kl and model.lora is None:
        parts += _reference_parts(config, shape)
    parts += _activation_parts(config, shape, batch)
    if config.cluster.weight_transport == "ipc":
        exported = shape.parameters * value_bytes
        parts.append(Part("exported weights", exported, "device", "while engines read them (CUDA IPC)"))
    if learner.gpus_per_rank > 0:
        parts.append(Part("CUDA context", CUDA_CONTEXT_BYTES, "device", "approximate, depends on the driver"))
        loading = shape.parameters * value_bytes
        parts.append(Part("loading", loading, "main", "the checkpoint is read into main memory first"))
    parts.append(_patches_part(config))
    parts.append(_checkpoint_part(config, shape, shared(_state_bytes(config, shape), 1)[0]))
    parts.append(Part("process", LEARNER_PROCESS_BYTES, "main", "Python, torch, transformers, DeepSpeed"))
    return tuple(parts)


def _patches_part(config: Config) -> Part:
    from medr1_ray.model.image_patches import PATCH_BYTES_PER_IMAGE_BYTE

    images = -(-config.train.prompts_per_step // config.learner.world_size)
    size = images * 3 * config.data.image_size**2 * PATCH_BYTES_PER_IMAGE_BYTE
    return Part("image patches", 2 * size, "main", f"of a step's {images:,} images, as prepared and as packed")


def _state_bytes(config: Config, shape: ModelShape) -> int:
    """Of the optimizer's state in a checkpoint: in float32 the weights are the masters, and saved once."""
    once = config.model.dtype == "float32" and config.model.lora is None
    return trained_parameters(config, shape) * (ADAM_BYTES - FLOAT32_BYTES if once else ADAM_BYTES)


def _saved_weights_bytes(config: Config, shape: ModelShape) -> int:
    """Of the weights in a checkpoint: adapters are merged in float32, and also saved as they are."""
    adapters, dtype = _adapter_parameters(config, shape), config.model.dtype
    return shape.parameters * DTYPE_BYTES["float32" if adapters else dtype] + adapters * DTYPE_BYTES[dtype]


def _checkpoint_part(config: Config, shape: ModelShape, state_bytes: int) -> Part:
    weights = _saved_weights_bytes(config, shape)
    if config.run.write_behind:
        how = "weights (rank 0) and optimizer (run.write_behind)"
        return Part("checkpoint copy", weights + state_bytes, "main", how)
    size = weights + min(state_bytes, STATE_FILE_BYTES)
    return Part("checkpoint copy", size, "main", "weights (rank 0) and one file of the optimizer")


def trained_parameters(config: Config, shape: ModelShape) -> int:
    """Return the number of trained parameters: the adapters' if there are any, else all except a frozen tower's."""
    frozen = 0 if config.model.train_vision_tower else shape.vision_parameters
    return _adapter_parameters(config, shape) or shape.parameters - frozen


def _adapter_parameters(config: Config, shape: ModelShape) -> int:
    if config.model.lora is None:
        return 0
    vision = shape.vision_linear_width if config.model.train_vision_tower else 0
    return config.model.lora.rank * (shape.language_linear_width + vision)


def _offload_place(zero: dict[str, dict[str, str]], key: str) -> Place:
    return "device" if zero.get(key, {}).get("device", "none") == "none" else "main"


def _reference_parts(config: Config, shape: ModelShape) -> list[Part]:
    size, ranks = shape.parameters * DTYPE_BYTES[config.model.dtype], config.learner.world_size
    sharded = config.reference.sharded and ranks > 1
    if sharded:
        size, how = -(-size // ranks), f"{config.model.dtype}, 1/{ranks} on each rank (reference.sharded)"
    else:
        how = f"{config.model.dtype}, full copy on each rank"
    if config.reference.placement == "device":
        return [Part("reference model", size, "device", how)]
    parts = [Part("reference model", size, "main", how)]
    if config.learner.gpus_per_rank > 0 and not sharded:
        parts.append(Part("reference on GPU", size, "device", "while it scores completions"))
    return parts


def _activation_parts(config: Config, shape: ModelShape, batch: MicroBatchSize) -> list[Part]:
    from medr1_ray.model.policy import LOGITS_PER_CHUNK

    value_bytes, checkpointed = DTYPE_BYTES[config.model.dtype], config.model.gradient_checkpointing
    patches = batch.images * shape.patches(config.data.image_size)
    # A frozen tower runs without a graph, so nothing is kept for a backward pass.
    vision_tokens_kept = patches if config.model.train_vision_tower else 0
    chunk_tokens = min(batch.completion_tokens, max(1, LOGITS_PER_CHUNK // shape.vocabulary))
    how = "with checkpointing" if checkpointed else "no checkpointing"
    return [
        Part(
            "activations, language",
            tower_activation_bytes(shape.language, batch.tokens, value_bytes, checkpointed),
            "device",
            f"{batch.tokens:,} tokens, {how}",
        ),
        Part(
            "activations, vision",
            tower_activation_bytes(shape.vision, vision_tokens_kept, value_bytes, checkpointed),
            "device",
            f"{batch.images} images, {patches:,} patches, {how}" if vision_tokens_kept else "vision tower is frozen",
        ),
        Part(
            "attention mask",
            # SDPA turns the bool mask into an additive one in every layer.
            batch.rows * batch.row_tokens**2 * (1 + value_bytes * (1 if checkpointed else shape.language.layers)),
            "device",
            "bool mask, and the kernel's bias " + ("once" if checkpointed else "for each layer"),
        ),
        Part(
            "logits chunk",
            chunk_tokens * shape.vocabulary * (value_bytes + 2 * FLOAT32_BYTES),
            "device",
            f"{chunk_tokens:,} of {batch.completion_tokens:,} completion tokens at a time",
        ),
    ]


def rollout_parts(config: Config, shape: ModelShape) -> tuple[Part, ...]:
    """Return the uses of memory of one rollout actor, on each GPU of its tensor-parallel group.

    On a GPU vLLM takes `rollout.engine.gpu_memory_utilization` of the card and turns what is left into KV cache; the
    estimate is the cache that this run's sequences can fill. On a CPU the cache has a fixed size.
    """
    from medr1_ray.rollout.defaults import KV_CACHE_BYTES_ON_CPU, sequences_at_once

    rollout, engine = config.rollout, config.rollout.engine
    value_bytes, degree = DTYPE_BYTES[config.model.dtype], config.rollout.tensor_parallel_size
    length = rollout.max_prompt_tokens + rollout.max_tokens
    wanted = -(-config.train.prompts_per_step // rollout.actors) * config.train.group_size
    sequences = min(wanted, sequences_at_once(rollout))
    token_bytes = 2 * shape.language.layers * shape.key_value_width * value_bytes
    if rollout.gpus_per_actor > 0:
        cache = sequences * length * token_bytes // degree
        how = f"{sequences} sequences x {length:,} tokens x {token_bytes:,} bytes, no prefix shared"
    else:
        cache = int(engine.get("kv_cache_memory_bytes", KV_CACHE_BYTES_ON_CPU))
        how = f"fixed; room for {cache // token_bytes:,} tokens of {token_bytes:,} bytes"
    patches = shape.patches(config.data.image_size)
    parts = [
        Part(
            "weights",
            shape.parameters * value_bytes // degree,
            "device",
            f"{config.model.dtype}, 1/{degree} on each GPU" if degree > 1 else f"{config.model.dtype}, full copy",
        ),
        Part("KV cache", cache, "device", how),
        Part(
            "vision encoder",
            patches * layer_activation_bytes(shape.vision, value_bytes),
            "device",
            f"one layer's activations, one image of {patches:,} patches",
        ),
        Part(
            "logits",
            sequences * shape.vocabulary * 2 * FLOAT32_BYTES,
            "device",
            f"float32 logits and log-probabilities, {sequences} sequences",
        ),
    ]
    if rollout.gpus_per_actor > 0:
        parts.append(Part("CUDA context", CUDA_CONTEXT_BYTES, "device", "approximate, depends on the driver"))
    parts.append(Part("processes", ROLLOUT_PROCESSES_BYTES, "main", "the actor and vLLM's engine process"))
    return tuple(parts)


def weight_sync_bytes(config: Config, shape: ModelShape) -> int:
    """Return the main memory that a weight sync takes on a node with learner rank 0 and engines.

    Counts the published buckets in Ray's object store, those of the previous version (kept for actors that join), and
    the file that the node's engines read; what adapters leave frozen is in the store once, and in the file of engines
    that join. 0 where weights stay on GPUs.
    """
    if config.cluster.weight_transport != "object_store":
        return 0
    changed = synced_parameters(config, shape)
    frozen = shape.parameters if config.model.lora is not None else 0
    return (3 * changed + 2 * frozen) * DTYPE_BYTES[config.model.dtype]


def synced_parameters(config: Config, shape: ModelShape) -> int:
    """Return the number of parameters that every weight sync moves: with `model.lora` the adapters' alone, unless
    engines sleep (`cluster.colocated`), which then lose the rest."""
    adapters = _adapter_parameters(config, shape)
    return shape.parameters + adapters if config.cluster.colocated or not adapters else adapters


def checkpoint_bytes(config: Config, shape: ModelShape) -> int:
    """Return the size of a checkpoint on disk: the weights and the optimizer's state."""
    return _saved_weights_bytes(config, shape) + _state_bytes(config, shape)


def checkpoints_at_once(config: Config) -> int:
    """Return how many checkpoints a run has on disk at most: an old one is deleted after a newer one is whole, and the
    best one is kept besides where there are evaluations."""
    # By time, any step may be saved.
    every = 1 if config.run.save_minutes else config.run.save_every or config.train.steps
    kept = config.run.keep_checkpoints + (config.run.evaluate_every > 0)
    return min(kept + 1, -(-config.train.steps // max(every, config.train.steps_per_rollout)))
