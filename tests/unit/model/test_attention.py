"""FlexAttention's block mask of shared prompts against the full mask; `test_policy.py` runs models with both."""

from __future__ import annotations

import random

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medr1_ray.model.attention import block_mask, shared_prompt_mask
from medr1_ray.model.packing import tree_mask


def test_the_block_mask_is_the_tree_mask():
    # 300 tokens: three blocks; a prompt of 140, then completions and padding.
    segment = torch.cat([torch.full((n,), c) for c, n in ((0, 140), (1, 60), (2, 1), (3, 69), (-1, 30))])[None]
    mask = block_mask(segment)
    index = torch.arange(300)
    visible = mask.mask_mod(torch.tensor(0), torch.tensor(0), index[:, None], index[None, :])
    assert torch.equal(visible, tree_mask(segment)[0, 0])


def test_blocks_that_nobody_sees_are_left_out():
    # Blocks of 128: a prompt, then two completions, each of which sees the prompt and itself.
    segment = torch.arange(3).repeat_interleave(128)[None]
    kept = block_mask(segment).to_dense()[0, 0]
    assert kept.tolist() == [[1, 0, 0], [1, 1, 0], [1, 0, 1]]


def random_rows(seed: int) -> torch.Tensor:
    """Rows int [B, L] as `pack_groups` makes them: prompt, completions of which some are empty, padding."""
    rng = random.Random(seed)
    rows = []
    for _ in range(rng.randint(1, 4)):
        row = [0] * rng.randint(1, 400)
        for completion in range(1, rng.randint(1, 9) + 1):
            row += [completion] * rng.choice([0, rng.randint(1, 20), rng.randint(1, 300), 128])
        rows.append(row)
    # Often a whole number of blocks.
    longest = max(map(len, rows))
    longest += rng.choice([0, -longest % 128])
    return torch.tensor([row + [-1] * (longest - len(row)) for row in rows])


@pytest.mark.parametrize("seed", range(60))
def test_blocks_are_those_that_trying_every_pair_finds(seed: int) -> None:
    """`to_dense` of a mask has all its blocks; those that need no mask are checked on the pairs themselves."""
    segment = random_rows(seed)
    rows, length = segment.shape
    mask = block_mask(segment)
    expected = create_block_mask(mask.mask_mod, rows, None, length, length, device="cpu")
    assert torch.equal(mask.to_dense(), expected.to_dense())
    assert (mask.seq_lengths, mask.BLOCK_SIZE) == (expected.seq_lengths, expected.BLOCK_SIZE)
    # The backward pass goes by the blocks of queries of each block of keys.
    for name in ("q_num_blocks", "full_q_num_blocks"):
        assert getattr(mask, name).shape == getattr(expected, name).shape
    assert torch.equal(
        mask.q_num_blocks + mask.full_q_num_blocks, expected.q_num_blocks + expected.full_q_num_blocks
    )
    pairs, blocks = tree_mask(segment)[:, 0], 0
    for row, query in torch.cartesian_prod(torch.arange(rows), torch.arange(mask.full_kv_num_blocks.shape[2])).tolist():
        for key in mask.full_kv_indices[row, 0, query, : mask.full_kv_num_blocks[row, 0, query]].tolist():
            assert pairs[row, 128 * query : 128 * query + 128, 128 * key : 128 * key + 128].all()
            blocks += 1
    assert blocks <= int(expected.full_kv_num_blocks.sum())


def test_blocks_of_a_prompt_and_of_one_completion_need_no_mask() -> None:
    # Three blocks of prompt, two of a completion: six blocks below the diagonal are seen whole, of seven.
    segment = torch.tensor([0] * 384 + [1] * 256 + [2] * 128)[None]
    assert block_mask(segment).full_kv_num_blocks[0, 0].tolist() == [0, 1, 2, 3, 4, 3]


class Largest(TorchDispatchMode):
    """Remembers the most elements of any tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):  # type: ignore[no-untyped-def]
        made = function(*arguments, **(keywords or {}))
        sizes = [each.numel() for each in tree_leaves(made) if isinstance(each, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return made


def test_no_pair_of_tokens_is_tried() -> None:
    segment = torch.arange(8).repeat_interleave(1024)[None]
    with Largest() as largest:
        block_mask(segment)
    assert largest.elements <= segment.numel()


def test_a_cpu_gets_the_whole_mask():
    segment = torch.tensor([[0, 0, 1, 2]])
    assert torch.equal(shared_prompt_mask(segment), tree_mask(segment))
