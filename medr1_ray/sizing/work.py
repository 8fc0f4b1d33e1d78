"""Operations and memory traffic of one training step, counted from its size and the model's shape.

A multiply-add is two operations. docs/sizing.md has all formulas.
"""

from __future__ import annotations

from dataclasses import dataclass

from medr1_ray.config import Config
from medr1_ray.model.operations import Work, head_forward, language_forward, layer_weights, vision_forward
from medr1_ray.model.shape import ModelShape
from medr1_ray.rollout.defaults import sequences_at_once
from medr1_ray.sizing.memory import DTYPE_BYTES, layer_activation_bytes, trained_parameters

ADAM_TRAFFIC_BYTES = 28
"""Per parameter: gradient, master weight and two moments are read, the last three written, all in float32."""


@dataclass(frozen=True)
class StepSize:
    """One step: `prompts` groups of `group_size` completions with `completion_tokens` tokens on average.

    Images are squares of side `image_size` pixels; a prompt has `text_tokens` in addition to its image.
    """

    prompts: int
    group_size: int
    completion_tokens: float
    image_size: int
    text_tokens: int

    def visual_tokens(self, shape: ModelShape) -> int:
        return shape.patches(self.image_size) // shape.merge_side**2

    def prompt_tokens(self, shape: ModelShape) -> int:
        return self.text_tokens + self.visual_tokens(shape)

    def rows(self, shape: ModelShape, most_tokens: int) -> int:
        """Return the number of a group's rows in the learner, of at most this many tokens where one completion fits."""
        room = most_tokens - self.prompt_tokens(shape)
        return -(-self.group_size // max(1, min(self.group_size, int(room // self.completion_tokens))))

    def row_tokens(self, shape: ModelShape, most_tokens: int) -> float:
        """Return the mean length of these rows: the prompt once in each, and the completions over all of them."""
        completions = self.group_size / self.rows(shape, most_tokens)
        return self.prompt_tokens(shape) + completions * self.completion_tokens


def learner_work(config: Config, shape: ModelShape, size: StepSize, ranks: int) -> Work:
    """Return the work of the rank with the most groups.

    Counts a forward and a backward pass of every group as one row, or as the rows that it is cut into, the rank's share
    of the optimizer states for every optimizer step, a reference pass if the objective has a KL, and a forward pass of
    all mini-batches but the first. A backward pass is two forward passes, or one for products with weights that have
    adapters; gradient checkpointing adds a forward pass.
    """
    value_bytes, limit = DTYPE_BYTES[config.model.dtype], config.learner.micro_batch_tokens
    groups, row = -(-size.prompts // ranks), size.row_tokens(shape, limit)
    rows = groups * size.rows(shape, limit)
    completion_tokens = groups * size.group_size * size.completion_tokens
    # The features of a frozen tower are kept for the group's other rows, but not under ZeRO-3 (`learner/actor.py`).
    images = rows if config.model.train_vision_tower or config.learner.zero_stage == 3 else groups
    patches = images * shape.patches(size.image_size)
    language = language_forward(shape, rows, row)
    head = head_forward(shape, completion_tokens)
    vision = vision_forward(shape, images, size.image_size)
    # One forward pass and a backward pass of two; checkpointing repeats the forward pass.
    passes = 4 if config.model.gradient_checkpointing else 3
    learned = config.model.train_vision_tower
    parts = config.train.minibatches
    micro_batches = parts * -(-rows // (parts * max(1, int(limit // row))))
    starts = shape.language.layers + shape.vision.layers
    kept = rows * row * shape.language.layers * layer_activation_bytes(shape.language, value_bytes)
    if learned:
        kept += patches * shape.vision.layers * layer_activation_bytes(shape.vision, value_bytes)
    update = (language + head) * passes + vision * (passes if learned else 1)
    if config.model.lora is not None:  # weights have no gradient; the adapters' products are not counted
        unlearned = language + head + vision if learned else language + head
        update += Work(matmul_flops=-unlearned.matmul_flops)
    update += Work(activation_bytes=kept, layer_starts=starts * micro_batches)
    update += Work(memory_bytes=trained_parameters(config, shape) * ADAM_TRAFFIC_BYTES / ranks * parts)
    update = update * config.train.updates_per_rollout
    scored = 1 - 1 / parts + (1 if config.takes_kl else 0)
    return update + (language + head + vision) * scored


def rollout_work(config: Config, shape: ModelShape, size: StepSize, actors: int) -> Work:
    """Return the work of the actor with the most prompts, on each GPU of its tensor-parallel group.

    vLLM's kernels are fused, so activations are not counted. A prompt is computed once, except for its last tokens,
    which do not fill a block of the prefix cache: these are computed once per completion. Every sampled token goes
    through the model and reads the keys and values before it; every engine step reads the weights.
    """
    value_bytes, degree = DTYPE_BYTES[config.model.dtype], config.rollout.tensor_parallel_size
    prompts, prompt = -(-size.prompts // actors), size.prompt_tokens(shape)
    completions = prompts * size.group_size
    tokens = completions * size.completion_tokens
    again = prompts * (size.group_size - 1) * (prompt % block_tokens(config))
    waves = -(-completions // sequences_at_once(config.rollout))
    steps = waves * size.completion_tokens
    per_token = 2 * shape.language.layers * layer_weights(shape.language, shape.key_value_width)
    # On average, over a completion's tokens.
    context = prompt + size.completion_tokens / 2
    cache_bytes = 2 * shape.language.layers * shape.key_value_width * value_bytes
    prefill = language_forward(shape, prompts, prompt) + vision_forward(shape, prompts, size.image_size)
    decode = Work(
        matmul_flops=(tokens + again) * per_token,
        memory_bytes=tokens * context * cache_bytes + steps * shape.parameters * value_bytes,
        layer_starts=steps * shape.language.layers + shape.vision.layers,
    )
    return (prefill + decode + head_forward(shape, tokens)) * (1 / degree)


def block_tokens(config: Config) -> int:
    """Return the tokens in a block of vLLM's prefix cache."""
    # On a CPU `rollout/engine.py` sets 32, on a GPU vLLM's default applies.
    ours = 32 if config.rollout.gpus_per_actor == 0 else 16
    return int(config.rollout.engine.get("block_size", ours))
