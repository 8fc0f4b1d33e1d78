"""FlexAttention's block mask of shared prompts against the full mask; `test_policy.py` runs models with both."""

import torch

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


def test_a_cpu_gets_the_whole_mask():
    segment = torch.tensor([[0, 0, 1, 2]])
    assert torch.equal(shared_prompt_mask(segment), tree_mask(segment))
