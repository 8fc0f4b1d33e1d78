"""Passes over the questions of an evaluation: unchanged, with image or options altered, or with another scoring.

A pass turns a question into a prompt, and the model's output into a row, which `evaluation/report.py` reads: `id`,
`answer` (a letter of the question as it was asked, or None), `correct`, `well_formed`, `problem` (why there is no
letter), `truncated`, and `completion` or, for likelihoods, `scores`. Sampled passes have `id`, `pass_rate`, `samples`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np

from medr1_ray.data.encoding import PromptEncoder, Refused, continuations
from medr1_ray.data.questions import shuffle_options
from medr1_ray.evaluation.blinding import other_images
from medr1_ray.evaluation.omnimedvqa_scores import (
    PREFIX,
    candidate,
    most_similar,
    prefix_request,
    text_request,
)
from medr1_ray.rewards.parsing import parse_answer
from medr1_ray.types import LETTERS, Continuations, Group, Likelihoods, Mode, Prompt, Question, Sampling

Row = dict[str, Any]
Ask = Callable[[Question], Prompt | Refused]
Tokenize = Callable[[str], list[int]]

IMAGE = "image"
BLINDED = ("blank_image", "shuffled_image")
SHUFFLED_OPTIONS = "shuffled_options"
SCORINGS = ("letter", "text", "likelihood")


class Engines(Protocol):
    """Interface of the engines that a pass needs; implemented by `pool.groups.RolloutPool`."""

    def run(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Group]: ...

    def likelihoods(
        self, prompts: Sequence[Prompt], continuations: Sequence[Continuations]
    ) -> list[Likelihoods]: ...


class Pass(Protocol):
    """One pass: `name` is that of its file of rows, `ask` makes the prompts, `run` returns one row per prompt."""

    @property
    def name(self) -> str: ...

    @property
    def ask(self) -> Ask: ...

    def run(self, engines: Engines, prompts: Sequence[Prompt]) -> list[Row]: ...


@dataclass(frozen=True)
class Greedy:
    """A pass with one greedy answer per prompt, graded by `grade`."""

    name: str
    ask: Ask
    grade: Callable[[str, Question], Row]
    max_tokens: int

    def run(self, engines: Engines, prompts: Sequence[Prompt]) -> list[Row]:
        groups = engines.run(prompts, Sampling(group_size=1, max_tokens=self.max_tokens, temperature=0.0))
        return [self._row(group) for group in groups]

    def _row(self, group: Group) -> Row:
        completion = group.completions.texts[0]
        graded = self.grade(completion, group.prompt.question)
        truncated = bool(group.completions.truncated[0])
        return {"id": group.prompt.question.id, **graded, "truncated": truncated, "completion": completion}


@dataclass(frozen=True)
class Sampled:
    """A pass with several sampled answers per prompt; their fraction correct can filter questions by difficulty."""

    name: str
    ask: Ask
    sampling: Sampling

    def run(self, engines: Engines, prompts: Sequence[Prompt]) -> list[Row]:
        return [
            {
                "id": group.prompt.question.id,
                "pass_rate": float(np.mean(group.rewards.correct)),
                "samples": self.sampling.group_size,
            }
            for group in engines.run(prompts, self.sampling)
        ]


@dataclass(frozen=True)
class MostLikely:
    """A pass that answers the option with the largest mean log-probability per token (the prefix-based score)."""

    name: str
    ask: Ask
    tokenize: Tokenize

    def run(self, engines: Engines, prompts: Sequence[Prompt]) -> list[Row]:
        texts = [
            continuations(self.tokenize, [candidate(option) for option in prompt.question.options])
            for prompt in prompts
        ]
        found = engines.likelihoods(prompts, texts)
        return [self._row(prompt.question, each) for prompt, each in zip(prompts, found, strict=True)]

    def _row(self, question: Question, found: Likelihoods) -> Row:
        # Per token, because the sum would favour short options.
        scores = found.logprobs / found.lengths
        chosen = int(scores.argmax())
        return {
            "id": question.id,
            "answer": LETTERS[chosen],
            "correct": chosen == question.answer,
            "well_formed": True,
            "problem": None,
            "truncated": False,
            "scores": [round(score, 6) for score in scores.tolist()],
        }


def letter_passes(
    encoder: PromptEncoder, mode: Mode, max_tokens: int, questions: Sequence[Question], seed: int
) -> list[Pass]:
    """Return the passes: the question unchanged, with a blank image, with another image, with its options shuffled.

    The one with another image is missing if more than half of the questions share one image.
    """
    grade = partial(grade_letter, mode=mode)

    def as_it_is(question: Question) -> Prompt | Refused:
        return encoder.encode(question, question.id)

    def with_blank_image(question: Question) -> Prompt | Refused:
        prompt = as_it_is(question)
        return prompt if isinstance(prompt, Refused) else replace(prompt, image=np.zeros(prompt.image.shape, np.uint8))

    files = [question.image_path for question in questions]
    others = other_images(files, seed)
    other_file = {question.id: files[other] for question, other in zip(questions, others or [], strict=bool(others))}

    def with_other_image(question: Question) -> Prompt | Refused:
        prompt = as_it_is(replace(question, image_path=other_file[question.id]))
        # The row and the grading belong to the question that was asked, not to the owner of the image.
        return prompt if isinstance(prompt, Refused) else replace(prompt, question=question)

    def with_shuffled_options(question: Question) -> Prompt | Refused:
        # The order depends on the question alone, so that a resumed pass asks the same.
        generator = np.random.default_rng([seed, *question.id.encode()])
        return as_it_is(shuffle_options(question, generator))

    blank, shuffled = BLINDED
    return [
        Greedy(IMAGE, as_it_is, grade, max_tokens),
        Greedy(blank, with_blank_image, grade, max_tokens),
        *([] if others is None else [Greedy(shuffled, with_other_image, grade, max_tokens)]),
        Greedy(SHUFFLED_OPTIONS, with_shuffled_options, grade, max_tokens),
    ]


def text_pass(encoder: PromptEncoder, max_tokens: int) -> Pass:
    """Return the pass of OmniMedVQA's question-answering score."""
    return Greedy(
        "text",
        lambda question: encoder.encode_as(text_request(question), question, question.id),
        grade_text,
        max_tokens,
    )


def likelihood_pass(encoder: PromptEncoder, tokenize: Tokenize) -> Pass:
    """Return the pass of OmniMedVQA's prefix-based score."""
    prefix = np.array(tokenize(PREFIX), np.int32)

    def ask(question: Question) -> Prompt | Refused:
        prompt = encoder.encode_as(prefix_request(question), question, question.id)
        if isinstance(prompt, Refused):
            return prompt
        # After the generation prompt, as if the model had written the prefix itself.
        return replace(prompt, token_ids=np.concatenate([prompt.token_ids, prefix]))

    return MostLikely("likelihood", ask, tokenize)


def grade_letter(completion: str, question: Question, mode: Mode) -> Row:
    """Grade by the letter that the completion answers (`rewards/parsing.py`)."""
    parsed = parse_answer(completion, question, mode)
    return {
        "answer": parsed.letter,
        "correct": parsed.letter == question.gold_letter,
        "well_formed": parsed.well_formed,
        "problem": parsed.problem,
    }


def grade_text(completion: str, question: Question) -> Row:
    """Grade by the option most similar to the completion."""
    chosen = most_similar(question.options, completion)
    return {
        "answer": None if chosen is None else LETTERS[chosen],
        "correct": chosen == question.answer,
        "well_formed": True,
        "problem": "similar to none of the options" if chosen is None else None,
    }
