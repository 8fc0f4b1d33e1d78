"""Groups of which only the sizes matter."""

from __future__ import annotations

import numpy as np

from medr1_ray.types import Completions, Group, Prompt, Question, Rewards, Span

SPAN = Span("", "", 0.0, 0.0)


PROMPT_TOKENS = 6


def group(name: str, tokens: int = 10, rewards: tuple[float, ...] = (1.0,)) -> Group:
    """A row of `tokens` tokens: 4 of text, 2 of the image, the rest of the first completion; others are empty."""
    lengths = (tokens - PROMPT_TOKENS,) + (0,) * (len(rewards) - 1)
    return group_of_lengths(name, lengths, rewards, zeros=True)


def group_of_lengths(
    name: str, lengths: tuple[int, ...], rewards: tuple[float, ...], *, zeros: bool = False
) -> Group:
    """Completions of these lengths after a prompt of 6 tokens, with tokens (or zeros) and texts that are counted."""
    count, size = sum(lengths), len(rewards)
    question = Question(name, "", "", ("x", "y"), 0, "CT", "", "")
    prompt = Prompt(name, question, np.zeros(5, np.int32), np.zeros((2, 2, 3), np.uint8))
    total = np.array(rewards, np.float32)
    numbers = np.arange(count) * (not zeros)
    texts = tuple("" if zeros else f"text {i}" for i in range(size))
    completions = Completions(
        name,
        "",
        numbers.astype(np.int32),
        numbers.astype(np.float32),
        numbers.astype(np.int32),
        np.array(lengths, np.int32),
        total > 0,
        texts,
        2,
        SPAN,
    )
    scored = Rewards(name, (), total[:, None], total, total > 0, total > 0, (None,) * size, SPAN)
    return Group(prompt, completions, scored, total)
