"""Forward pass of the tiny model for many small pictures of one size: same weights, same results, less Python.

transformers runs a vision block once per picture; here all pictures are processed at once, and logits are computed for
the target tokens only. A unit test compares the two.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from transformers import Qwen2VLForConditionalGeneration
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from medr1_ray.tiny.architecture import MERGE, PATCH
from medr1_ray.tiny.curriculum import IMAGE_SIZE
from medr1_ray.tiny.packing import Batch

SIDE = IMAGE_SIZE // PATCH
PATCHES = SIDE * SIDE


def patches_of(pictures: NDArray[np.uint8]) -> torch.Tensor:
    """Return what Qwen2VLImageProcessor makes of 84 x 84 pictures, without the repetition in time.

    Args:
        pictures: uint8 [K, 84, 84, 3].

    Returns:
        float32 [K, 36, 588]: rescaled, normalised, in the processor's order of patches (2 x 2 neighbours together),
        each patch as channel, row, column.
    """
    pixels = torch.tensor(pictures, dtype=torch.float32)
    mean, std = torch.tensor(OPENAI_CLIP_MEAN) * 255, torch.tensor(OPENAI_CLIP_STD) * 255
    pixels = (pixels - mean) / std
    blocks = SIDE // MERGE
    cut = pixels.reshape(-1, blocks, MERGE, PATCH, blocks, MERGE, PATCH, 3)
    return cut.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(-1, PATCHES, 3 * PATCH * PATCH)


class FastForward(nn.Module):
    """Computes the logits of a `Batch`'s target tokens, with the parameters of a Qwen2VLForConditionalGeneration.

    Legend: K pictures, R rows of L tokens, Y target tokens, V vocabulary entries.
    """

    vision_cos: torch.Tensor
    vision_sin: torch.Tensor
    axes: torch.Tensor

    def __init__(self, model: Qwen2VLForConditionalGeneration) -> None:
        super().__init__()
        self.model = model
        visual, text = model.model.visual, model.model.language_model
        order = (
            torch.arange(PATCHES)
            .reshape(SIDE // MERGE, MERGE, SIDE // MERGE, MERGE)
            .transpose(1, 2)
            .reshape(-1)
        )
        cos, sin = visual.rotary_pos_emb(torch.zeros(1), torch.stack([order // SIDE, order % SIDE], -1))
        self.register_buffer("vision_cos", cos[None, None], persistent=False)
        self.register_buffer("vision_sin", sin[None, None], persistent=False)
        sections = text.rotary_emb.mrope_section
        axes = torch.cat([torch.full((count,), axis) for axis, count in enumerate(sections)])
        self.register_buffer("axes", axes, persistent=False)

    def pictures(self, patches: torch.Tensor) -> torch.Tensor:
        """Return visual tokens [K, 9, hidden] of patches [K, 36, 588]."""
        visual = self.model.model.visual
        count = patches.shape[0]
        # The processor repeats a picture in time; summing the kernel over time gives the same result.
        kernel = visual.patch_embed.proj.weight.sum(2).flatten(1)
        x = functional.linear(patches, kernel)
        for block in visual.blocks:
            attention = block.attn
            qkv = attention.qkv(block.norm1(x)).view(
                count, PATCHES, 3, attention.num_heads, attention.head_dim
            )
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            q, k = (_rotate(t, self.vision_cos, self.vision_sin) for t in (q, k))
            seen = functional.scaled_dot_product_attention(q, k, v)
            x = x + attention.proj(seen.transpose(1, 2).reshape(count, PATCHES, -1))
            x = x + block.mlp(block.norm2(x))
        merger = visual.merger
        tokens: torch.Tensor = merger.mlp(merger.ln_q(x).view(count, PATCHES // MERGE**2, -1))
        return tokens

    def hidden(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        visible: torch.Tensor,
        patches: torch.Tensor,
        picture_slots: torch.Tensor,
    ) -> torch.Tensor:
        """Return the last hidden states [R, L, hidden]."""
        text = self.model.model.language_model
        rows, length = token_ids.shape
        x = text.embed_tokens(token_ids)
        if len(patches):
            flat = x.view(rows * length, -1)
            x = flat.index_put((picture_slots,), self.pictures(patches).flatten(0, 1)).view(rows, length, -1)
        angles = positions[self.axes].permute(1, 2, 0).float() * text.rotary_emb.inv_freq
        angles = torch.cat([angles, angles], -1)[:, None]
        cos, sin = angles.cos(), angles.sin()
        for layer in text.layers:
            attention = layer.self_attn
            y = layer.input_layernorm(x)
            q, k, v = (
                projection(y).view(rows, length, -1, attention.head_dim).transpose(1, 2)
                for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
            k, v = (t.repeat_interleave(attention.num_key_value_groups, 1) for t in (k, v))
            seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=visible)
            x = x + attention.o_proj(seen.transpose(1, 2).reshape(rows, length, -1))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        normed: torch.Tensor = text.norm(x)
        return normed

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the logits [Y, V] of the batch's target tokens."""
        hidden = self.hidden(
            batch.token_ids, batch.positions, batch.visible, patches_of(batch.pictures), batch.picture_slots
        )
        logits: torch.Tensor = self.model.lm_head(hidden.flatten(0, 1)[batch.target_slots])
        return logits


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin
