"""Comparing texts: folds from the tightest to the loosest, so that a looser one never blurs two different options.

Where a question has the options `CO` and `Co`, each names itself alone; where it has one of them, `co` names it too.
No fold makes `T2` of `T2*`, `5 cm` of `.5 cm`, 5 of `,5`, or 102 of 10².
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache

# Unicode's Default_Ignorable_Code_Point: zero-width characters, soft hyphens, direction marks, variation selectors.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\U000e0000-\U000e0fff]"
)
# Typographic marks and those of other scripts, with the ASCII marks that they stand for. What NFKC folds is not here.
_MARKS = {
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u2039\u203a\u00b4\u02bc\u2032", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033\u301d\u301e\u301f\u300c\u300d\u300e\u300f", '"'),
    **dict.fromkeys("\u3002\u06d4\u0964", "."),
    **dict.fromkeys("\u3001\u060c", ","),
    "\u061b": ";",
    "\u2212": "-",
    "\uff40": "`",
}
# Raised and lowered characters after a digit are another number: 10\u00b2 is not 102, while cm\u00b2 is cm2.
_EXPONENT = re.compile("((?<=\\d)[\u00b2\u00b3\u00b9\u2070-\u209c]+)")
# A point or a comma before a digit is part of the number.
_BEFORE_TEXT = re.compile(r"^(?:[ ;:]|[.,](?!\d))+")
_EMPHASIS = re.compile(r"(\*{1,3})([^*\s](?:[^*]*[^*\s])?)\1")
_WRAPPERS = "\"'`"
_LONGER_THAN_ITS_FOLD = 4
"""How many times longer than its fold a text may be: canonical composition makes one character of up to four."""
_ROOM = 64
"""Characters that may surround an option's text in an answer: its letter, brackets, quotes, emphasis."""


def unwrapped(text: str) -> str:
    """Return the text without the quotes and backticks that stand in pairs around it."""
    start, end = 0, len(text)
    while end - start > 2 and _mark(text[start]) in _WRAPPERS and _mark(text[start]) == _mark(text[end - 1]):
        start, end = start + 1, end - 1
        # Inner spaces, as in « CT ».
        while end > start and text[start] == " ":
            start += 1
        while end > start and text[end - 1] == " ":
            end -= 1
    return text[start:end]


def with_ascii_marks(text: str) -> str:
    """Return the text with ASCII quotes, dashes, brackets and punctuation; letters and digits stay as they are."""
    return text if text.isascii() else " ".join("".join(map(_mark, text)).split())


def without_emphasis(text: str) -> str:
    """Return the text without the asterisks that stand in pairs around words; that of T2* is part of the text."""
    return _EMPHASIS.sub(r"\2", text)


def compatible(text: str) -> str:
    """Return the text in Unicode's compatibility form (NFKC): full-width and circled characters become plain ones."""
    if text.isascii():
        return text
    parts = _EXPONENT.split(with_ascii_marks(text))
    # Every second part is an exponent.
    folded = (part if number % 2 else unicodedata.normalize("NFKC", part) for number, part in enumerate(parts))
    return " ".join("".join(folded).split())


def _bare(text: str) -> str:
    before = None
    while before != text:
        before, text = text, _BEFORE_TEXT.sub("", unwrapped(text).rstrip(" .,;:"))
    return text


_FOLDS: tuple[Callable[[str], str], ...] = (
    lambda text: text,
    unwrapped,
    _bare,
    lambda text: _bare(without_emphasis(with_ascii_marks(text))),
    lambda text: _bare(without_emphasis(compatible(text))),
    lambda text: _bare(without_emphasis(compatible(text))).casefold(),
)


class Options:
    """The options of a question, compared with texts."""

    def __init__(self, options: Sequence[str]) -> None:
        texts = [_composed(_visible(option)) for option in options]
        self._folded = [[fold(text) for text in texts] for fold in _FOLDS]
        self._longest = _LONGER_THAN_ITS_FOLD * max(map(len, texts)) + _ROOM

    def shorten(self, text: str) -> str | None:
        """Return a text without invisible characters and with single spaces; None if it is too long to be an option's.

        Its length bounds the work of all that follows: composing alone is quadratic in a row of combining characters.
        """
        visible = _visible(text)
        return _composed(visible) if len(visible) <= self._longest else None

    def equal_to(self, text: str) -> list[int]:
        """Return the indexes of the options that a short text equals under the tightest fold that finds any."""
        for fold, options in zip(_FOLDS, self._folded, strict=True):
            folded = fold(text)
            found = [index for index, option in enumerate(options) if option == folded]
            if folded and found:
                return found
        return []


@lru_cache(maxsize=256)
def options_of(options: tuple[str, ...]) -> Options:
    """Return the folded options; cached, because a group's completions are all compared with the same ones."""
    return Options(options)


def _visible(text: str) -> str:
    return " ".join(_INVISIBLE.sub("", text).split())


def _composed(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


@lru_cache(maxsize=4096)
def _mark(character: str) -> str:
    """Return the ASCII mark that a mark stands for; characters that are no marks, and marks without one, unchanged."""
    if character.isascii():
        return character
    if character in _MARKS:
        return _MARKS[character]
    category = unicodedata.category(character)
    if category == "Pd":
        return "-"
    if category[0] not in "PZ":
        return character
    compatibility = unicodedata.normalize("NFKC", character)
    if compatibility.isascii():
        return compatibility
    return _MARKS.get(compatibility) or {"Ps": "(", "Pe": ")"}.get(category, character)
