"""The options of a row: several cells, a list, a mapping of letters to texts, or one text that has them all."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Sequence
from decimal import Decimal
from itertools import dropwhile
from typing import Any

from medr1_ray.data.questions import RowError
from medr1_ray.types import LETTERS

# Markers before an option: `A)`, `(A)`, `A.`, `A:`. All of a text have the same form.
_FORMS = [
    re.compile(rf"(?:^|(?<=[\s,;]))({form})\s*")
    for form in (rf"\([{LETTERS}]\)", rf"[{LETTERS}]\)", rf"[{LETTERS}]\.(?=\s|$)", rf"[{LETTERS}]:")
]
_OWN_LETTER = re.compile(rf"\s*\(?([{LETTERS}])[).:]\s*")
_SEPARATORS = (";", "|", "\n")
_LISTED = (("label", "text"), ("key", "value"))
"""Names of an option's letter and text where the options are a list of mappings."""


def options_of(cells: Sequence[Any]) -> tuple[str, ...]:
    """Return the option texts in a row's option cells: one cell with all of them, or one for each.

    Raises:
        RowError: if they cannot be told apart, one is empty or missing, or there are fewer than 2 or more than letters.
    """
    texts = _of_one_cell(cells[0]) if len(cells) == 1 else [plain_text(cell, "option") for cell in cells]
    while texts and not texts[-1]:
        texts.pop()
    if len(texts) < 2:
        raise RowError("fewer than two options")
    if len(texts) > len(LETTERS):
        raise RowError(f"more than {len(LETTERS)} options")
    if not all(texts):
        raise RowError("a letter is missing among the options")
    return _without_own_letters(texts)


def split_text(text: str) -> tuple[str, tuple[str, ...]]:
    """Split `stem A) x B) y`, with markers of any of the usual forms, into the stem and its options.

    Raises:
        RowError: if the text can be read in no way or in several.
    """
    readings = []
    for form in _FORMS:
        # Letters before the first A, as in `Vitamin D. or not? A. yes B. no`, belong to the stem.
        markers = list(dropwhile(lambda marker: _letter(marker) != "A", form.finditer(text)))
        letters = "".join(map(_letter, markers))
        if len(letters) >= 2 and letters == LETTERS[: len(letters)]:
            starts = [marker.end() for marker in markers]
            ends = [marker.start() for marker in markers[1:]] + [len(text)]
            options = tuple(
                text[start:end].strip().rstrip(",;").strip() for start, end in zip(starts, ends, strict=True)
            )
            readings.append((text[: markers[0].start()].strip(), options))
    if not readings:
        raise RowError("no options A), B), ... in the text")
    if len(readings) > 1:
        raise RowError("ambiguous options in the text")
    return readings[0]


def _letter(marker: re.Match[str]) -> str:
    return marker[1].strip("().:")


def plain_text(value: Any, what: str) -> str:
    """Return a cell as stripped text; empty for a missing value.

    Raises:
        RowError: if it is a list, a mapping or bytes; `what` names it.
    """
    if isinstance(value, list | tuple | dict | bytes):
        raise RowError(f"{what} is no text")
    if value is None or value != value:  # NaN
        return ""
    # Whole numbers are floats where their column has a gap: the same patient is 12 in one file and 12.0 in another.
    if isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
        value = int(value)
    return str(value).strip()


def _of_one_cell(cell: Any) -> list[str]:
    value = _parsed(cell)
    if isinstance(value, dict):
        return _of_mapping(list(value.items()))
    if isinstance(value, list | tuple):
        for names in _LISTED:
            if value and all(isinstance(each, dict) and each.keys() == set(names) for each in value):
                return _of_mapping([(each[names[0]], each[names[1]]) for each in value])
        return [plain_text(each, "option") for each in value]
    text = plain_text(value, "options")
    try:
        stem, options = split_text(text)
    except RowError:
        # `CT;\nMRI;\nPET` is the same in both ways, `CT; with contrast | MRI` is not.
        found = [separator for separator in _SEPARATORS if separator in text]
        ways = {tuple(part.strip().strip("".join(found)).strip() for part in text.split(each)) for each in found}
        if not ways:
            raise
        if len(ways) > 1:
            raise RowError(f"options have several separators ({' and '.join(map(repr, found))})") from None
        return list(ways.pop())
    if stem:
        raise RowError("text before the first option")
    return list(options)


def _of_mapping(texts: Sequence[tuple[Any, Any]]) -> list[str]:
    pairs = [(plain_text(key, "letter of an option").upper(), plain_text(text, "option")) for key, text in texts]
    # Tables fill mappings that lack a letter with nulls.
    given = {key: text for key, text in pairs if text}
    if len(given) < sum(bool(text) for _, text in pairs):
        raise RowError("a letter occurs twice among the options")
    for marks in (LETTERS, [str(n) for n in range(1, 27)], [str(n) for n in range(26)]):
        if set(given) == set(marks[: len(given)]):
            return [given[mark] for mark in marks[: len(given)]]
    raise RowError("a letter is missing among the options")


def _parsed(cell: Any) -> Any:
    """Return the list or mapping that a text writes in JSON's or Python's way, else the cell itself."""
    if isinstance(cell, str) and cell.strip()[:1] in ("[", "{"):
        for parse in (json.loads, ast.literal_eval):
            try:
                value = parse(cell.strip())
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            if isinstance(value, list | dict):
                return value
    return cell


def _without_own_letters(texts: Sequence[str]) -> tuple[str, ...]:
    """Remove `A)`, `B)` and so on from the beginnings of the options if every one has its own letter."""
    markers = [_OWN_LETTER.match(text) for text in texts]
    if all(marker and marker[1] == letter for marker, letter in zip(markers, LETTERS, strict=False)):
        stripped = [text[marker.end() :] for text, marker in zip(texts, markers, strict=True) if marker]
        if not all(stripped):
            raise RowError("a letter is missing among the options")
        return tuple(stripped)
    return tuple(texts)
