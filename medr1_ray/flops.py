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
from medr1_ray.model_shape import ModelShape, TowerShape
from medr1_ray.packing import ScoredPrompt
from medr1_ray.step_work import Work, head_forward, layer_weights, vision_weights

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
