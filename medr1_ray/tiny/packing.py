"""Packing of lessons into rows of one length, in which turns about the same picture share its tokens.

A row is [group | group | ...] and a group [prefix | turn | turn | ...], where the prefix is the chat markup and the
picture. A token attends to its own group's prefix and its own turn; M-RoPE positions restart for each group and turn,
so every turn is computed as if it were alone. Legend: R rows, L tokens per row, K pictures, Y target tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from medr1_ray.tiny.curriculum import IMAGE_SIZE, Lesson
from medr1_ray.tiny.tokenizer import SYSTEM_TEXT, token_id

GRID = IMAGE_SIZE // 28
VISUAL_TOKENS = GRID * GRID
TRIVIAL_WEIGHT = 0.2  # loss weight of tags and the end of the turn, which are learned quickly


@dataclass(frozen=True)
class Batch:
    """Packed lessons.

    Args:
        token_ids: int64 [R, L].
        positions: M-RoPE positions, int64 [3, R, L].
        visible: attention mask, bool [R, 1, L, L].
        pictures: uint8 [K, 84, 84, 3].
        picture_slots: indices of the pictures' visual tokens in the flat [R * L], int64 [K * 9].
        target_slots: indices in the flat [R * L] of the tokens that predict `targets`, int64 [Y].
        targets: token ids, int64 [Y].
        weights: loss weights of the targets, float32 [Y].
        lesson_of: index of the lesson of each target, int64 [Y].
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    visible: torch.Tensor
    pictures: NDArray[np.uint8]
    picture_slots: torch.Tensor
    target_slots: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    lesson_of: torch.Tensor


class Packer:
    """Packs lessons into batches of rows of `row_tokens` tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, row_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.row_tokens = row_tokens
        self.image_pad = token_id(tokenizer, "<|image_pad|>")
        head = f"<|im_start|>system\n{SYSTEM_TEXT}<|im_end|>\n<|im_start|>user\n"
        picture = "<|vision_start|>" + "<|image_pad|>" * VISUAL_TOKENS + "<|vision_end|>"
        self.prefixes = {False: self._encode(head), True: self._encode(head + picture)}
        self.bridge = self._encode("<|im_end|>\n<|im_start|>assistant\n")
        self.end = self._encode("<|im_end|>")
        names = ("<answer>", "</answer>", "<think>", "</think>", "<|im_end|>")
        self.trivial = {token_id(tokenizer, name) for name in names}

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def pack(self, lessons: Sequence[Lesson], rows: int) -> Batch:
        """Pack the lessons into `rows` rows, longest first; lessons that do not fit are left out."""
        texts = [text for lesson in lessons for turn in lesson.turns for text in (turn.user, turn.reply)]
        encoded = iter(self.tokenizer(texts, add_special_tokens=False)["input_ids"])
        groups = []
        for index, lesson in enumerate(lessons):
            turns = [(next(encoded), next(encoded)) for _ in lesson.turns]
            size = len(self.prefixes[lesson.image is not None])
            size += sum(len(user) + len(reply) + len(self.bridge) + 1 for user, reply in turns)
            groups.append((size, index, lesson.image, turns))
        writer = _Writer(self, rows)
        for size, index, image, turns in sorted(groups, key=lambda group: -group[0]):
            writer.add(size, index, image, turns)
        return writer.batch()


class _Writer:
    def __init__(self, packer: Packer, rows: int) -> None:
        shape = (rows, packer.row_tokens)
        self.packer = packer
        self.used = [0] * rows
        self.ids = np.zeros(shape, np.int64)
        self.positions = np.zeros((3, *shape), np.int64)
        self.group = np.full(shape, -1, np.int64)
        self.turn = np.zeros(shape, np.int64)
        self.pictures: list[NDArray[np.uint8]] = []
        self.slots: list[int] = []
        self.targets: list[tuple[int, int, float, int]] = []

    def add(
        self,
        size: int,
        lesson: int,
        image: NDArray[np.uint8] | None,
        turns: list[tuple[list[int], list[int]]],
    ) -> None:
        packer, room = self.packer, self.packer.row_tokens
        # The least filled row with enough room.
        row = min(range(len(self.used)), key=lambda r: (self.used[r] + size > room, self.used[r]))
        if self.used[row] + size > room:
            return
        at = self.used[row]
        group = at  # unique in the row
        prefix = packer.prefixes[image is not None]
        self._write(row, at, prefix, 0, group, 0)
        position = len(prefix)
        if image is not None:
            first = prefix.index(packer.image_pad)
            self.pictures.append(image)
            self.slots += [row * room + at + first + k for k in range(VISUAL_TOKENS)]
            grid = np.arange(VISUAL_TOKENS)
            span = slice(at + first, at + first + VISUAL_TOKENS)
            self.positions[0, row, span] = first
            self.positions[1, row, span] = first + grid // GRID
            self.positions[2, row, span] = first + grid % GRID
            # In M-RoPE a picture of GRID x GRID tokens advances the position by GRID, not by GRID * GRID.
            after = slice(at + first + VISUAL_TOKENS, at + len(prefix))
            self.positions[:, row, after] += GRID - VISUAL_TOKENS
            position += GRID - VISUAL_TOKENS
        at += len(prefix)
        for number, (user, reply) in enumerate(turns, 1):
            tokens = [*user, *packer.bridge, *reply, *packer.end]
            self._write(row, at, tokens, position, group, number)
            first_reply = at + len(user) + len(packer.bridge)
            for k, token in enumerate([*reply, *packer.end]):
                weight = TRIVIAL_WEIGHT if token in packer.trivial else 1.0
                # The slot of a target is the token before it, which predicts it.
                self.targets.append((row * room + first_reply + k - 1, token, weight, lesson))
            at += len(tokens)
        self.used[row] = at

    def _write(self, row: int, at: int, tokens: list[int], position: int, group: int, turn: int) -> None:
        span = slice(at, at + len(tokens))
        self.ids[row, span] = tokens
        self.positions[:, row, span] = position + np.arange(len(tokens))
        self.group[row, span] = group
        self.turn[row, span] = turn

    def batch(self) -> Batch:
        same_group = self.group[:, :, None] == self.group[:, None, :]
        same_turn = (self.turn[:, None, :] == 0) | (self.turn[:, :, None] == self.turn[:, None, :])
        causal = np.tri(self.packer.row_tokens, dtype=bool)
        slots, targets, weights, owners = zip(*self.targets, strict=True)
        empty = np.zeros((0, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        return Batch(
            token_ids=torch.from_numpy(self.ids),
            positions=torch.from_numpy(self.positions),
            visible=torch.from_numpy(same_group & same_turn & causal)[:, None],
            pictures=np.stack(self.pictures) if self.pictures else empty,
            picture_slots=torch.tensor(self.slots, dtype=torch.int64),
            target_slots=torch.tensor(slots),
            targets=torch.tensor(targets),
            weights=torch.tensor(weights, dtype=torch.float32),
            lesson_of=torch.tensor(owners),
        )
