"""Packing of groups into rows; comments derive the expected values by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medr1_ray.model.packing import Images, cut_group, pack_groups, pack_plain, tree_mask
from medr1_ray.types import Completions, Prompt, Question, Span

IMAGE_PAD, PAD = 99, 0
SPAN = Span("test", "test", 0.0, 0.0)
QUESTION = Question("q", "/none", "What?", ("x", "y"), 0, "CT", "modality recognition", "none")


def group(name, prompt_ids, completions, visual_tokens):
    lengths = np.array([len(c) for c in completions], np.int32)
    tokens = np.array([t for c in completions for t in c], np.int32)
    return (
        Prompt(name, QUESTION, np.array(prompt_ids, np.int32), np.zeros((2, 2, 3), np.uint8)),
        Completions(
            prompt_id=name,
            actor="rollout-0",
            token_ids=tokens,
            rollout_logprobs=np.zeros(tokens.size, np.float32),
            versions=np.zeros(tokens.size, np.int32),
            lengths=lengths,
            truncated=np.zeros(lengths.size, bool),
            texts=("",) * lengths.size,
            visual_tokens=visual_tokens,
            span=SPAN,
        ),
    )


def images_of(*grids):
    """Images with consecutively numbered patches, to see which image a row gets; 4 patches per visual token."""
    grid = torch.tensor(grids)
    patches = grid.prod(dim=1)
    digests = tuple(f"image {i}" for i in range(len(grids)))
    return Images(torch.arange(float(patches.sum()))[:, None], grid, tuple((patches // 4).tolist()), digests)


def numbered_positions(image_at, grid, length):
    """Simple positions in place of M-RoPE: row r of the table counts up from 100 r."""
    return torch.arange(length) + 100 * torch.arange(3)[:, None]


def test_a_group_is_one_row_that_holds_its_prompt_once():
    # Prompt 5 IMAGE 6 becomes 5 . . 6 (2 visual tokens, columns 0-3); completions 7 8 and 9 in columns 4, 5 and 6.
    packed = pack_groups(
        [group("a", [5, IMAGE_PAD, 6], [[7, 8], [9]], 2)],
        images_of([1, 2, 4]),
        IMAGE_PAD,
        PAD,
        numbered_positions,
    )
    assert packed.input_ids.tolist() == [[5, 99, 99, 6, 7, 8, 9]]
    assert packed.segment.tolist() == [[0, 0, 0, 0, 1, 1, 2]]
    # Each completion starts at position 4, where the prompt ends.
    assert packed.position_ids[0].tolist() == [[0, 1, 2, 3, 4, 5, 4]]
    assert packed.position_ids[2].tolist() == [[200, 201, 202, 203, 204, 205, 204]]
    # 7 and 9 are predicted by the prompt's last position, 8 by 7's.
    assert packed.targets.tolist() == [7, 8, 9]
    assert packed.predictors.tolist() == [3, 4, 3]


def test_rows_are_padded_on_the_right_and_indexed_flat():
    groups = [group("a", [IMAGE_PAD, 5], [[7]], 1), group("b", [IMAGE_PAD, 6], [[8], [9, 4]], 2)]
    packed = pack_groups(groups, images_of([1, 2, 2], [1, 2, 4]), IMAGE_PAD, PAD, numbered_positions)
    assert packed.input_ids.tolist() == [[99, 5, 7, PAD, PAD, PAD], [99, 99, 6, 8, 9, 4]]
    assert packed.segment.tolist() == [[0, 0, 1, -1, -1, -1], [0, 0, 0, 1, 2, 2]]
    # Row 1 starts at 6: its prompt ends at 6 + 2.
    assert packed.predictors.tolist() == [1, 8, 8, 10]


def test_a_batch_moves_as_a_whole():
    # The vision tower multiplies positions derived from the grid by parameters: both must be on one device.
    groups = [group("a", [IMAGE_PAD, 5], [[7]], 1)]
    packed = pack_groups(groups, images_of([1, 2, 2]), IMAGE_PAD, PAD, numbered_positions)
    moved = packed.to(torch.device("meta"))
    tensors = [value for value in {**vars(moved), **vars(moved.images)}.values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 7
    assert all(tensor.is_meta for tensor in tensors)


def test_tokens_see_the_prompt_and_their_own_completion():
    mask = tree_mask(torch.tensor([[0, 0, 1, 1, 2, -1]]))
    assert mask.shape == (1, 1, 6, 6)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],  # completion 2 does not see completion 1
        [1, 1, 0, 0, 0, 1],  # padding sees itself, and no other token sees it
    ]


@pytest.mark.parametrize(
    ("lengths", "room", "rows"),
    [
        ([4, 4, 4], 12, [[0, 1, 2]]),
        # The longest first, each into the shortest row: 7, 5, 5 with 4, 7 with 2.
        ([5, 2, 7, 4], 10, [[1, 2], [0, 3]]),
        # Seven of 4 tokens fit into 30, but 16 make no full rows and a rest: 6, 5 and 5.
        ([4] * 16, 30, [[0, 3, 6, 9, 12, 15], [1, 4, 7, 10, 13], [2, 5, 8, 11, 14]]),
        # Of even length two rows would have 10 and 8 tokens; the first that fits finds 9 and 9.
        ([5, 4, 3, 3, 3], 9, [[0, 1], [2, 3, 4]]),
        # What does not fit is alone, and does not disturb the others.
        ([3, 50, 3], 10, [[1], [0, 2]]),
        ([2, 3], -4, [[1], [0]]),
        # An empty completion needs no row of its own.
        ([5, 0], 4, [[0, 1]]),
        ([0, 0], 0, [[0, 1]]),
        ([0, 0], -1, [[0, 1]]),
    ],
)
def test_a_group_is_cut_into_few_rows_of_even_length(lengths, room, rows):
    assert cut_group(lengths, room) == rows


def fewest_rows(lengths, room):
    """By trying every way to put a completion into an open row or a new one."""

    def least(left, rows):
        if not left:
            return len(rows)
        first, *others = left
        fitting = [i for i, tokens in enumerate(rows) if tokens + first <= room]
        tries = [least(others, [*rows[:i], rows[i] + first, *rows[i + 1 :]]) for i in fitting]
        return min([*tries, least(others, [*rows, first])])

    return least(sorted(lengths, reverse=True), [])


def test_rows_have_room_hold_each_completion_once_and_are_next_to_always_the_fewest():
    random, more = np.random.default_rng(0), 0
    for _ in range(200):
        lengths = random.integers(1, 30, random.integers(2, 8)).tolist()
        room = int(random.integers(30, 60))
        rows = cut_group(lengths, room)
        assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
        assert all(row == sorted(row) and sum(lengths[i] for i in row) <= room for row in rows)
        fewest = fewest_rows(lengths, room)
        assert len(rows) <= fewest + 1
        more += len(rows) > fewest
    assert more <= 2


def test_plain_rows_repeat_the_prompt_and_its_image_in_order():
    groups = [group("a", [IMAGE_PAD, 5], [[7], [8]], 1), group("b", [IMAGE_PAD, 6], [[9], [4]], 2)]
    plain = pack_plain(groups, images_of([1, 2, 2], [1, 2, 4]), IMAGE_PAD, PAD, numbered_positions)
    assert plain.input_ids.tolist() == [[99, 5, 7, 0], [99, 5, 8, 0], [99, 99, 6, 9], [99, 99, 6, 4]]
    assert plain.images.grid_thw.tolist() == [[1, 2, 2], [1, 2, 2], [1, 2, 4], [1, 2, 4]]
    # Image a is patches 0-3, image b patches 4-11: the order is a a b b, not tiled as a b a b.
    expected = [*range(4), *range(4), *range(4, 12), *range(4, 12)]
    assert plain.images.pixel_values[:, 0].tolist() == expected
    assert plain.targets.tolist() == [7, 8, 9, 4]


@pytest.mark.parametrize("ids", [[5, 6], [IMAGE_PAD, IMAGE_PAD]])
def test_a_prompt_without_exactly_one_image_is_refused(ids):
    with pytest.raises(ValueError, match=r"prompt 'a' has \d image-pad tokens"):
        pack_groups([group("a", ids, [[7]], 1)], images_of([1, 2, 2]), IMAGE_PAD, PAD, numbered_positions)
