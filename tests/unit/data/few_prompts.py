"""Ten questions about five images, and an encoder that needs no checkpoint."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from medr1_ray.data.encoding import PromptEncoder
from medr1_ray.types import Question

IMAGE_PAD_ID = 7


def ten_questions(folder: Path) -> tuple[Question, ...]:
    """Return ten different questions about five images of 20 x 20 pixels, which are written to `folder`."""
    for i in range(5):
        Image.new("RGB", (20, 20), (50 * i, 0, 0)).save(folder / f"{i}.png")
    return tuple(
        Question(f"q:{i}", str(folder / f"{i % 5}.png"), f"What {i}?", ("x", "y"), i % 2, "CT", "Unknown", "d")
        for i in range(10)
    )


def tokenize(messages: list[dict[str, object]]) -> list[int]:
    """Return one image pad, then a token per word."""
    return [IMAGE_PAD_ID] + [100 for _ in str(messages[0]["content"]).split()]


def encoder(max_prompt_tokens: int = 1000) -> PromptEncoder:
    return PromptEncoder(tokenize, IMAGE_PAD_ID, 4, "no_think", 28, "squash", max_prompt_tokens)
