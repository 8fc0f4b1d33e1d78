"""Groups of which only the sizes matter."""

from __future__ import annotations

import numpy as np

from medr1_ray.types import Completions, Group, Prompt, Question, Rewards, Span

SPAN = Span("", "", 0.0, 0.0)


def group(name: str, tokens: int = 10, rewards: tuple[float, ...] = (1.0,)) -> Group:
    """A row of `tokens` tokens: 4 of text, 2 of the image, the rest of the first completion; others are empty."""
    count, size = tokens - 6, len(rewards)
    numbers = np.zeros(count, np.float32)
    lengths = np.array([count] + [0] * (size - 1), np.int32)
    question = Question(name, "", "", ("x", "y"), 0, "CT", "", "")
    prompt = Prompt(name, question, np.zeros(5, np.int32), np.zeros((2, 2, 3), np.uint8))
    total = np.array(rewards, np.float32)
    completions = Completions(
        name, "", numbers.astype(np.int32), numbers, numbers, lengths, total > 0, ("",) * size, 2, SPAN
    )
    scored = Rewards(name, (), total[:, None], total, total > 0, total > 0, (None,) * size, SPAN)
    return Group(prompt, completions, scored, total)
