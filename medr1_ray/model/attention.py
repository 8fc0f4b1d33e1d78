"""Attention over shared-prompt rows: block-sparse on a GPU, SDPA with the full mask elsewhere.

Both compute the same function. FlexAttention (Dong et al., arXiv 2412.05496) skips the blocks of 128 x 128 that the
mask leaves empty, which are most of them, since completions do not see each other. Qwen2-VL in transformers does not
declare FlexAttention support, so the function is registered under a name of its own.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from medr1_ray.model.packing import tree_mask

SHARED_PROMPT_ATTENTION = "medr1_ray_shared_prompt"
"""Value of `attn_implementation` for the language model."""

# For rows of under 128 tokens torch takes its decoding kernel, whose blocks hold at most 128 queries of all heads that
# share a key. Qwen2-VL-2B has 6 heads for a key, so that its rows of 22 to 127 tokens find no kernel (torch 2.11).
KERNEL_OPTIONS = {"FORCE_USE_FLEX_ATTENTION": True}

BLOCK = 128
"""Tokens of a block, FlexAttention's default."""


def shared_prompt_mask(segment: Tensor) -> Tensor | BlockMask:
    """Return `packing.tree_mask` of `segment` int [B, L], in the form that is fastest on its device."""
    return block_mask(segment) if segment.is_cuda else tree_mask(segment)


def block_mask(segment: Tensor) -> BlockMask:
    """Return `packing.tree_mask` of `segment` int [B, L] in FlexAttention's form, without the empty blocks.

    Made from the first and the last segment of each block: torch's `create_block_mask` tries every pair of tokens, with
    some 10 bytes for each (10 GB at 33,000).
    """
    length = segment.shape[1]

    def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        # Must stay the same function as `packing.tree_mask`.
        mine, theirs = segment[row, query], segment[row, key]
        return (key <= query) & ((mine == theirs) | (theirs == 0))

    seen, whole = _blocks(segment)
    return BlockMask.from_kv_blocks(
        *_listed(seen & ~whole), *_listed(whole), BLOCK, visible, seq_lengths=(length, length)
    )


def _blocks(segment: Tensor) -> tuple[Tensor, Tensor]:
    """Bool [B, N, N] each, of N blocks of queries and of keys: in which something is seen, and in which every query
    sees every key (some of the latter may be missing: they are computed like the others)."""
    rows, length = segment.shape
    # Segments grow along a row, so that the first and the last of a block bound the others; padding as the last of all.
    grown = torch.where(segment < 0, segment.amax() + 1, segment)
    padded = torch.cat([grown, grown[:, -1:].expand(rows, -length % BLOCK)], dim=1)
    first, last = padded[:, ::BLOCK], padded[:, BLOCK - 1 :: BLOCK]
    query_first, query_last, key_first, key_last = first[:, :, None], last[:, :, None], first[:, None], last[:, None]
    number = torch.arange(first.shape[1], device=segment.device)
    earlier, same = number[:, None] > number[None], number[:, None] == number[None]
    seen = same | earlier & ((key_first == 0) | (key_last >= query_first))
    own = (query_first == query_last) & (key_first == key_last) & (key_first == query_first)
    # A last block that is not full is left to the mask, which knows where the row ends.
    ends_within = (number[:, None] == number[-1]) & bool(length % BLOCK)
    return seen, earlier & ((key_last == 0) | own) & ~ends_within


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Of bool [B, N, N] how many keys' blocks each block of queries has, int [B, 1, N], and which, first of int
    [B, 1, N, N]."""
    order = blocks.to(torch.int32).argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[:, None], order.to(torch.int32)[:, None]


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
    """Compute attention with the signature that transformers requires of a registered attention function.

    Takes queries [B, heads, L, D] and keys and values [B, key-value heads, L, D]; returns [B, L, heads, D].
    """
    if not isinstance(attention_mask, BlockMask):
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **others
        )
    attended = _flex(query.is_cuda)(
        query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=True, kernel_options=KERNEL_OPTIONS
    )
    return attended.transpose(1, 2).contiguous(), None


@cache
def _flex(compiled: bool) -> Any:
    """Return FlexAttention, compiled on a GPU.

    Only the compiled kernel is fast. Uncompiled, it is plain arithmetic over the whole score matrix, and differentiable
    on a CPU only with torch's check of the device disabled, as a test does.
    """
    # dynamic: row lengths change with every micro-batch, and each length would be compiled separately.
    return torch.compile(flex_attention, dynamic=True) if compiled else flex_attention


# On import, because transformers looks the name up while it builds a model; hence the import in `load_model`.
ALL_ATTENTION_FUNCTIONS.register(SHARED_PROMPT_ATTENTION, attend)
