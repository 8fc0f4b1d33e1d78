"""Lessons in one row do not see each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medr1_ray.tiny.curriculum import Lesson, Turn, phantom_lesson, shape_lesson
from medr1_ray.tiny.network import FastForward
from medr1_ray.tiny.packing import Packer
from medr1_ray.tiny.tokenizer import token_id


def test_groups_of_a_row_do_not_see_each_other(tokenizer, model) -> None:
    rng = np.random.default_rng(2)
    first, second = shape_lesson(rng, 3), phantom_lesson(rng)
    network, packer = FastForward(model), Packer(tokenizer, 384)
    with torch.no_grad():
        together = network(packer.pack([first, second], 1))
        apart = torch.cat([network(packer.pack([lesson], 1)) for lesson in (first, second)])
    torch.testing.assert_close(together, apart, atol=2e-4, rtol=0)


def test_a_row_by_hand(tokenizer) -> None:
    """Two turns about one picture: the prefix once, then each turn as if it were alone."""
    image = np.full((84, 84, 3), 7, np.uint8)
    turns = (Turn("Which?", "<answer>A</answer>"), Turn("Describe the image.", "CT"))
    packer = Packer(tokenizer, 96)
    batch = packer.pack([Lesson(image, turns)], 1)

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    head = ids("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>")
    prefix = [*head, *[token_id(tokenizer, "<|image_pad|>")] * 9, *ids("<|vision_end|>")]
    bridge = ids("<|im_end|>\n<|im_start|>assistant\n")
    end = ids("<|im_end|>")
    first = [*ids("Which?"), *bridge, *ids("<answer>A</answer>"), *end]
    second = [*ids("Describe the image."), *bridge, *ids("CT"), *end]
    row = batch.token_ids[0].tolist()
    used = len(prefix) + len(first) + len(second)
    assert row[:used] == prefix + first + second
    # The picture's 3 x 3 tokens take three positions: `<|vision_end|>` follows at head + 3, the turns at head + 4.
    start = len(head)
    time, height, width = (axis[0].tolist() for axis in batch.positions)
    assert time[start : start + 9] == [start] * 9
    assert height[start : start + 9] == [start + k for k in (0, 0, 0, 1, 1, 1, 2, 2, 2)]
    assert width[start : start + 9] == [start + k for k in (0, 1, 2, 0, 1, 2, 0, 1, 2)]
    assert time[start + 9] == start + 3
    for at in (len(prefix), len(prefix) + len(first)):
        assert [axis[at] for axis in (time, height, width)] == [start + 4] * 3
    assert batch.picture_slots.tolist() == list(range(start, start + 9))
    assert batch.pictures.shape == (1, 84, 84, 3)
    # Targets are the replies with their ends, each predicted by the token before it.
    replies = [*ids("<answer>A</answer>"), *end, *ids("CT"), *end]
    assert batch.targets.tolist() == replies
    assert [row[slot + 1] for slot in batch.target_slots.tolist()] == replies
    # Tags and ends count for a fifth; the letter and the description in full.
    assert batch.weights.tolist() == pytest.approx([0.2, 1.0, 0.2, 0.2, 1.0, 0.2])
    assert batch.lesson_of.tolist() == [0] * 6
    # The second turn sees the prefix and itself, not the first.
    last = batch.visible[0, 0, used - 1].tolist()
    assert last == [*[True] * len(prefix), *[False] * len(first), *[True] * len(second), *[False] * (96 - used)]


def test_the_longest_lessons_are_packed_first_and_what_does_not_fit_is_left_out(tokenizer) -> None:
    def lesson(words: int) -> Lesson:
        return Lesson(None, (Turn(" lesion" * words, "CT"),))

    packer = Packer(tokenizer, 64)
    whole = packer.pack([lesson(1)], 1)
    overhead = int((whole.visible[0, 0].any(dim=0) & (whole.token_ids[0] != 0)).sum()) - 1
    # Rows of 64: one of 60 tokens fills a row, two of 30 the other; one of 20 finds no room.
    sizes = [20, 30, 60, 30]
    batch = packer.pack([lesson(size - overhead) for size in sizes], 2)
    assert sorted(set(batch.lesson_of.tolist())) == [1, 2, 3]
    row_of = (batch.target_slots // 64).tolist()
    rows = dict(zip(batch.lesson_of.tolist(), row_of, strict=True))
    assert rows[1] == rows[3] != rows[2]
