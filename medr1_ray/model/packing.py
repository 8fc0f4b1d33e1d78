"""Packing groups into rows of the model's input: each group is one row that contains its prompt once, or as few as its
tokens allow (`cut_group`).

    row:       prompt (image expanded) | completion 1 | completion 2 | ... | completion G | padding
    positions: 0 .............. T - 1  | T, T + 1 ... | T, T + 1 ... |     | T, T + 1 ... |
    sees:      the prompt, causally    | the prompt and its own completion, causally

Shapes: B rows, L tokens of the longest row, T tokens of a prompt, S completion tokens of all groups, concatenated in
the groups' order (as in `Completions`). L and T include visual tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medr1_ray.types import CompletedPrompt, Completions, Prompt

PromptPositions = Callable[[int, tuple[int, int, int], int], Tensor]
"""(index of the first visual token, patch grid t x h x w, length) -> M-RoPE positions int64 [3, length]."""


@dataclass(frozen=True)
class Images:
    """Input of the vision tower.

    `pixel_values` float32 [patches, values] is one flat array that `grid_thw` int64 [B, 3] splits in the rows' order;
    `visual_tokens` int [B] is the number of visual tokens of each image; `digests` [B] identify the images.
    """

    pixel_values: Tensor
    grid_thw: Tensor
    visual_tokens: tuple[int, ...]
    digests: tuple[str, ...]


@dataclass(frozen=True)
class PackedBatch:
    """Input of one forward pass.

    `input_ids` int64 [B, L]; `position_ids` int64 [3, B, L]; `segment` int64 [B, L], 0 in the prompt, c in the row's
    completion c, -1 in padding; `predictors` int64 [S], the flat index (row * L + column) of the position that predicts
    each completion token; `targets` int64 [S].
    """

    input_ids: Tensor
    position_ids: Tensor
    segment: Tensor
    predictors: Tensor
    targets: Tensor
    images: Images

    def to(self, device: torch.device) -> PackedBatch:
        """Return the batch on `device`, including the image grid: the vision tower computes positions on its device."""
        images = replace(
            self.images,
            pixel_values=self.images.pixel_values.to(device),
            grid_thw=self.images.grid_thw.to(device),
        )
        return PackedBatch(
            self.input_ids.to(device),
            self.position_ids.to(device),
            self.segment.to(device),
            self.predictors.to(device),
            self.targets.to(device),
            images,
        )


def row_tokens(prompt: Prompt, completions: Completions) -> int:
    """Return the length of the group's row, using the engine's count of visual tokens."""
    # - 1: the visual tokens replace the one image-pad token.
    return prompt.token_ids.size - 1 + completions.visual_tokens + completions.token_ids.size


def cut_group(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Return the completions of each row of a group, by their indices in order: rows of at most `room` tokens besides
    the prompt. A completion that is longer has a row of its own.

    Few rows are a matter of bin packing. First-fit decreasing takes at most 11/9 of the fewest plus 6/9 (Dosa 2007).
    Rows of even length, of which the longest needs less memory, are taken where they are not more.

    Args:
        lengths: tokens of each completion.
    """
    total = sum(lengths)
    if total <= room:
        return [list(range(len(lengths)))]
    descending = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    rows: list[list[int]] = []
    for index in descending:
        length = lengths[index]  # an empty one is in no one's way
        row = next((row for row in rows if not length or sum(lengths[i] for i in row) + length <= room), None)
        if row is None:
            rows.append(row := [])
        row.append(index)
    for count in range(max(1, -(-total // max(1, room))), len(rows) + 1):
        even = _spread(descending, lengths, count)
        if max(sum(lengths[i] for i in row) for row in even) <= room:
            rows = even
            break
    return [sorted(row) for row in rows]


def _spread(descending: Sequence[int], lengths: Sequence[int], count: int) -> list[list[int]]:
    """Return `count` rows of about the same length: the longest completion first, each into the shortest row."""
    rows: list[list[int]] = [[] for _ in range(count)]
    tokens = [0] * count
    for index in descending:
        shortest = tokens.index(min(tokens))
        rows[shortest].append(index)
        tokens[shortest] += lengths[index]
    return rows


def pack_groups(
    groups: Sequence[CompletedPrompt], images: Images, image_pad: int, pad: int, positions: PromptPositions
) -> PackedBatch:
    """Return a batch with one row per group (or part of one), whose completions share the prompt.

    Args:
        images: the groups' images, in the same order.
        image_pad: token id that stands for the image in a prompt, once; it is expanded to the image's visual tokens.
        pad: any token id; fills shorter rows on the right.

    Raises ValueError for a prompt without exactly one image-pad token.
    """
    rows = []
    for (prompt, completions), grid, visual in zip(
        groups, images.grid_thw.tolist(), images.visual_tokens, strict=True
    ):
        ids, image_at = _expand(prompt, image_pad, visual)
        rows.append(_row(ids, completions.token_ids, completions.lengths, image_at, grid, positions))
    return _batch(rows, images, pad)


def pack_plain(
    groups: Sequence[CompletedPrompt], images: Images, image_pad: int, pad: int, positions: PromptPositions
) -> PackedBatch:
    """Return a batch with one row per completion, which repeats the prompt and its image.

    The plain form that `pack_groups` must agree with, slower by about the group size; used by tests and by the parity
    gate's diagnosis.
    """
    rows, patches, row_of_image = [], images.grid_thw.prod(dim=1).tolist(), []
    grids = images.grid_thw.tolist()
    for i, (prompt, completions) in enumerate(groups):
        ids, image_at = _expand(prompt, image_pad, images.visual_tokens[i])
        ends = np.cumsum(completions.lengths)
        for end, length in zip(ends, completions.lengths, strict=True):
            tokens = completions.token_ids[end - length : end]
            rows.append(_row(ids, tokens, np.array([length]), image_at, grids[i], positions))
            row_of_image.append(i)
    # Patches carry no row index: repeated in any other order, images would silently belong to the wrong prompts.
    pixels = images.pixel_values.split(patches)
    repeated = Images(
        torch.cat([pixels[i] for i in row_of_image]),
        images.grid_thw[row_of_image],
        tuple(images.visual_tokens[i] for i in row_of_image),
        tuple(images.digests[i] for i in row_of_image),
    )
    return _batch(rows, repeated, pad)


@dataclass(frozen=True)
class _Row:
    """One row before padding; `predictors` are column indices."""

    ids: NDArray[np.int64]
    positions: Tensor
    segment: NDArray[np.int64]
    predictors: NDArray[np.int64]
    targets: NDArray[np.int64]


def _expand(prompt: Prompt, image_pad: int, visual_tokens: int) -> tuple[NDArray[np.int64], int]:
    (places,) = np.nonzero(prompt.token_ids == image_pad)
    if places.size != 1:
        raise ValueError(
            f"prompt {prompt.id!r} has {places.size} image-pad tokens (id {image_pad}) and must have exactly 1: "
            "does the question's text contain the token itself?"
        )
    at = int(places[0])
    ids = prompt.token_ids.astype(np.int64)
    return np.concatenate([ids[:at], np.full(visual_tokens, image_pad), ids[at + 1 :]]), at


def _row(
    prompt_ids: NDArray[np.int64],
    tokens: NDArray[np.int32],
    lengths: NDArray[np.integer],
    image_at: int,
    grid: list[int],
    positions: PromptPositions,
) -> _Row:
    prompt_tokens, count = prompt_ids.size, tokens.size
    # Index of each completion token within its completion.
    within = np.arange(count) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    longest = int(lengths.max(initial=0))
    table = positions(image_at, (grid[0], grid[1], grid[2]), prompt_tokens + longest)
    columns = prompt_tokens + np.arange(count)
    return _Row(
        ids=np.concatenate([prompt_ids, tokens]),
        # Positions of text after the image increase by one, so every completion continues where the prompt ends.
        positions=table[:, np.concatenate([np.arange(prompt_tokens), prompt_tokens + within])],
        segment=np.concatenate(
            [np.zeros(prompt_tokens, np.int64), 1 + np.repeat(np.arange(lengths.size), lengths)]
        ),
        # The prompt's last position predicts the first token of every completion.
        predictors=np.where(within == 0, prompt_tokens - 1, columns - 1),
        targets=tokens.astype(np.int64),
    )


def _batch(rows: Sequence[_Row], images: Images, pad: int) -> PackedBatch:
    longest = max(row.ids.size for row in rows)
    shape = (len(rows), longest)
    # Padding stays at position 0: no real token sees it, so its positions do not matter.
    ids, segment = np.full(shape, pad), np.full(shape, -1)
    positions = torch.zeros(3, *shape, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : row.ids.size] = row.ids
        segment[i, : row.ids.size] = row.segment
        positions[:, i, : row.ids.size] = row.positions
    return PackedBatch(
        input_ids=torch.from_numpy(ids),
        position_ids=positions,
        segment=torch.from_numpy(segment),
        predictors=torch.from_numpy(
            np.concatenate([i * longest + row.predictors for i, row in enumerate(rows)])
        ),
        targets=torch.from_numpy(np.concatenate([row.targets for row in rows])),
        images=images,
    )


def tree_mask(segment: Tensor) -> Tensor:
    """Return bool [B, 1, L, L] from `segment` int [B, L]: a token sees, causally, the prompt (0) and its own segment.

    Padding is a segment of its own, so that no row of the mask is empty, which would give NaN in the softmax.
    """
    length = segment.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segment.device).tril()
    same = segment[:, :, None] == segment[:, None, :]
    prompt = (segment == 0)[:, None, :]
    return ((same | prompt) & causal)[:, None]
