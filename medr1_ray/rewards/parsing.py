"""Parsing a completion: which option it answers, and whether it keeps the format, in one scan over its tags.

Tags are `<think>`, `</think>`, `<answer>`, `</answer>`, literally (lower case, no attributes). The rules:

* Thinking is the text between `<think>` and its `</think>`. It nests; an unclosed `<think>` runs to the end, and
  an unopened `</think>` closes thinking that began with the completion. Nothing inside it is graded.
* An answer is an `<answer>` closed by the next tag, outside the thinking. So of nested answers the innermost
  counts, and an `<answer>` that is never closed, or is cut by a thinking tag, does not count.
* Empty answers are skipped. All others must name the same option; otherwise, or where one names none, the
  completion has no letter.
* An answer names an option by its letter (`C`, `c`, `(C)`, `C.`, `C)`, `**C**`), by its text (case, spaces,
  quotes and closing punctuation aside) where only one option has it, or by a letter with its own option's
  text (`C) CT`, `C: CT`, `C CT`). A letter next to anything else names none.

Every step reads each character a bounded number of times, whatever the completion.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from medr1_ray.types import LETTERS, Mode, Question

_TAG = re.compile(r"</?(?:think|answer)>")
# The lookahead refuses a letter that begins a word, as in "Cyst".
_LETTER = re.compile(r"[(\[]? ?([A-Za-z])(?![^\W_]) ?[)\].:,;-]*(.*)", re.DOTALL)
_EDGES = " .,;:`\"'"
_SHAPES: dict[Mode, tuple[str, ...]] = {
    "think": ("<think>", "</think>", "<answer>", "</answer>"),
    "no_think": ("<answer>", "</answer>"),
    "think_after": ("<answer>", "</answer>", "<think>", "</think>"),
}


@dataclass(frozen=True)
class ParsedAnswer:
    """The result of `parse_answer`: `letter` is that of an option, or None with the reason in `problem`."""

    letter: str | None
    well_formed: bool
    problem: str | None


def parse_answer(completion: str, question: Question, mode: Mode) -> ParsedAnswer:
    """Grade the answer outside the thinking, and the format of the whole completion (module docstring).

    The letter does not depend on `mode`. `well_formed` does: exactly the mode's elements (`think`: thinking,
    answer; `no_think`: answer; `think_after`: answer, thinking), once each, in that order, not empty, with
    nothing but white space around them. Linear in the completion's length.
    """
    tags = list(_TAG.finditer(completion))
    well_formed = _keeps_format(completion, tags, mode)
    answers = _answers_outside_thinking(completion, tags)
    if not answers:
        reason = "no closed <answer> outside the thinking" if tags else "no <answer> tag"
        return ParsedAnswer(None, well_formed, reason)
    folded = [_fold(option) for option in question.options]
    named = [_named_option(answer, folded) for answer in answers if answer.strip()]
    if not named:
        return ParsedAnswer(None, well_formed, "empty answer")
    for _, problem in named:
        if problem is not None:
            return ParsedAnswer(None, well_formed, problem)
    letters = sorted({LETTERS[option] for option, _ in named if option is not None})
    if len(letters) > 1:
        return ParsedAnswer(None, well_formed, f"different answers: {', '.join(letters)}")
    return ParsedAnswer(letters[0], well_formed, None)


def _keeps_format(completion: str, tags: list[re.Match[str]], mode: Mode) -> bool:
    if tuple(tag.group() for tag in tags) != _SHAPES[mode]:
        return False
    edges = [0, *(edge for tag in tags for edge in tag.span()), len(completion)]
    # Text before, inside and after the elements, in turn: outside must be blank, inside must not be.
    texts = [completion[edges[i] : edges[i + 1]] for i in range(0, len(edges), 2)]
    return all(bool(text.strip()) == bool(i % 2) for i, text in enumerate(texts))


def _answers_outside_thinking(completion: str, tags: list[re.Match[str]]) -> list[str]:
    answers: list[str] = []
    depth = 0
    opened_at: int | None = None
    for tag in tags:
        match tag.group():
            case "<think>":
                depth += 1
                opened_at = None
            case "</think>" if depth:
                depth -= 1
            case "</think>":
                # This thinking began with the completion, so the answers found so far are part of it.
                answers.clear()
                opened_at = None
            case "<answer>" if not depth:
                opened_at = tag.end()
            case "</answer>" if opened_at is not None:
                answers.append(completion[opened_at : tag.start()])
                opened_at = None
    return answers


def _named_option(answer: str, options: list[str]) -> tuple[int | None, str | None]:
    """The index of the (folded) option that a non-empty answer names, or None and why not."""
    text = _fold(answer)
    same_text = [i for i, option in enumerate(options) if option == text]
    # Cut before splitting, to bound the work on a long answer.
    shown = repr(" ".join(answer[:80].split())[:40])
    letter = _LETTER.fullmatch(" ".join(answer.replace("*", "").split()).strip("`\"' "))
    index = LETTERS.find(letter[1].upper()) if letter else -1
    rest = _fold(letter[2]) if letter else ""
    offered = 0 <= index < len(options)
    # A lone letter is read as a letter, even where it is also the text of an option (blood group A).
    if letter and not rest and offered:
        return index, None
    if len(same_text) == 1:
        return same_text[0], None
    if same_text:
        return None, f"the text {shown} is that of {len(same_text)} options"
    if not letter:
        return None, f"{shown} names no option"
    if not offered:
        return None, f"{shown}: the letter is not offered (A-{LETTERS[len(options) - 1]})"
    if rest != options[index]:
        return None, f"{shown}: the letter comes with something other than its option's text"
    return index, None


def _fold(text: str) -> str:
    return " ".join(text.replace("*", "").casefold().split()).strip(_EDGES)
