"""What the answers of a table are: letters, texts of options, numbers that count from 0 or from 1, or 1 for yes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from typing import get_args

from medr1_ray.config import TableAnswers
from medr1_ray.types import LETTERS

NAMES: dict[TableAnswers, str] = {
    "letter": "letters",
    "text": "texts of options",
    "index_from_0": "numbers from 0",
    "index_from_1": "numbers from 1",
    "yes_is_1": "1 for yes and 0 for no",
}

_FEWEST, _SMALLEST_SHARE = 5, 0.2
"""A way of reading counts only from so many rows on, and from this share of all rows that can be read."""

_LETTER = re.compile(r"(?:option\s+)?\(?\s*([A-Z])\s*[).:]*", re.IGNORECASE)
_LETTER_AND_TEXT = re.compile(r"\(?([A-Z])[).:]\s*(.+)", re.DOTALL)
# 2.0 is what a column of whole numbers with a gap becomes in pandas.
_NUMBER = re.compile(r"(\d+)(?:\.0)?")
_NO = {"yes": "no", "y": "n", "true": "false", "positive": "negative", "present": "absent", "abnormal": "normal"}


class Ambiguous(ValueError):
    """The answers can be read in two ways that differ."""


def settle(
    answers: Sequence[str], options: Sequence[tuple[str, ...]], wanted: TableAnswers | None
) -> tuple[TableAnswers, ...]:
    """Return the ways to read a table's answers, each with its row's options; more than one only where they agree.

    The way that reads most answers is taken. A further one is taken for what no other can read, as in a table that was
    put together from one with letters and one with texts, if

    - it reads every row that another way reads too as that one does, and
    - enough rows need it: 5, and a fifth of those that can be read. Few such rows are rather wrong ones: a gold `4` of
      `4 mm`, `8 mm`, `12 mm`, `16 mm` is no fourth option. They are read in no way.

    0 and 1 with the options yes and no may be positions, or say whether it is so. They are taken for positions only if
    enough rows have numbers that can be nothing else, such as a 2, or options of another kind.

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
    all_read = len({row for rows in read.values() for row in rows})

    def enough(rows: Set[int]) -> bool:
        return len(rows) >= max(_FEWEST, _SMALLEST_SHARE * all_read)

    ways: list[TableAnswers] = []
    for way in sorted(NAMES, key=lambda way: -len(read[way])):
        differing = {other: _first_difference(read[way], read[other]) for other in ways}
        for other, row in differing.items():
            more = read[other].keys() - read[way].keys()
            outdone = read[way].keys() < read[other].keys() and (way != "yes_is_1" or enough(more))
            if row is not None and not outdone:
                raise Ambiguous(
                    f"the answers can be {NAMES[other]} or {NAMES[way]}: {answers[row]!r} would be "
                    f"{options[row][read[other][row]]!r} or {options[row][read[way][row]]!r}"
                )
        agrees = all(row is None for row in differing.values())
        alone = read[way].keys() - {row for other in ways for row in read[other]}
        if agrees and (enough(alone) if ways else alone):
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
    elif way == "yes_is_1":
        return _yes_or_no(answer, options)
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


def _yes_or_no(answer: str, options: tuple[str, ...]) -> int | None:
    """Read 1 as the option yes and 0 as the option no where these are the two options, in either order."""
    match = _NUMBER.fullmatch(answer)
    if match is None or int(match[1]) > 1 or len(options) != 2:
        return None
    first, second = map(_folded, options)
    for yes, denied, no in ((0, first, second), (1, second, first)):
        if no in (_NO.get(denied), f"no {denied}", f"not {denied}", f"non-{denied}"):
            return yes if int(match[1]) else 1 - yes
    return None


def _text(answer: str, options: tuple[str, ...]) -> int | None:
    """Return the one option with this text, or with this text but for case, spaces and the .0 of a whole number."""
    if answer in options:
        return options.index(answer)
    folded = [_folded(option) for option in options]
    return folded.index(_folded(answer)) if folded.count(_folded(answer)) == 1 else None


def _folded(text: str) -> str:
    number = _NUMBER.fullmatch(text)
    return number[1] if number else " ".join(text.casefold().split())


assert set(NAMES) == set(get_args(TableAnswers))
