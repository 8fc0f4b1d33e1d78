"""The options of a row: several cells, a list, a mapping of letters to texts, or one text that has them all."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
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


def options_of(cells: Sequence[Any]) -> tuple[str, ...]:
    """Return the option texts in a row's option cells: one cell with all of them, or one for each.

    Raises:
        RowError: if they cannot be told apart, one is empty or missing, or there are fewer than 2 or more than letters.
    """
    texts = _of_one_cell(cells[0]) if len(cells) == 1 else list(map(plain_text, cells))
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


def plain_text(value: Any) -> str:
    """Return a cell as stripped text; empty for a missing value."""
    if value is None or value != value:  # NaN
        return ""
    return str(value).strip()


def _of_one_cell(cell: Any) -> list[str]:
    value = _parsed(cell)
    if isinstance(value, dict):
        return _of_mapping({str(key).strip().upper(): text for key, text in value.items()})
    if isinstance(value, list | tuple):
        return list(map(plain_text, value))
    text = plain_text(value)
    try:
        stem, options = split_text(text)
    except RowError:
        separator = next((separator for separator in _SEPARATORS if separator in text), None)
        if separator is None:
            raise
        return [part.strip() for part in text.split(separator)]
    if stem:
        raise RowError("text before the first option")
    return list(options)


def _of_mapping(texts: dict[str, Any]) -> list[str]:
    # Tables fill mappings that lack a letter with nulls.
    given = {key: plain_text(text) for key, text in texts.items() if plain_text(text)}
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
