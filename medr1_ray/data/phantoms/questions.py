"""Multiple-choice questions about a phantom, built so that the options alone give nothing away.

For every question type, P(options offered, gold) is the same whichever of the offered options is gold. So neither how
often a text is offered nor how often it was correct helps to answer without the image. This holds over all modalities
together; within a single one, its own name is the answer to every modality question.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from medr1_ray.data.phantoms.facts import ANATOMIES, GRADES, LOCATIONS, MODALITIES, OVERLAPS, PhantomFacts

QUESTION_TYPES: tuple[str, ...] = (
    "Modality Recognition",
    "Anatomy Identification",
    "Disease Diagnosis",
    "Lesion Grading",
    "Other Biological Attributes",
)

_STEMS: dict[str, tuple[str, ...]] = {
    "Modality Recognition": (
        "What imaging modality was used to capture this image?",
        "How was this medical image acquired?",
        "Which technique produced this picture?",
        "What type of imaging is this?",
    ),
    "Anatomy Identification": (
        "What anatomical region is shown in this image?",
        "Which part of the body does this image depict?",
        "Which anatomy is seen here?",
        "What does this image show?",
    ),
    "Disease Diagnosis": (
        "Is there a lesion in this image?",
        "Does this image show a lesion?",
        "Is a lesion visible here?",
    ),
    "Lesion Grading": (
        "How severe is the lesion?",
        "What is the grade of the lesion in this image?",
        "Which severity does this lesion have?",
    ),
    "Other Biological Attributes": (
        "Where is the lesion?",
        "In which part of the image does the lesion lie?",
        "What is the position of the lesion in this image?",
    ),
}


@dataclass(frozen=True)
class PhantomQuestion:
    """One multiple-choice question; `answer` is the text of the one correct option among `options`."""

    question_type: str
    stem: str
    options: tuple[str, ...]
    answer: str


def ask(facts: PhantomFacts, rng: np.random.Generator) -> list[PhantomQuestion]:
    """Return one question for each fact of a phantom: three without a lesion, five with one.

    The options are in random order, so the gold one is equally likely at every position.
    """
    others = [modality for modality in MODALITIES if modality != facts.modality]
    distractors = [others[k] for k in rng.choice(len(others), 3, replace=False)]
    offered: list[tuple[str, ...]] = [
        (facts.modality, *distractors),
        _anatomies_with(facts.anatomy, rng),
        ("Yes", "No"),
    ]
    answers = [facts.modality, facts.anatomy, "Yes" if facts.lesion else "No"]
    if facts.grade is not None and facts.location is not None:
        offered += [GRADES, LOCATIONS]
        answers += [facts.grade, facts.location]
    return [
        PhantomQuestion(
            question_type=question_type,
            stem=_STEMS[question_type][int(rng.integers(len(_STEMS[question_type])))],
            options=tuple(options[k] for k in rng.permutation(len(options))),
            answer=answer,
        )
        for question_type, options, answer in zip(QUESTION_TYPES, offered, answers, strict=False)
    ]


def _anatomies_with(gold: str, rng: np.random.Generator) -> tuple[str, ...]:
    quartets, weights = _anatomy_quartets()
    chances = np.where([gold in quartet for quartet in quartets], weights, 0)
    return quartets[int(rng.choice(len(quartets), p=chances / chances.sum()))]


@cache
def _anatomy_quartets() -> tuple[list[tuple[str, ...]], NDArray[np.float64]]:
    """Return all sets of four anatomies that may be options of one question, and the weight of each.

    An anatomy shared by two modalities is gold twice as often as the others, so it must be offered twice as often. The
    weights are the most even ones (a product of one factor per anatomy, found by iterative scaling) for which every
    anatomy is gold in one quarter of the questions that offer it. Choosing a set by its weight among those that contain
    the gold anatomy then gives P(set, gold) = P(set) / 4.
    """
    names = sorted({anatomy for pair in ANATOMIES.values() for anatomy in pair})
    quartets: list[tuple[str, ...]] = [
        q for q in combinations(names, 4) if not any(overlap <= set(q) for overlap in OVERLAPS)
    ]
    holds = np.array([[name in quartet for name in names] for quartet in quartets], np.float64)
    times_gold = np.array([sum(name in pair for pair in ANATOMIES.values()) for name in names], np.float64)
    offered = 4 * times_gold / times_gold.sum()
    factors: NDArray[np.float64] = np.ones(len(names))
    for _ in range(100):
        weights: NDArray[np.float64] = np.exp(holds @ np.log(factors))
        weights /= weights.sum()
        factors *= offered / (weights @ holds)
    return quartets, weights
