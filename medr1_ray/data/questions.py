"""Canonical names of modalities and question types, and the shuffling of options."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from medr1_ray.types import Question

UNKNOWN = "Unknown"
MODALITIES = (
    "CT",
    "MRI",
    "X-Ray",
    "Ultrasound",
    "Dermoscopy",
    "Fundus Photography",
    "OCT",
    "Microscopy",
    UNKNOWN,
)
QUESTION_TYPES = (
    "Modality Recognition",
    "Anatomy Identification",
    "Disease Diagnosis",
    "Lesion Grading",
    "Other Biological Attributes",
    UNKNOWN,
)

# Spellings in OmniMedVQA's files that differ from the canonical names, reduced to letters because the files have
# `OCT (Optical Coherence Tomography` without its closing bracket and a hyphenated `Mag-netic`.
_SPELLINGS = {
    "ctcomputedtomography": "CT",
    "mrmagneticresonanceimaging": "MRI",
    "mr": "MRI",
    "octopticalcoherencetomography": "OCT",
    "microscopyimages": "Microscopy",
}


class RowError(ValueError):
    """A row that cannot become a question.

    Dropped rows are counted by the message, so it must not contain details of the row.
    """


def _letters_only(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


_MODALITY_OF = {_letters_only(name): name for name in MODALITIES} | _SPELLINGS
_QUESTION_TYPE_OF = {_letters_only(name): name for name in QUESTION_TYPES}


def canonical_modality(name: str) -> str:
    """Return the canonical name of a modality as a file spells it, or the name itself if none of the eight."""
    return _MODALITY_OF.get(_letters_only(name), " ".join(name.split()))


def canonical_question_type(name: str) -> str:
    """Return the canonical name of a question type as a file spells it, or the name itself if none of the five."""
    return _QUESTION_TYPE_OF.get(_letters_only(name), " ".join(name.split()))


def shuffle_options(question: Question, generator: np.random.Generator) -> Question:
    """Return the question with its options in random order and the index of the answer adapted.

    All orders are equally likely, including the given one. No option in Med-R1's released rows of OmniMedVQA refers to
    other options ("both A and B", "none of the above"), so every order asks the same question.
    """
    order = [int(index) for index in generator.permutation(len(question.options))]
    return replace(
        question,
        options=tuple(question.options[index] for index in order),
        answer=order.index(question.answer),
    )
