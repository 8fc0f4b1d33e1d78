"""The text format of Med-R1's rows."""

from __future__ import annotations

import pytest

from medr1_ray.data.questions import RowError
from medr1_ray.data.readers.medr1_text import parse_solution, split_problem


@pytest.mark.parametrize(
    ("problem", "stem", "options"),
    [
        ("What is it? A)No., B)Yes", "What is it?", ("No.", "Yes")),
        # The stem ends in letters that look like a marker.
        ("Rate it (IQA) A)good, B)bad, C)outlier", "Rate it (IQA)", ("good", "bad", "outlier")),
        ("Is this the part (A) or B? A)x, B)y", "Is this the part (A) or B?", ("x", "y")),
        ("See (grade A) here? A)x, B)y", "See (grade A) here?", ("x", "y")),
        # Letters with brackets, and commas, inside the options.
        (
            "What? A)Branch occlusion (BRVO), B)AMD (wet, dry), C)OA (ACJ OA)., D)RD (RD)",
            "What?",
            ("Branch occlusion (BRVO)", "AMD (wet, dry)", "OA (ACJ OA).", "RD (RD)"),
        ),
        ("Which? A)Hepatitis (type A), B)none", "Which?", ("Hepatitis (type A)", "none")),
        # An option that lacks its closing bracket, as OmniMedVQA's name of OCT does.
        (
            "How? A)OCT (Optical Coherence Tomography, B)MRI, C)CT",
            "How?",
            ("OCT (Optical Coherence Tomography", "MRI", "CT"),
        ),
        (" What?  A) left , B) right ", "What?", ("left", "right")),
        # Other separators than Med-R1's, and several of them.
        ("What? A)CT, B)MRI C)US", "What?", ("CT", "MRI", "US")),
        ("What? A)CT B)MRI C)US", "What?", ("CT", "MRI", "US")),
        ("What? A)CT; B)MRI;C)US", "What?", ("CT", "MRI", "US")),
        ("What? A)CT,B)MRI,C)US", "What?", ("CT", "MRI", "US")),
        ("What?\nA) CT\nB) MRI\n\nC) US\n", "What?", ("CT", "MRI", "US")),
        ("What? A) x (see B) B) y", "What?", ("x (see B)", "y")),
        # Letters with a bracket in the stem are none of the options.
        ("Is it vitamin D) or E) here? A)x, B)y", "Is it vitamin D) or E) here?", ("x", "y")),
        (
            "Which? " + ", ".join(f"{letter}){letter}1" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
            "Which?",
            tuple(f"{letter}1" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
        ),
    ],
)
def test_split_problem(problem: str, stem: str, options: tuple[str, ...]) -> None:
    assert split_problem(problem) == (stem, options)


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        ("What is it?", "no options"),
        ("What? A)alone", "no options"),
        ("What? A)x, C)y", "no options"),
        ("What? B)x, A)y", "no options"),
        # Neither is glued to the option before it.
        ("What? A)CT, B)MRI D)US", "no options"),
        ("What? A)CT, B)MRI C)US C)PET", "no options"),
        # Option B may be "y (a, C) z" or end before an option C.
        ("What? A)x, B)y (a, C)z", "ambiguous"),
        ("What? A), B)y", "empty"),
        (" A)x, B)y", "empty"),
    ],
)
def test_split_problem_refuses(problem: str, reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        split_problem(problem)


@pytest.mark.parametrize(("solution", "answer"), [("<answer> C </answer>", 2), ("<answer>A</answer>\n", 0)])
def test_parse_solution(solution: str, answer: int) -> None:
    assert parse_solution(solution, options=3) == answer


@pytest.mark.parametrize(
    "solution", ["<answer> D </answer>", "C", "<answer> CT </answer>", "<answer></answer>"]
)
def test_parse_solution_refuses(solution: str) -> None:
    with pytest.raises(RowError):
        parse_solution(solution, options=3)
