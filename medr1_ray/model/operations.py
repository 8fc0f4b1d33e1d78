"""Floating-point operations that an update needs: the numerator of model FLOPs utilisation (docs/performance.md).

Counts the matrix products of the model on the actual tokens, two operations per multiply-add, as in Chowdhery et al.
(arXiv 2204.02311, appendix B). A shared prompt counts once, over however many rows its group is cut; padding and the
recomputation of gradient checkpointing do not count. A backward pass is two forward passes, or one for products with
weights that have adapters.

Notation: h hidden size, i width of the MLP, k width of the keys (key-value heads times head size).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medr1_ray.config import Config
from medr1_ray.model.shape import ModelShape, TowerShape
from medr1_ray.types import CompletedPrompt

PEAK_FLOPS = {
    # Dense bfloat16, from the vendors' data sheets. Keys are matched as substrings of torch's device name.
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
}
"""Peak floating-point operations per second of one GPU. Longer names come first: "H100" is part of "H100 PCIe"."""


@dataclass(frozen=True)
class ForwardFlops:
    """Operations of one forward pass, of the language model and of the vision tower."""

    language: Work
    vision: Work

    def update(self, config: Config) -> float:
        """Return the operations of an update: forward and backward passes; one more forward for the reference if there
        is a KL, and of all mini-batches but the first for the policy before the update."""
        forward = self.language + self.vision
        trained = forward if config.model.train_vision_tower else self.language
        # With adapters, the weights themselves need no gradient.
        products = 2 if config.model.lora is None else 1
        backward = products * trained.matmul_flops + 2 * trained.attention_flops
        scored = 1 - 1 / config.train.minibatches + (1 if config.takes_kl else 0)
        return config.train.updates_per_rollout * (_total(forward) + backward) + scored * _total(forward)


def forward_flops(shape: ModelShape, groups: Sequence[CompletedPrompt]) -> ForwardFlops:
    """Return the operations of a forward pass over groups, each with its prompt and image once."""
    language = vision = Work()
    for prompt, completions in groups:
        visual = completions.visual_tokens
        context = prompt.token_ids.size - 1 + visual
        # In float64, because squares of int32 lengths could overflow.
        lengths = completions.lengths.astype(np.float64)
        sampled = float(lengths.sum())
        # Query-key pairs that the mask allows: within the prompt, and of completions with the prompt and themselves.
        pairs = context * (context + 1) / 2 + float((lengths * context + lengths * (lengths + 1) / 2).sum())
        patches = visual * shape.merge_side**2
        layers = layer_weights(shape.language, shape.key_value_width)
        language += head_forward(shape, sampled)
        language += _tower(shape.language, context + sampled, shape.language.layers * layers, pairs)
        vision += _tower(shape.vision, patches, vision_weights(shape), patches**2)
    return ForwardFlops(language, vision)


def peak_flops(device: str) -> float | None:
    """Return the peak operations per second of the GPU of this name in bfloat16, or None if unknown."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device), None)


def _tower(tower: TowerShape, tokens: float, weights: float, pairs: float) -> Work:
    """Return the work of `tokens` tokens in a stack with `weights` weights and `pairs` query-key pairs (QK and AV)."""
    return Work(matmul_flops=2 * tokens * weights, attention_flops=4 * pairs * tower.hidden * tower.layers)


def _total(work: Work) -> float:
    return work.matmul_flops + work.attention_flops


TEMPORAL_PATCH = 2  # Qwen2-VL repeats an image along the time axis


COLOURS = 3


@dataclass(frozen=True)
class Work:
    """Work of one device.

    Operations of matrix products and of attention; bytes of activations between products; bytes of weights, optimizer
    states, keys and values; and the number of layer launches.
    """

    matmul_flops: float = 0.0
    attention_flops: float = 0.0
    activation_bytes: float = 0.0
    memory_bytes: float = 0.0
    layer_starts: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def __mul__(self, factor: float) -> Work:
        return Work(*(factor * value for value in vars(self).values()))


def layer_weights(tower: TowerShape, key_width: int) -> int:
    """Return one layer's weights: 2 h^2 (query, output), 2 h k (key, value), 2 h i or, if gated, 3 h i (MLP)."""
    mlp = (3 if tower.gated else 2) * tower.hidden * tower.intermediate
    return 2 * tower.hidden**2 + 2 * tower.hidden * key_width + mlp


def language_forward(shape: ModelShape, sequences: float, tokens: float) -> Work:
    """Return the work of `sequences` sequences of `tokens` tokens in the language model, without its head.

    Attention counts in full, masked or not.
    """
    tower, total = shape.language, sequences * tokens
    return Work(
        matmul_flops=2 * total * tower.layers * layer_weights(tower, shape.key_value_width),
        attention_flops=4 * total * tokens * tower.hidden * tower.layers,
    )


def head_forward(shape: ModelShape, tokens: float) -> Work:
    """Return the work of the language-model head on `tokens` tokens."""
    return Work(matmul_flops=2 * tokens * shape.language.hidden * shape.vocabulary)


def vision_weights(shape: ModelShape) -> float:
    """Return the weights per patch in the vision tower: embedding, layers, and the patch's share of the merger.

    The merger makes one visual token of m x m patches with two products, of (m^2 w)^2 and m^2 w h weights, where w is
    the tower's hidden size and h the language model's.
    """
    tower, square = shape.vision, shape.merge_side**2
    embedding = tower.hidden * COLOURS * TEMPORAL_PATCH * shape.patch_pixels**2
    merged = square * tower.hidden
    merger = (merged**2 + merged * shape.language.hidden) / square
    return tower.layers * layer_weights(tower, tower.hidden) + embedding + merger


def vision_forward(shape: ModelShape, images: float, image_size: int) -> Work:
    """Return the work of images in the vision tower."""
    tower, patches = shape.vision, shape.patches(image_size)
    return Work(
        matmul_flops=2 * images * patches * vision_weights(shape),
        attention_flops=4 * images * patches**2 * tower.hidden * tower.layers,
    )
