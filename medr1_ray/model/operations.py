"""How many floating-point operations an update needs: the numerator of model FLOPs utilisation (docs/performance.md).

Counted are the matrix products of the model on the tokens at hand, two operations for each multiply-add, as in
Chowdhery et al. (arXiv 2204.02311, appendix B); a shared prompt counts once, padding and what gradient checkpointing
computes again count nothing. A backward pass is twice its forward pass, beside adapters once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medr1_ray.config import Config
from medr1_ray.model.shape import ModelShape, TowerShape
from medr1_ray.types import ScoredPrompt

PEAK_FLOPS = {
    # Dense bfloat16, by the makers' data sheets; found as a part of torch's name of the device.
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
}
"""Floating-point operations per second of one GPU, longer names first."""


@dataclass(frozen=True)
class ForwardFlops:
    """Operations of one forward pass by part of the model: `matmul_flops` with its weights, and `attention_flops`."""

    language: Work
    vision: Work

    def update(self, config: Config) -> float:
        """Operations of an update's forward and backward passes, and of one through the reference if there is one."""
        forward = self.language + self.vision
        trained = forward if config.model.train_vision_tower else self.language
        # Beside adapters the weights themselves need no gradient.
        products = 2 if config.model.lora is None else 1
        backward = products * trained.matmul_flops + 2 * trained.attention_flops
        reference = _total(forward) if config.takes_kl else 0.0
        return config.train.updates_per_rollout * (_total(forward) + backward) + reference


def forward_flops(shape: ModelShape, groups: Sequence[ScoredPrompt]) -> ForwardFlops:
    """Operations of a forward pass over groups, each with its prompt and image once."""
    language = vision = Work()
    for prompt, completions in groups:
        visual = completions.visual_tokens
        context = prompt.token_ids.size - 1 + visual
        lengths = completions.lengths.astype(np.float64)
        sampled = float(lengths.sum())
        pairs = context * (context + 1) / 2 + float((lengths * context + lengths * (lengths + 1) / 2).sum())
        patches = visual * shape.merge_side**2
        layers = layer_weights(shape.language, shape.key_value_width)
        language += head_forward(shape, sampled)
        language += _tower(shape.language, context + sampled, shape.language.layers * layers, pairs)
        vision += _tower(shape.vision, patches, vision_weights(shape), patches**2)
    return ForwardFlops(language, vision)


def peak_flops(device: str) -> float | None:
    """Operations per second of the GPU of this name at best, in bfloat16; None where that is not known."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device), None)


def _tower(tower: TowerShape, tokens: float, weights: float, pairs: float) -> Work:
    """Tokens through a stack that has so many weights, and `pairs` of queries and keys (QK and AV)."""
    return Work(matmul_flops=2 * tokens * weights, attention_flops=4 * pairs * tower.hidden * tower.layers)


def _total(work: Work) -> float:
    return work.matmul_flops + work.attention_flops


TEMPORAL_PATCH = 2  # Qwen2-VL doubles an image in time


COLOURS = 3


@dataclass(frozen=True)
class Work:
    """What one device has to do: operations of matrix products and of attention; bytes of activations between them;
    bytes of weights, optimizer states, keys and values; and how often a layer is started."""

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
    """Weights of one layer's products: query and output 2 h^2, key and value 2 h k, the MLP 2 h i, gated 3 h i."""
    mlp = (3 if tower.gated else 2) * tower.hidden * tower.intermediate
    return 2 * tower.hidden**2 + 2 * tower.hidden * key_width + mlp


def language_forward(shape: ModelShape, sequences: float, tokens: float) -> Work:
    """Sequences of `tokens` each through the language model, without its head; attention is computed in full."""
    tower, total = shape.language, sequences * tokens
    return Work(
        matmul_flops=2 * total * tower.layers * layer_weights(tower, shape.key_value_width),
        attention_flops=4 * total * tokens * tower.hidden * tower.layers,
    )


def head_forward(shape: ModelShape, tokens: float) -> Work:
    return Work(matmul_flops=2 * tokens * shape.language.hidden * shape.vocabulary)


def vision_weights(shape: ModelShape) -> float:
    """Weights that a patch meets in the vision tower: those of its embedding, of the layers, and its share of the
    merger, which makes one visual token of m x m patches by two products of widths (m^2 w)^2 and m^2 w h."""
    tower, square = shape.vision, shape.merge_side**2
    embedding = tower.hidden * COLOURS * TEMPORAL_PATCH * shape.patch_pixels**2
    merged = square * tower.hidden
    merger = (merged**2 + merged * shape.language.hidden) / square
    return tower.layers * layer_weights(tower, tower.hidden) + embedding + merger


def vision_forward(shape: ModelShape, images: float, image_size: int) -> Work:
    """Images through the vision tower."""
    tower, patches = shape.vision, shape.patches(image_size)
    return Work(
        matmul_flops=2 * images * patches * vision_weights(shape),
        attention_flops=4 * images * patches**2 * tower.hidden * tower.layers,
    )
