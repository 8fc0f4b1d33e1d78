"""The options of a question in another order: what a letter stands for changes, the answer does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from medr1_ray.types import Question


def shuffle_options(question: Question, generator: np.random.Generator) -> Question:
    """The same question with its options in a random order, the gold letter moved with them.

    All orders are equally likely, the one given included. No option of OmniMedVQA speaks of other options ("both A
    and B", "none of the above"; looked for in Med-R1's released rows), so every order asks the same.
    """
    order = [int(index) for index in generator.permutation(len(question.options))]
    return replace(
        question,
        options=tuple(question.options[index] for index in order),
        answer=order.index(question.answer),
    )
