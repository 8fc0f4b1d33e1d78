"""Prompts and grading of the passes, with fake engines."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from medr1_ray.data.encoding import PromptEncoder, Refused
from medr1_ray.data.prompt_templates import user_text
from medr1_ray.evaluation.passes import (
    Sampled,
    grade_letter,
    grade_text,
    letter_passes,
    likelihood_pass,
    text_pass,
)
from medr1_ray.types import Prompt, Question, Sampling
from tests.unit.evaluation.engines import Engines


@pytest.fixture
def questions(tmp_path: Path) -> list[Question]:
    made = []
    for i, colour in enumerate(((255, 0, 0), (0, 255, 0), (0, 0, 255))):
        Image.new("RGB", (30, 30), colour).save(tmp_path / f"{i}.png")
        options = ("lung", "liver", "heart", "spleen")
        made.append(Question(f"q{i}", str(tmp_path / f"{i}.png"), "Which organ?", options, i, "CT", "Anatomy", "d"))
    return made


@pytest.fixture
def encoder() -> PromptEncoder:
    def tokenize(chat: list[dict[str, object]]) -> list[int]:
        (turn,) = chat
        image, text = turn["content"]  # type: ignore[misc]
        assert image == {"type": "image"}
        return [7, *text["text"].encode()]

    return PromptEncoder(tokenize, 7, 1, "no_think", 28, "squash", 1000)


def _text(prompt: Prompt | Refused) -> str:
    assert isinstance(prompt, Prompt)
    return bytes(prompt.token_ids[1:].tolist()).decode()


def test_the_letter_passes_change_one_thing_each(encoder: PromptEncoder, questions: list[Question]) -> None:
    image, blank, shuffled, options = letter_passes(encoder, "no_think", 8, questions, 0)
    for question in questions:
        as_it_is = image.ask(question)
        assert isinstance(as_it_is, Prompt)
        assert _text(as_it_is) == user_text(question, "no_think")
        without, other, moved = blank.ask(question), shuffled.ask(question), options.ask(question)
        assert isinstance(without, Prompt)
        assert isinstance(other, Prompt)
        assert isinstance(moved, Prompt)
        assert (_text(without), _text(other)) == (_text(as_it_is), _text(as_it_is))
        assert not without.image.any()
        assert other.image.any()
        assert (other.image != as_it_is.image).any()
        assert (moved.image == as_it_is.image).all()
        assert without.question == other.question == question
        assert sorted(moved.question.options) == sorted(question.options)
        assert moved.question.options[moved.question.answer] == question.options[question.answer]
    assert any(options.ask(q).question.options != q.options for q in questions)  # type: ignore[union-attr]


def test_where_most_questions_share_an_image_none_is_exchanged(
    encoder: PromptEncoder, questions: list[Question]
) -> None:
    names = [each.name for each in letter_passes(encoder, "no_think", 8, questions[:1], 0)]
    assert names == ["image", "blank_image", "shuffled_options"]


def test_an_image_that_cannot_be_read_is_left_out(encoder: PromptEncoder, questions: list[Question]) -> None:
    Path(questions[0].image_path).write_bytes(b"")
    image, *_ = letter_passes(encoder, "no_think", 8, questions, 0)
    refused = image.ask(questions[0])
    assert isinstance(refused, Refused)
    assert refused.reason == "image unreadable"


def test_a_row_says_what_was_answered(encoder: PromptEncoder, questions: list[Question]) -> None:
    image, *_ = letter_passes(encoder, "no_think", 8, questions, 0)
    engines = Engines("<answer>B</answer>")
    prompts = [image.ask(question) for question in questions]
    rows = image.run(engines, [prompt for prompt in prompts if isinstance(prompt, Prompt)])
    assert [(row["id"], row["answer"], row["correct"]) for row in rows] == [
        ("q0", "B", False),
        ("q1", "B", True),
        ("q2", "B", False),
    ]
    assert rows[0]["well_formed"] is True
    assert rows[0]["completion"] == "<answer>B</answer>"
    assert engines.sampling == Sampling(group_size=1, max_tokens=8, temperature=0.0)
    assert image.run(Engines("I do not know..."), engines.prompts)[0] | {"problem": ""} == {
        "id": "q0",
        "answer": None,
        "correct": False,
        "well_formed": False,
        "problem": "",
        "truncated": True,
        "completion": "I do not know...",
    }


def test_pass_rates_are_shares_of_the_samples(encoder: PromptEncoder, questions: list[Question]) -> None:
    image, *_ = letter_passes(encoder, "no_think", 8, questions, 0)
    sampled = Sampled("samples_4", image.ask, Sampling(4, 8, 1.0))
    prompts = [prompt for prompt in map(sampled.ask, questions) if isinstance(prompt, Prompt)]
    rows = sampled.run(Engines("A", "A", "B", "D"), prompts)
    assert [row["pass_rate"] for row in rows] == [0.5, 0.25, 0.0]
    assert rows[0]["samples"] == 4


def test_option_text_is_the_most_similar(encoder: PromptEncoder, questions: list[Question]) -> None:
    asked = _text(text_pass(encoder, 8).ask(questions[0]))
    assert "Here are 4 candidate answers:['lung', 'liver', 'heart', 'spleen']" in asked
    assert "A)" not in asked
    assert grade_text("It is the liver.", questions[1])["correct"] is True
    assert grade_text("", questions[0])["answer"] is None


def test_likelihood_is_per_token_and_without_the_options(encoder: PromptEncoder, questions: list[Question]) -> None:
    each = likelihood_pass(encoder, lambda text: list(text.encode()))
    prompt = each.ask(questions[3 - 1])
    assert isinstance(prompt, Prompt)
    assert _text(prompt) == "Question: Which organ?The answer is"
    # Log-probabilities -1, -2, -3, -4 over " lung." 6, " liver." 7, " heart." 7, " spleen." 8 tokens.
    (row,) = each.run(Engines(), [prompt])
    assert row["scores"] == pytest.approx([-1 / 6, -2 / 7, -3 / 7, -4 / 8], abs=1e-6)
    assert (row["answer"], row["correct"]) == ("A", False)


def test_letters_are_graded_outside_the_thinking(questions: list[Question]) -> None:
    graded = grade_letter("<think><answer>A</answer></think><answer>(c)</answer>", questions[2], "think")
    assert graded == {"answer": "C", "correct": True, "well_formed": False, "problem": None}
