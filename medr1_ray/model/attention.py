"""Attention of shared-prompt rows: block-sparse where there is a GPU, SDPA under the whole mask elsewhere.

The arithmetic is the same. FlexAttention (Dong et al., arXiv 2412.05496) skips the blocks of 128 x 128 that the mask
leaves empty, and most of them are: completions do not see each other. Qwen2-VL in transformers does not declare
FlexAttention, so the function is registered under a name of its own.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from medr1_ray.model.packing import tree_mask

SHARED_PROMPT_ATTENTION = "medr1_ray_shared_prompt"
"""For `attn_implementation` of the language model."""


def shared_prompt_mask(segment: Tensor) -> Tensor | BlockMask:
    """What tokens see (`packing.tree_mask`), in the form that the device of `segment` int [B, L] is fastest with."""
    return block_mask(segment) if segment.is_cuda else tree_mask(segment)


def block_mask(segment: Tensor) -> BlockMask:
    """`packing.tree_mask` as FlexAttention takes it: blocks that nobody sees are left out."""
    rows, length = segment.shape

    def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        mine, theirs = segment[row, query], segment[row, key]
        return (key <= query) & ((mine == theirs) | (theirs == 0))

    return create_block_mask(visible, rows, None, length, length, device=str(segment.device))


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | BlockMask | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """An attention function in transformers' form: queries [B, heads, L, D], keys and values [B, fewer heads, L, D]."""
    if not isinstance(attention_mask, BlockMask):
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **others
        )
    attended = _flex(query.is_cuda)(query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=True)
    return attended.transpose(1, 2).contiguous(), None


@cache
def _flex(compiled: bool) -> Any:
    """The kernel is what makes it fast; without compiling it is plain arithmetic, which a CPU can differentiate."""
    return torch.compile(flex_attention, dynamic=True) if compiled else flex_attention


ALL_ATTENTION_FUNCTIONS.register(SHARED_PROMPT_ATTENTION, attend)
