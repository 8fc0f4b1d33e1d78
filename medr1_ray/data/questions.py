"""Canonical names of modalities and question types, and the text format of Med-R1's rows."""

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

# Spellings of OmniMedVQA's files beside the canonical ones, letters only: `OCT (Optical Coherence Tomography`
# lacks its closing bracket there and `Mag-netic` is hyphenated.
_SPELLINGS = {
    "ctcomputedtomography": "CT",
    "mrmagneticresonanceimaging": "MRI",
    "mr": "MRI",
    "octopticalcoherencetomography": "OCT",
    "microscopyimages": "Microscopy",
}


class RowError(ValueError):
    """A row that cannot become a question; the message is the reason to count, without details of the row."""


def _letters_only(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


_MODALITY_OF = {_letters_only(name): name for name in MODALITIES} | _SPELLINGS
_QUESTION_TYPE_OF = {_letters_only(name): name for name in QUESTION_TYPES}


def canonical_modality(name: str) -> str:
    """The canonical modality of a file's spelling, `Unknown` where it is none of the eight."""
    return _MODALITY_OF.get(_letters_only(name), UNKNOWN)


def canonical_question_type(name: str) -> str:
    """The canonical question type of a file's spelling, `Unknown` where it is none of the five."""
    return _QUESTION_TYPE_OF.get(_letters_only(name), UNKNOWN)


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
