"""The two scores of OmniMedVQA (arXiv 2402.09181, section 4.1), computed as in its released code.

Question-answering score: the model sees the options and answers in free text; the most similar option counts.
Prefix-based score: the model does not see the options; the one whose text is most likely after the question counts.
Unlike the released code, which was written for other models, both use the model's chat template.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

from medr1_ray.types import Question

PREFIX = "The answer is"
"""Start of the model's turn, after which the likelihood of each option is computed."""


def text_request(question: Question) -> str:
    """Return the question with its options, and the request for the text of one of them."""
    options = list(question.options)
    return (
        f"{question.stem}Here are {len(options)} candidate answers:{options} Only return what you think is the "
        "correct answer from the candidate answers, do not return any other irrelevant text!"
    )


def prefix_request(question: Question) -> str:
    """Return the question without options."""
    return f"Question: {question.stem}"


def candidate(option: str) -> str:
    """Return an option as the continuation of `PREFIX`."""
    return f" {option}."


def most_similar(options: Sequence[str], answer: str) -> int | None:
    """Return the option with the largest `difflib` ratio to the answer, first of equals; None if all ratios are 0."""
    ratios = [SequenceMatcher(None, option, answer).ratio() for option in options]
    best = max(ratios)
    return ratios.index(best) if best > 0 else None
