"""Removing the link between image and question: blank images, and images of other questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from medr1_ray.types import Prompt


def with_blank_images(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Return the same prompts, each with a black image of the same size."""
    return [replace(prompt, image=np.zeros_like(prompt.image)) for prompt in prompts]


def with_shuffled_images(prompts: Sequence[Prompt], seed: int) -> list[Prompt] | None:
    """Return the same prompts, each with the image of another one from a different file, or None (`other_images`)."""
    others = other_images([prompt.question.image_path for prompt in prompts], seed)
    if others is None:
        return None
    return [replace(prompt, image=prompts[other].image) for prompt, other in zip(prompts, others, strict=True)]


def other_images(files: Sequence[str], seed: int) -> list[int] | None:
    """Return, for each question's image file, the index of another question with a different file.

    Every image is used as often as before, so that only the link between image and question is lost. Returns None if
    more than half of the questions share one image, because then no such assignment exists.
    """
    distinct = sorted(set(files))
    rank = dict(zip(distinct, np.random.default_rng(seed).permutation(len(distinct)), strict=True))
    # Sorted into blocks of equal files, in random order, a shift by the largest block moves every question out of its
    # block.
    order = sorted(range(len(files)), key=lambda i: rank[files[i]])
    shift = max(Counter(files).values(), default=0)
    if 2 * shift > len(files):
        return None
    others = [0] * len(files)
    for place, source in zip(order, order[shift:] + order[:shift], strict=True):
        others[place] = source
    return others


NOT_SHUFFLED = "images cannot be exchanged between questions, because more than half of the questions share one image"
"""Why there is no evaluation with other questions' images."""
