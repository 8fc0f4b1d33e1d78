"""The two scores of OmniMedVQA (arXiv 2402.09181, section 4.1), as its released code computes them.

Question-answering score: the model is shown the options and answers in free text; the option most like it counts.
Prefix-based score: the model is not shown the options; the one whose text is likeliest after the question counts.
Both go through the model's chat template here, which the released code, made for other models, does not do.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

from medr1_ray.types import Question

PREFIX = "The answer is"
"""What the model's turn begins with when the likelihood of an option is asked for."""


def text_request(question: Question) -> str:
    """The question with its options, and the request for the text of one of them."""
    options = list(question.options)
    return (
        f"{question.stem}Here are {len(options)} candidate answers:{options} Only return what you think is the "
        "correct answer from the candidate answers, do not return any other irrelevant text!"
    )


def prefix_request(question: Question) -> str:
    """The question alone."""
    return f"Question: {question.stem}"


def candidate(option: str) -> str:
    """An option as it continues `PREFIX`."""
    return f" {option}."


def most_similar(options: Sequence[str], answer: str) -> int | None:
    """The option most like the answer by `difflib`'s ratio, the first of equals; None where none has anything of it."""
    ratios = [SequenceMatcher(None, option, answer).ratio() for option in options]
    best = max(ratios)
    return ratios.index(best) if best > 0 else None
