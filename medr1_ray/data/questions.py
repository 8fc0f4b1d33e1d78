"""Canonical names of modalities and question types, and the text format of Med-R1's rows."""

from __future__ import annotations

import re

from medr1_ray.types import LETTERS

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


# An option's marker: `A)` after white space, which follows a comma unless it is the first option.
_MARKER = re.compile(rf"\sA\)|, [{LETTERS[1:]}]\)")


def split_problem(problem: str) -> tuple[str, tuple[str, ...]]:
    """Split `stem A)x, B)y, C)z` into the stem and its 2 to 8 options.

    A bracket that closes an open one, as in `(grade A) ...`, is no marker, unless only then the letters come
    out in order (an option may lack its closing bracket). Where both readings are possible the row is refused
    rather than guessed.

    Raises:
        RowError: if the options cannot be told apart with certainty, or one or the stem is empty.
    """
    markers = list(_MARKER.finditer(problem))
    closing = _closing_brackets(problem)
    unbracketed = [marker for marker in markers if marker.end() - 1 not in closing]
    readings = [found for found in (markers, unbracketed) if _in_order(found)]
    if not readings:
        raise RowError("no options A), B), ... in the problem")
    if any(reading != readings[0] for reading in readings):
        raise RowError("ambiguous options in the problem")
    starts = [marker.end() for marker in readings[0]]
    ends = [marker.start() for marker in readings[0][1:]] + [len(problem)]
    stem = problem[: readings[0][0].start()].strip()
    options = tuple(problem[start:end].strip() for start, end in zip(starts, ends, strict=True))
    if not stem or not all(options):
        raise RowError("empty stem or option")
    return stem, options


def _in_order(markers: list[re.Match[str]]) -> bool:
    letters = "".join(marker.group()[-2] for marker in markers)
    return len(letters) >= 2 and letters == LETTERS[: len(letters)]


def _closing_brackets(text: str) -> set[int]:
    """The positions of the brackets that close an open one."""
    closing: set[int] = set()
    depth = 0
    for bracket in re.finditer(r"[()]", text):
        if bracket.group() == "(":
            depth += 1
        elif depth:
            depth -= 1
            closing.add(bracket.start())
    return closing


_SOLUTION = re.compile(rf"<answer>\s*([{LETTERS}])\s*</answer>")


def parse_solution(solution: str, options: int) -> int:
    """The index of the gold option in `<answer> C </answer>`.

    Raises:
        RowError: if there is no letter, or none of the `options` has it.
    """
    match = _SOLUTION.fullmatch(solution.strip())
    if match is None:
        raise RowError("no letter in the solution")
    answer = LETTERS.index(match.group(1))
    if answer >= options:
        raise RowError("gold letter not among the options")
    return answer
