"""Lessons: the right reply to each turn, in the form that its mode asks for."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from medr1_ray.data.images import load_image
from medr1_ray.data.phantoms import phantom_facts, phantom_questions, write_dataset
from medr1_ray.data.prompt_templates import MEDR1_WORDING, user_text
from medr1_ray.rewards.parsing import parse_answer
from medr1_ray.tiny.curriculum import (
    DESCRIBE_PROMPTS,
    MODES,
    Turn,
    choose_turn,
    graded_phantoms,
    listing_turn,
    named_item,
    phantom_case,
    phantom_item,
    phantom_lesson,
    question_lesson,
    random_mode,
    report_items,
    shape_lesson,
    text_lesson,
)
from medr1_ray.tiny.shapes import Item
from medr1_ray.types import Mode, Question

ITEM = Item("Which?", ("x", "y", "z"), 1, "It is y.")
REPLIES: dict[Mode, str] = {
    "no_think": "<answer>B</answer>",
    "think": "<think>It is y.</think><answer>B</answer>",
    "think_after": "<answer>B</answer><think>It is y.</think>",
}


@pytest.mark.parametrize("mode", MODES)
def test_a_choice_is_worded_as_in_a_run_and_answered_in_its_form(mode: Mode) -> None:
    question = Question("q", "", "Which?", ("x", "y", "z"), 1, "CT", "", "")
    turn = choose_turn(ITEM, mode)
    assert turn == Turn(user_text(question, mode), REPLIES[mode])
    parsed = parse_answer(turn.reply, question, mode)
    assert (parsed.letter, parsed.well_formed) == ("B", True)


def test_three_fifths_of_the_choices_are_without_reasoning() -> None:
    rng = np.random.default_rng(0)
    modes = Counter(random_mode(rng) for _ in range(3000))
    assert [modes[mode] / 3000 for mode in ("no_think", "think", "think_after")] == pytest.approx(
        [0.6, 0.2, 0.2], abs=0.03
    )


def test_a_named_option_is_in_the_stem_and_equally_often_in_every_place() -> None:
    rng, places, quoted = np.random.default_rng(0), Counter[tuple[int, int]](), 0
    for _ in range(1500):
        item = named_item(rng)
        assert 2 <= len(set(item.options)) == len(item.options) <= 4
        name = item.options[item.answer]
        assert name.lower() in item.stem.lower()
        quoted += f'"{name}"' in item.stem
        assert item.because == f'Option {"ABCD"[item.answer]} says "{name}".'
        places[len(item.options), item.answer] += 1
    assert quoted / 1500 == pytest.approx(0.6, abs=0.05)
    for count in (2, 3, 4):
        total = sum(places[count, k] for k in range(count))
        assert all(places[count, k] / total == pytest.approx(1 / count, abs=0.07) for k in range(count))


def test_a_listing_names_every_option_with_its_letter_in_another_order() -> None:
    rng, shuffled = np.random.default_rng(0), 0
    for _ in range(200):
        turn = listing_turn(rng)
        offered = dict(re.findall(r"([A-H])\)([^,]+)", turn.user))
        pairs = [tuple(pair.split("=")) for pair in turn.reply.split(",")]
        if turn.user.startswith("Which letter has which name?"):
            pairs = [(letter, name) for name, letter in pairs]
        else:
            assert turn.user.startswith("Which name has which letter?")
        assert dict(pairs) == offered
        shuffled += [letter for letter, _ in pairs] != sorted(offered)
    assert shuffled > 100


def test_a_report_tells_what_is_asked_about_it() -> None:
    rng, kinds = np.random.default_rng(0), Counter[bool]()
    for _ in range(100):
        items = report_items(rng)
        report = items[0].stem.partition(". ")[0]
        assert report.startswith("Report: ")
        assert all(item.stem.startswith(f"{report}. ") for item in items), "one report for all questions"
        answers = {item.options[item.answer].lower() for item in items} - {"yes", "no"}
        assert all(answer in report.lower() for answer in answers), (report, answers)
        kinds["lesion" in report] += 1
    assert 40 < kinds[True] < 80, "six in ten are about a phantom"


def test_shares_of_a_text_lesson() -> None:
    rng = np.random.default_rng(0)
    lesson = text_lesson(rng, turns=600, reports=0.3, listings=0.1, thinking=False)
    assert lesson.image is None
    assert len(lesson.turns) == 600
    kinds = Counter(
        "report" if turn.user.startswith("Report: ") else "choice" if "<answer>" in turn.reply else "listing"
        for turn in lesson.turns
    )
    assert kinds["report"] / 600 == pytest.approx(0.3, abs=0.06)
    assert kinds["listing"] / 600 == pytest.approx(0.1, abs=0.04)
    assert not any("<think>" in turn.reply for turn in lesson.turns)
    thinking = text_lesson(rng, turns=50, reports=0.5, listings=0, thinking=True)
    assert any("<think>" in turn.reply for turn in thinking.turns)


def test_pictures_are_described_and_asked_about() -> None:
    rng, described = np.random.default_rng(0), 0
    for _ in range(40):
        lesson = shape_lesson(rng, 3)
        assert lesson.image is not None
        assert lesson.image.shape == (84, 84, 3)
        choices = [turn for turn in lesson.turns if turn.user not in DESCRIBE_PROMPTS]
        assert len({turn.user for turn in choices}) == 3
        described += len(lesson.turns) - 3
        phantom = phantom_lesson(rng)
        assert phantom.image is not None
        assert phantom.image.shape == (84, 84, 3)
        assert phantom.turns[0].user in DESCRIBE_PROMPTS
    assert 10 < described < 30, "every other one"


def test_a_case_is_the_phantom_that_is_written_to_disk(tmp_path: Path) -> None:
    write_dataset(tmp_path / "p", images=3, seed=4)
    (path,) = (tmp_path / "p" / "Images").rglob("000002.*")
    case = phantom_case(4, 2)
    written = load_image(path, 84, "squash").astype(int)
    assert np.abs(case.image - written).mean() < 2  # a JPEG is not exact
    assert (case.facts, list(case.questions)) == (phantom_facts(4, 2), phantom_questions(4, 2))


def test_only_phantoms_with_a_lesion_are_graded() -> None:
    numbers = graded_phantoms(3)
    found = [next(numbers) for _ in range(20)]
    assert found == [number for number in range(found[-1] + 1) if phantom_facts(3, number).grade]


def test_a_question_lesson_asks_the_question_of_its_type() -> None:
    number = next(graded_phantoms(0))
    lesson = question_lesson(0, number, "Lesion Grading", np.random.default_rng(0))
    (question,) = [q for q in phantom_questions(0, number) if q.question_type == "Lesion Grading"]
    item = phantom_item(question)
    assert item.options[item.answer] == question.answer == phantom_facts(0, number).grade
    assert item.because == f"It is {question.answer.lower()}."
    (turn,) = lesson.turns
    assert turn in [choose_turn(item, mode) for mode in MODES]
    assert turn.user.startswith(f"{question.stem} A){question.options[0]}, B)")
    assert lesson.image is not None
    assert set(MEDR1_WORDING.templates) == set(MODES)
