"""Parsing a completion: which option it answers, and whether it keeps the format, in one scan over its tags.

Tags are `<think>`, `</think>`, `<answer>`, `</answer>`, literally (lower case, no attributes). The rules:

* Thinking is the text between `<think>` and its `</think>`. It nests, and an unopened `</think>` closes thinking that
  began with the completion. Nothing inside it is graded. A `<think>` that is never closed is ignored.
* An answer is an `<answer>` closed by the next tag, outside the thinking. So of nested answers the innermost
  counts, and an `<answer>` that is never closed, or is cut by a thinking tag, does not count.
* Empty answers are skipped, and so are those of marks alone, such as the `<answer>...</answer>` of the prompt's own
  wording; a letter or digit in a circle or square is no mark. All others must name the same option; otherwise, or where
  one names none, the completion has no letter.
* An answer names an option by its letter (`C`, `c`, `(C)`, `C.`, `C)`, `**C**`), by its text (case, spaces,
  quotes, emphasis and closing punctuation aside) where only one option has it, or by a letter with its own option's
  text (`C) CT`, `C: CT`, `C CT`). A letter next to anything else names none.
* Where the ASCII form of an answer counts, its Unicode forms do (full-width, circled, typographic, CJK marks). Texts
  are compared exactly first, then more and more loosely (`rewards/folding.py`). Tags are taken literally.

Every step reads each character a bounded number of times, whatever the completion.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from medr1_ray.rewards.folding import compatible, options_of, unwrapped, with_ascii_marks, without_emphasis
from medr1_ray.types import LETTERS, Mode, Question

_TAG = re.compile(r"</?(?:think|answer)>")
# The first lookahead refuses a letter that begins a word, as in "Cyst"; the others leave `.5`, `,5` and `-5` to the
# text.
_LETTER = re.compile(r"[(\[]? ?(.)(?![^\W_]) ?(?:[)\]:;]|[.,](?!\d))*(-(?!\d))?(.*)", re.DOTALL)
# What is no mark: letters and digits, and Unicode's blocks of enclosed ones (circled, squared, regional indicators) and
# of letter-like symbols, whose category is that of marks.
_SAYING = re.compile("[^\\W_]|[\u2100-\u214f\u2460-\u24ff\u3200-\u33ff\U0001f100-\U0001f2ff]")
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
    chosen: set[int] = set()
    for answer in dict.fromkeys(answers):
        named = _named_option(answer, question.options)
        if isinstance(named, int):
            chosen.add(named)
        elif _SAYING.search(answer):
            return ParsedAnswer(None, well_formed, named)
    if not chosen:
        return ParsedAnswer(None, well_formed, "empty answer")
    letters = [LETTERS[option] for option in sorted(chosen)]
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
    never_closed = _never_closed(tags)
    answers: list[str] = []
    depth = 0
    opened_at: int | None = None
    for tag in tags:
        match tag.group():
            case "<think>":
                depth += tag.start() not in never_closed
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


def _never_closed(tags: list[re.Match[str]]) -> set[int]:
    """Return the positions of the `<think>` tags that no `</think>` closes."""
    opened: list[int] = []
    for tag in tags:
        if tag.group() == "<think>":
            opened.append(tag.start())
        elif tag.group() == "</think>" and opened:
            opened.pop()
    return set(opened)


def _named_option(answer: str, offered: tuple[str, ...]) -> int | str:
    """Return the index of the option that an answer names, or why it names none."""
    options = options_of(offered)
    text = options.shorten(answer)
    # Cut before splitting, to bound the work on a long answer.
    shown = repr(" ".join(answer[:80].split())[:40])
    if text is None:
        return f"{shown} names no option"
    readings = _as_letter_and_text(text)
    for index, rest in readings:
        # A lone letter is read as a letter, even where it is also the text of an option (blood group A).
        if not rest and index < len(offered):
            return index
    same_text = options.equal_to(text)
    if len(same_text) == 1:
        return same_text[0]
    if same_text:
        return f"the text {shown} is that of {len(same_text)} options"
    if not readings:
        return f"{shown} names no option"
    if all(index >= len(offered) for index, _ in readings):
        return f"{shown}: the letter is not offered (A-{LETTERS[len(offered) - 1]})"
    for index, rest in readings:
        if same := options.equal_to(rest):
            if index in same:
                return index
            break
    return f"{shown}: the letter comes with something other than its option's text"


def _as_letter_and_text(text: str) -> list[tuple[int, str]]:
    """Return the readings of a text as a letter (its index) and what follows it, the most literal one first."""
    bare = unwrapped(text)
    marks = with_ascii_marks(bare)
    readings = []
    for form in dict.fromkeys((bare, marks, without_emphasis(marks))):
        if match := _LETTER.fullmatch(form):
            letter = compatible(match[1]).strip("()").upper()
            if len(letter) == 1 and letter in LETTERS:
                readings.append((LETTERS.index(letter), match[3].strip() or match[2] or ""))
    return readings
