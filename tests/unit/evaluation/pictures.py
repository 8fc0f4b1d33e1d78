"""Questions whose images are numbers, and an encoder that needs no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from medr1_ray.data.encoding import Asked, PromptEncoder, Refused
from medr1_ray.types import Prompt, Question


class Encoder(PromptEncoder):
    """Every pixel of an image is the number that stands in its file's name; `refused` has reasons by question id."""

    def __init__(self, refused: Mapping[str, str] | None = None) -> None:
        self.refused = dict(refused or {})
        self.begun: list[list[str]] = []

    def begin(self, asked: Sequence[Asked]) -> None:
        self.begun.append([question.id for question, _ in asked])

    def encode(self, question: Question, prompt_id: str) -> Prompt | Refused:
        if question.id in self.refused:
            return Refused(self.refused[question.id], question.id)
        image = np.full((2, 2, 3), int(question.image_path), np.uint8)
        return Prompt(prompt_id, question, np.array([1, 2], np.int32), image)


def questions(files: Sequence[int]) -> tuple[Question, ...]:
    """One about each of these files: `q0`, `q1` and so on."""
    return tuple(
        Question(f"q{i}", str(file), "Which?", ("CT", "MRI"), 0, "CT", "Modality", "none")
        for i, file in enumerate(files)
    )
