"""What the answers of a table are: letters, texts of options, or numbers that count from 0 or from 1."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import get_args

from medr1_ray.config import TableAnswers
from medr1_ray.types import LETTERS

NAMES: dict[TableAnswers, str] = {
    "letter": "letters",
    "text": "texts of options",
    "index_from_0": "numbers from 0",
    "index_from_1": "numbers from 1",
}

_LETTER = re.compile(r"(?:option\s+)?\(?\s*([A-Z])\s*[).:]*", re.IGNORECASE)
_LETTER_AND_TEXT = re.compile(r"\(?([A-Z])[).:]\s*(.+)", re.DOTALL)
# 2.0 is what a column of whole numbers with a gap becomes in pandas.
_NUMBER = re.compile(r"(\d+)(?:\.0)?")


class Ambiguous(ValueError):
    """The answers can be read in two ways that differ."""


def settle(
    answers: Sequence[str], options: Sequence[tuple[str, ...]], wanted: TableAnswers | None
) -> tuple[TableAnswers, ...]:
    """Return the ways to read a table's answers, each with its row's options; more than one only where they agree.

    The way that reads most answers is taken, with others that read what it cannot and never contradict it.

    Raises:
        Ambiguous: if another way contradicts it and reads as many answers, or some that it cannot read.
    """
    if wanted is not None:
        return (wanted,)
    read = {
        way: {
            row: option
            for row, (answer, of) in enumerate(zip(answers, options, strict=True))
            if (option := option_of(way, answer, of)) is not None
        }
        for way in NAMES
    }
    ways: list[TableAnswers] = []
    for way in sorted(NAMES, key=lambda way: -len(read[way])):
        differing = {other: _first_difference(read[way], read[other]) for other in ways}
        for other, row in differing.items():
            if row is not None and not read[way].keys() < read[other].keys():
                raise Ambiguous(
                    f"the answers can be {NAMES[other]} or {NAMES[way]}: {answers[row]!r} would be "
                    f"{options[row][read[other][row]]!r} or {options[row][read[way][row]]!r}"
                )
        agrees = all(row is None for row in differing.values())
        if agrees and read[way].keys() - {row for other in ways for row in read[other]}:
            ways.append(way)
    return tuple(ways)


def _first_difference(one: Mapping[int, int], other: Mapping[int, int]) -> int | None:
    return next((row for row, option in one.items() if other.get(row, option) != option), None)


def option_of(way: TableAnswers, answer: str, options: tuple[str, ...]) -> int | None:
    """Return the index of the option that an answer, read in this way, names; None if it names none."""
    if way == "letter":
        index = _letter(answer, options)
    elif way == "text":
        return _text(answer, options)
    else:
        match = _NUMBER.fullmatch(answer)
        index = None if match is None else int(match[1]) - (way == "index_from_1")
    return index if index is not None and 0 <= index < len(options) else None


def _letter(answer: str, options: tuple[str, ...]) -> int | None:
    """Read `B`, `b`, `(B)`, `B.`, `Option B`, and `B) text` where the text is that of option B."""
    if match := _LETTER.fullmatch(answer):
        return LETTERS.find(match[1].upper())
    if match := _LETTER_AND_TEXT.fullmatch(answer):
        index = LETTERS.find(match[1])
        if index < len(options) and _text(match[2], options) == index:
            return index
    return None


def _text(answer: str, options: tuple[str, ...]) -> int | None:
    """Return the one option with this text, or with this text but for case and spaces."""
    if answer in options:
        return options.index(answer)
    folded = [_folded(option) for option in options]
    return folded.index(_folded(answer)) if folded.count(_folded(answer)) == 1 else None


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


assert set(NAMES) == set(get_args(TableAnswers))
