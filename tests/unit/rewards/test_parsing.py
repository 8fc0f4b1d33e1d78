"""Answers and formats, against values read off each completion by hand."""

from __future__ import annotations

import pytest

from medr1_ray.rewards.parsing import parse_answer
from tests.unit.rewards.answer_forms import COUNT, DO_NOT
from tests.unit.rewards.completions import (
    COMPLETIONS,
    HOSTILE,
    MODALITY,
    MODES,
    takes_linear_time,
    with_options,
)


@pytest.mark.parametrize(("completion", "letter", "formats"), [row[:3] for row in COMPLETIONS])
def test_completions(completion: str, letter: str | None, formats: str) -> None:
    for key, mode in MODES.items():
        parsed = parse_answer(completion, MODALITY, mode)
        assert parsed.letter == letter
        assert (parsed.problem is None) == (letter is not None)
        assert parsed.well_formed == (key in formats)


def test_the_table_is_large_and_without_repeats() -> None:
    assert len({row[0] for row in COMPLETIONS}) == len(COMPLETIONS) >= 90


@pytest.mark.parametrize(
    ("options", "answer", "letter"),
    [
        (("Viral_Pneumonia.", "No."), "viral_pneumonia", "A"),
        (("Viral_Pneumonia.", "No."), "B) no", "B"),
        (("MR (Mag-netic Resonance Imaging)", "CT(Computed Tomography)"), "B) CT(Computed Tomography)", "B"),
        (("MR (Mag-netic Resonance Imaging)", "CT(Computed Tomography)"), "CT", None),
        # A text that starts with a letter of its own, or is one.
        (("T-cells", "B-cells", "A tumor"), "A tumor", "C"),
        (("T-cells", "B-cells", "A tumor"), "B-cells", "B"),
        (("T-cells", "A tumor", "B-cells"), "B-cells", "C"),
        (("T-cells", "B-cells", "A tumor"), "a", "A"),
        (("B", "A", "AB", "O"), "A", "A"),
        (("B", "A", "AB", "O"), "A) B", "A"),
        (("B", "A", "AB", "O"), "A) A", None),
        (("B", "A", "AB", "O"), "AB", "C"),
        (("B", "A", "AB", "O"), "O", "D"),
        # A text that two options share names neither; with its letter it does.
        (("CT", "MRI", "CT"), "CT", None),
        (("CT", "MRI", "CT"), "C) CT", "C"),
        (("CT", "MRI", "CT"), "MRI", "B"),
        # As many letters as options.
        (("Yes", "No"), "B", "B"),
        (("Yes", "No"), "C", None),
        (tuple("stuvwxyz"), "H", "H"),
        (("light  and\nelectron", "x"), "Light and electron", "A"),
    ],
)
def test_options(options: tuple[str, ...], answer: str, letter: str | None) -> None:
    assert parse_answer(f"<answer>{answer}</answer>", with_options(*options), "no_think").letter == letter


@pytest.mark.parametrize(
    ("completion", "problem"),
    [
        ("C", "no <answer> tag"),
        ("<answer>C", "no closed <answer> outside the thinking"),
        ("<think><answer>C</answer></think>", "no closed <answer> outside the thinking"),
        ("<answer> </answer>", "empty answer"),
        ("<answer>A</answer><answer>C</answer>", "different answers: A, C"),
        ("<answer>PET</answer>", "'PET' names no option"),
        ("<answer>(E)</answer>", "'(E)': the letter is not offered (A-D)"),
        ("<answer>C) MRI</answer>", "'C) MRI': the letter comes with something other than its option's text"),
    ],
)
def test_problem_says_why_there_is_no_letter(completion: str, problem: str) -> None:
    assert parse_answer(completion, MODALITY, "no_think").problem == problem


def test_a_text_of_two_options_is_said_to_be() -> None:
    parsed = parse_answer("<answer>ct</answer>", with_options("CT", "MRI", "CT"), "no_think")
    assert parsed.problem == "the text 'ct' is that of 2 options"


def test_of_a_long_answer_the_problem_shows_the_beginning() -> None:
    problem = parse_answer(f"<answer>{'lung ' * 50_000}</answer>", MODALITY, "no_think").problem
    assert problem == f"'{'lung ' * 8}' names no option", "40 characters"


@pytest.mark.parametrize("completion", HOSTILE, ids=lambda completion: completion[:25])
def test_a_long_completion_takes_no_more_than_linear_time(completion: str) -> None:
    assert takes_linear_time(lambda: parse_answer(completion, MODALITY, "think"))


@pytest.mark.parametrize(("options", "answer", "letter"), COUNT)
def test_forms_that_count(options: tuple[str, ...], answer: str, letter: str) -> None:
    assert parse_answer(f"<answer>{answer}</answer>", with_options(*options), "no_think").letter == letter


@pytest.mark.parametrize(("options", "answer"), DO_NOT)
def test_forms_that_must_not_count(options: tuple[str, ...], answer: str) -> None:
    parsed = parse_answer(f"<answer>{answer}</answer>", with_options(*options), "no_think")
    assert parsed.letter is None
    assert parsed.problem
