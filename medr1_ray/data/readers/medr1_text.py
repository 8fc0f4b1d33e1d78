"""Parsing of the text format of Med-R1's rows: `stem A)x, B)y, C)z` and `<answer> C </answer>`."""

from __future__ import annotations

import re
from itertools import dropwhile

from medr1_ray.data.questions import RowError
from medr1_ray.types import LETTERS

# The marker of an option: `A)` after white space, then `, B)` and so on as Med-R1 writes them. Others write a semicolon
# or white space alone, as in `B)MRI C)US`.
_MARKER = re.compile(rf"\sA\)|(?:[,;]\s*|\s)[{LETTERS[1:]}]\)")


def split_problem(problem: str) -> tuple[str, tuple[str, ...]]:
    """Split `stem A)x, B)y, C)z` into the stem and its 2 to 26 options.

    A bracket that closes an open one, as in `(grade A) ...`, is not taken for a marker, unless the letters are in order
    only with it (an option may lack its closing bracket). If both readings are possible, the row is refused rather
    than guessed.

    Raises:
        RowError: if the options cannot be told apart with certainty, or if the stem or an option is empty.
    """
    markers = list(_MARKER.finditer(problem))
    closing = _closing_brackets(problem)
    unbracketed = [marker for marker in markers if marker.end() - 1 not in closing]
    readings = [found for found in map(_from_a, (markers, unbracketed)) if _in_order(found)]
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


def _from_a(markers: list[re.Match[str]]) -> list[re.Match[str]]:
    """Return the markers from the first `A)` on; letters with a bracket before it belong to the stem."""
    return list(dropwhile(lambda marker: marker.group()[-2] != "A", markers))


def _in_order(markers: list[re.Match[str]]) -> bool:
    letters = "".join(marker.group()[-2] for marker in markers)
    return len(letters) >= 2 and letters == LETTERS[: len(letters)]


def _closing_brackets(text: str) -> set[int]:
    """Return the positions of the brackets that close an open one."""
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
    """Return the index of the gold option in `<answer> C </answer>`; `options` is the number of options.

    Raises:
        RowError: if there is no letter, or no option has it.
    """
    match = _SOLUTION.fullmatch(solution.strip())
    if match is None:
        raise RowError("no letter in the solution")
    answer = LETTERS.index(match.group(1))
    if answer >= options:
        raise RowError("gold letter not among the options")
    return answer
