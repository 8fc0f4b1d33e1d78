"""What the user's turn asks for, and what supervised training imitates."""

from __future__ import annotations

import pytest

from medr1_ray.config import PromptSettings
from medr1_ray.data.prompt_templates import MEDR1_WORDING, chat_messages, target_text, user_text
from medr1_ray.rewards.functions import medr1_format, parse_answer
from medr1_ray.types import Mode, Question

QUESTION = Question("q", "/q.png", "Which?", ("x", "y", "z"), 1, "CT", "Disease Diagnosis", "none")
MODES: tuple[Mode, ...] = ("think", "no_think", "think_after")


@pytest.mark.parametrize("mode", MODES)
def test_every_target_has_the_gold_letter_and_invents_no_reasoning(mode: Mode) -> None:
    text = target_text(QUESTION, mode)
    assert text.replace("<think></think>", "") == "<answer>B</answer>"
    parsed = parse_answer(text, QUESTION, mode)
    assert parsed.letter == "B"
    assert parsed.well_formed == (mode == "no_think"), "an empty thinking part is not the format"


def test_the_references_format_takes_an_empty_thinking_part() -> None:
    for mode in ("think", "no_think"):
        assert medr1_format(target_text(QUESTION, mode), QUESTION, mode) == 1.0


def test_a_wording_of_ones_own_replaces_that_of_the_mode() -> None:
    own = PromptSettings(no_think="Q: {question} A:", system="Be brief.")
    question = Question("q", "/q.png", "Which {question}?", ("x", "{y}"), 1, "CT", "Disease Diagnosis", "none")
    assert user_text(question, "no_think", own) == "Q: Which {question}? A)x, B){y} A:"
    assert user_text(question, "think", own) == user_text(question, "think")
    assert [turn["role"] for turn in chat_messages(question, "no_think", own)] == ["system", "user"]
    assert [turn["role"] for turn in chat_messages(question, "no_think")] == ["user"]


@pytest.mark.parametrize("mode", MODES)
def test_by_default_the_wording_asks_for_the_tags_that_are_graded(mode: Mode) -> None:
    assert "<answer>...</answer>" in MEDR1_WORDING.templates[mode]
    assert ("<think>...</think>" in MEDR1_WORDING.templates[mode]) == (mode != "no_think")
