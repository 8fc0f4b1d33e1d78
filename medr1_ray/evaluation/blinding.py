"""The prompts of an evaluation: as they are, with blank images, and with images of other questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from medr1_ray.data.encoding import Encoder, Refused
from medr1_ray.types import Image, Prompt, Question

_AHEAD = 64
"""Questions that are encoded while those before them are asked."""


class NoLongerReadableError(RuntimeError):
    """An evaluation question that could be asked before cannot be asked now: over the others it would be another
    evaluation."""


class EvaluationPrompts:
    """The held-out questions of a run as prompts, encoded anew for each evaluation: decoded, an image of 384 pixels
    takes 442 kB, and 17,000 of them 7.5 GB.

    Questions that cannot be asked at the first time are left out of all evaluations alike; `say` is told how many they
    are and why.

    Args:
        encoder: for these alone: it keeps the images that come next (`Encoder.begin`).
    """

    def __init__(self, questions: Sequence[Question], encoder: Encoder, say: Callable[[str], None]) -> None:
        self._questions = questions
        self._encoder = encoder
        self._say = say
        self._left_out: dict[str, str] | None = None

    def __iter__(self) -> Iterator[Prompt]:
        """Yield the prompts.

        Raises:
            ValueError: there is none.
            NoLongerReadableError: one that was asked before cannot be encoded.
        """
        if self._left_out is not None:
            yield from self._encode_all([each for each in self._questions if each.id not in self._left_out])
            return
        left_out: dict[str, str] = {}
        for question, encoded in self._encode(self._questions):
            if isinstance(encoded, Refused):
                left_out[question.id] = encoded.reason
            else:
                yield encoded
        reasons = Counter(left_out.values())
        if len(left_out) == len(self._questions):
            raise ValueError(
                f"none of the {len(self._questions)} evaluation questions can be a prompt "
                f"({', '.join(f'{reason}: {number}' for reason, number in reasons.items())}); see "
                "rollout.max_prompt_tokens"
            )
        for reason, number in reasons.items():
            self._say(f"evaluation: {number} questions left out: {reason}")
        self._left_out = left_out

    def with_blank_images(self) -> Iterator[Prompt]:
        """Yield the same prompts, each with a black image of the same size."""
        black: Image | None = None
        for prompt in self:
            black = black if black is not None else self._encoder.keep(np.zeros(prompt.image.shape, np.uint8))
            yield replace(prompt, image=black)

    def with_shuffled_images(self, seed: int) -> Iterator[Prompt] | None:
        """Yield the same prompts, each with the image of another one from a different file, or return None
        (`other_images`). To be asked for after the prompts as they are, which show who can be asked."""
        asked = [question for question in self._questions if question.id not in (self._left_out or {})]
        files = [question.image_path for question in asked]
        others = other_images(files, seed)
        if others is None:
            return None
        own = {question.id: question for question in asked}
        exchanged = [replace(question, image_path=files[other]) for question, other in zip(asked, others, strict=True)]
        # The answer belongs to the question that was asked, not to the owner of the image.
        return (replace(prompt, question=own[prompt.question.id]) for prompt in self._encode_all(exchanged))

    def _encode_all(self, questions: Sequence[Question]) -> Iterator[Prompt]:
        for _, encoded in self._encode(questions):
            if isinstance(encoded, Refused):
                raise NoLongerReadableError(
                    f"an evaluation question can no longer be asked: {encoded.reason} ({encoded.detail}); it could "
                    "before, and over the others it would be another evaluation"
                )
            yield encoded

    def _encode(self, questions: Sequence[Question]) -> Iterator[tuple[Question, Prompt | Refused]]:
        asked = [(question, f"evaluation:{question.id}") for question in questions]
        for number, (question, prompt_id) in enumerate(asked):
            if number % _AHEAD == 0:
                self._encoder.begin(asked[number : number + 2 * _AHEAD])
            yield question, self._encoder.encode(question, prompt_id)


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
