"""How many floating-point operations an update needs: the numerator of model FLOPs utilisation (docs/performance.md).

Counted are the matrix products of the model on the tokens at hand, two operations for each multiply-add, as in
Chowdhery et al. (arXiv 2204.02311, appendix B); a shared prompt counts once, padding and what gradient checkpointing
computes again count nothing. A backward pass is twice its forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medr1_ray.sizing import ModelShape, TowerShape
from medr1_ray.types import Completions, Prompt

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

PATCH_VALUES = 6
"""Of each pixel of a patch: three colours of two frames, which for an image are the same."""


@dataclass(frozen=True)
class ForwardFlops:
    """Operations of one forward pass by part of the model."""

    language: float
    vision: float

    def update(self, passes: int, train_vision_tower: bool, reference: bool) -> float:
        """Operations of `passes` forward and backward passes, and of one through the reference if there is one."""
        vision = self.vision * (3 if train_vision_tower else 1)
        return passes * (3 * self.language + vision) + (self.language + self.vision if reference else 0.0)


def forward_flops(shape: ModelShape, groups: Sequence[tuple[Prompt, Completions]]) -> ForwardFlops:
    """Operations of a forward pass over groups, each with its prompt and image once."""
    language = vision = 0.0
    for prompt, completions in groups:
        visual = completions.visual_tokens
        context = prompt.token_ids.size - 1 + visual
        lengths = completions.lengths.astype(np.float64)
        tokens = context + lengths.sum()
        pairs = context * (context + 1) / 2 + (lengths * context + lengths * (lengths + 1) / 2).sum()
        language += _tower(shape.language, shape.key_value_width, tokens, pairs)
        language += 2.0 * lengths.sum() * shape.language.hidden * shape.vocabulary
        patches = visual * shape.merge_side**2
        vision += _tower(shape.vision, shape.vision.hidden, patches, patches**2)
        merged = shape.merge_side**2 * shape.vision.hidden
        vision += 2.0 * visual * (merged * merged + merged * shape.language.hidden)
        vision += 2.0 * patches * PATCH_VALUES * shape.patch_pixels**2 * shape.vision.hidden
    return ForwardFlops(language, vision)


def peak_flops(device: str) -> float | None:
    """Operations per second of the GPU of this name at best, in bfloat16; None where that is not known."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device), None)


def _tower(tower: TowerShape, key_value_width: int, tokens: float, pairs: float) -> float:
    """A stack's products with its weights, and of `pairs` of queries and keys (QK and AV, 2 operations each)."""
    h = tower.hidden
    weights = 2 * h * h + 2 * h * key_value_width + (3 if tower.gated else 2) * h * tower.intermediate
    return float(tower.layers * (2 * tokens * weights + 4 * pairs * h))
